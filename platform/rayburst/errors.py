"""Every exception rayburst raises.

RayburstError
├── SpecError               a fleet file that cannot be used; says file, line, column
│   └── UnitError           a quantity without the one unit it needs; knows the right way
├── FleetError              the fleet is not in the state the call needs
│   ├── FleetExistsError    a fleet of this name is already up
│   ├── FleetNotFoundError  no fleet of this name here
│   ├── FleetBrokenError    a part of the fleet is dead or its state file cannot be read
│   └── StartError          a part of the fleet did not start
├── NodeNotFoundError       no such node in the fleet
├── RunNotFoundError        no training run of this name on the fleet's store
├── PoolError               a pool could not do what was asked of it
│   ├── PoolCapacityError   its market has no such host now
│   ├── PoolQuotaError      the account may have no more
│   ├── PoolThrottledError  it was asked too often
│   └── PoolUnreachableError  a machine of it gives no answer
├── JobError                a job could not be submitted, or failed
├── DeployError             a Serve application did not become healthy
├── ModelError              a class cannot be served as it is written
├── RequestError            a request to a served model was not answered
│   ├── BadRequestError     its input cannot be used; says where and what works
│   ├── RefusedError        it was refused at once: come back later, or slower
│   ├── KeyRefusedError     it has no key that works, or one for other models
│   ├── LateError           its deadline passed before it could be computed
│   └── RequestFailedError  the model failed on it
├── StoreError              the object store refused or could not be reached
│   ├── ObjectNotFoundError no object at this key
│   └── ObjectExistsError   a conditional write lost: the object is already there
├── CheckpointError         a checkpoint is missing, damaged or belongs elsewhere
│   ├── CheckpointNotFoundError  no checkpoint here, or not this step
│   ├── CheckpointDamagedError   an object is missing, cut short or holds other bytes
│   ├── CheckpointExistsError    another writer committed this step first
│   └── CheckpointAbandonedError a save was given up before its commit; says why
├── VersionError            a model version cannot be made, or not be used
│   ├── VersionNotFoundError  no model, version, alias or variant of this name
│   ├── VersionDamagedError   an object of a version is missing or holds other bytes
│   └── VersionConflictError  somebody else moved the alias meanwhile
├── VariantError            a variant cannot be made here, or none keeps what is asked
├── LayoutError             a model cannot be laid out over devices like this; says what would fit
├── PeerLostError           a group of workers broke: a peer is gone or is leaving
├── DataError               training or request data that cannot be used
├── PriceError              a price file that cannot be used, or a price that nobody knows
├── TrainError              a training function uses its run wrongly, or the run cannot go on
│   ├── ExactModeError      exact mode cannot keep its promise here
│   ├── NonFiniteError      the loss or the gradient is not a number, or infinite
│   ├── SearchError         a search was begun with other words, or its function raised
│   └── RunLeftError        outside Ray: this process saved and left, as it was asked to
└── DemoError               a step of the demo did not do what it claims

A message says what was given, what is allowed, and the corrected call.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class RayburstError(Exception):
    """Base of all errors that rayburst raises on purpose."""


class SpecError(RayburstError):
    """A fleet file cannot be used."""


class UnitError(SpecError):
    """A quantity cannot be read: `why` says what is allowed, `fix` is the right way, if clear."""

    def __init__(self, why: str, fix: str | None) -> None:
        super().__init__(f"{why}; write {fix}" if fix else why)
        self.why = why
        self.fix = fix


class FleetError(RayburstError):
    """The fleet is not in the state that the call needs."""


class FleetExistsError(FleetError):
    """A fleet of this name is already up."""


class FleetNotFoundError(FleetError):
    """No fleet of this name is known here."""


class FleetBrokenError(FleetError):
    """A part of the fleet is dead, or its state on disk cannot be read."""


class StartError(FleetError):
    """A part of the fleet did not start."""


class RunNotFoundError(RayburstError):
    """No training run of this name on the fleet's store."""


class NodeNotFoundError(RayburstError):
    """The fleet has no such node."""


class PoolError(RayburstError):
    """A pool could not do what was asked of it."""


class PoolCapacityError(PoolError):
    """A pool's market has no such host now."""


class PoolQuotaError(PoolError):
    """The account of a pool may have no more hosts of this kind."""


class PoolThrottledError(PoolError):
    """A pool's API was asked too often."""


class PoolUnreachableError(PoolError):
    """A machine of a pool gives no answer, or not the one that was meant; says what it said."""


class JobError(RayburstError):
    """A job could not be submitted, or it failed."""


class DeployError(RayburstError):
    """A Serve application did not become healthy."""


class ModelError(RayburstError):
    """A class cannot be served as it is written."""


class RequestError(RayburstError):
    """A request to a served model was not answered. `status` is its HTTP status."""

    status = 500


class BadRequestError(RequestError):
    """The input of a request cannot be used."""

    status = 422


class RefusedError(RequestError):
    """A request was refused at once: it would have been late, or its sender asks too much.

    `retry_after_s` is when the same request is expected to be admitted.
    """

    def __init__(self, why: str, *, status: int, retry_after_s: float) -> None:
        super().__init__(why)
        self.status = status
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels from a replica to whoever asked by handle, its keywords too."""
        again = partial(type(self), status=self.status, retry_after_s=self.retry_after_s)
        return again, self.args


class KeyRefusedError(RequestError):
    """A request has no key that works (401), or one that is not for this model (403)."""

    def __init__(self, why: str, *, status: int) -> None:
        super().__init__(why)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels too."""
        return partial(type(self), status=self.status), self.args


class LateError(RequestError):
    """The deadline of a request passed before it could be computed."""

    status = 504


class RequestFailedError(RequestError):
    """The model failed on a request."""


class StoreError(RayburstError):
    """The object store refused, or could not be reached."""


class ObjectNotFoundError(StoreError):
    """No object at this key."""


class ObjectExistsError(StoreError):
    """A conditional write lost: the object is already there."""


class CheckpointError(RayburstError):
    """A checkpoint is missing, damaged or belongs elsewhere."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint here, or none of this step."""


class CheckpointDamagedError(CheckpointError):
    """An object of a checkpoint is missing, cut short, or holds other bytes than were saved."""


class CheckpointExistsError(CheckpointError):
    """Another writer committed this step first; its checkpoint stands."""


class CheckpointAbandonedError(CheckpointError):
    """A save was given up before its commit. Earlier checkpoints stand."""


class VersionError(RayburstError):
    """A model version cannot be made, or cannot be used."""


class VersionNotFoundError(VersionError):
    """There is no model, version, alias or variant of this name."""


class VersionDamagedError(VersionError):
    """An object of a model version is missing, cut short, or holds other bytes than published."""


class VersionConflictError(VersionError):
    """Somebody else moved an alias meanwhile; their move stands."""


class VariantError(RayburstError):
    """A variant of a model cannot be made here, or none keeps what is asked of it."""


class LayoutError(RayburstError):
    """A model cannot be laid out over devices in this way."""


class PeerLostError(RayburstError):
    """The group of workers broke: a peer is gone, or the group is being rebuilt without it."""


class DataError(RayburstError):
    """Training or request data cannot be used."""


class PriceError(RayburstError):
    """A file of prices cannot be used, or nobody knows the price that is asked for."""


class TrainError(RayburstError):
    """A training function uses its run wrongly, or the run cannot go on."""


class ExactModeError(TrainError):
    """Exact mode cannot promise the same bits here."""


class SearchError(TrainError):
    """A search goes on with other words than it was begun with, or its training function raised."""


class NonFiniteError(TrainError):
    """The loss or the gradient of a step is not a number, or infinite."""


class RunLeftError(TrainError):
    """Outside Ray: this process saved and left, as it was asked to. Start it again to go on."""


class DemoError(RayburstError):
    """A step of the demo did not do what it claims."""
