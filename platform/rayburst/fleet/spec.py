"""The fleet file: pools, shapes, prices, limits and the object store.

    spec = FleetSpec.load(Path("cluster_configs/local.yaml"))
    spec.pool("rack").max_hosts

Files use short keys with units (`memory: 2GiB`, `price: 0.35 USD/h`, `hosts: {min: 0, max: 2}`);
attributes carry the unit in their name (`memory_bytes`, `price_usd_per_hour`, `max_hosts`). Code
that builds a spec uses the attribute names and plain numbers.
Deliberately does not know: Ray, what a market costs today, whether hosts exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rayburst.errors import SpecError
from rayburst.fleet import specfile, units

POOL_KINDS = ("process",)


class Market(StrEnum):
    """How a host is paid for. Work goes to them in this order."""

    ON_PREM = "on-prem"
    SPOT = "spot"
    ON_DEMAND = "on-demand"


def wrong(why: str, fix: str | None = None) -> PydanticCustomError:
    """A problem with what is allowed and, where one is clear, the value to write instead."""
    return PydanticCustomError("rayburst", "{why}", {"why": why, "fix": fix})


def _quantity(read: Callable[[object], float | None]) -> BeforeValidator:
    """Files need the unit; code passes plain numbers, the attribute's name carries the unit."""

    def check(given: object, info: ValidationInfo) -> object:
        if not specfile.from_file(info) and not isinstance(given, str):
            return given
        try:
            return read(given)
        except units.UnitError as error:
            raise wrong(error.why, error.fix) from None

    return BeforeValidator(check)


def _kind(given: object) -> object:
    if given in POOL_KINDS:
        return given
    raise wrong(f"this version has pools of kind {', '.join(POOL_KINDS)}", POOL_KINDS[0])


def _named(what: str, pattern: str) -> BeforeValidator:
    def check(given: object) -> object:
        if not isinstance(given, str):
            raise wrong(f"{what} is text; put it in quotes", f'"{specfile.scalar(given)}"')
        if re.fullmatch(pattern, given) is None:
            raise wrong(f"{what} fits {pattern}", _slug(given, pattern))
        return given

    return BeforeValidator(check)


def _slug(given: str, pattern: str) -> str | None:
    meant = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
    return meant if re.fullmatch(pattern, meant) else None


_NAME = r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"  # what Ray takes as a label's value

Name = Annotated[str, Field(pattern=f"^{_NAME}$"), _named("a name", _NAME)]
Label = Annotated[str, Field(pattern=f"^{_LABEL}$"), _named("a label", _LABEL)]
Count = Annotated[int, Strict(), Field(ge=0, le=100_000)]
_Memory = Annotated[
    int,
    Field(gt=0),
    _quantity(units.memory_bytes),
    WithJsonSchema({"type": "string", "pattern": units.MEMORY_PATTERN, "examples": ["2GiB"]}),
]
_Duration = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    _quantity(units.duration_s),
    WithJsonSchema({"type": "string", "pattern": units.DURATION_PATTERN, "examples": ["60s"]}),
]
_Money = Annotated[
    float | None,
    Field(ge=0, allow_inf_nan=False),
    _quantity(units.money_usd),
    WithJsonSchema({"type": "string", "pattern": units.MONEY_PATTERN, "examples": ["5 USD"]}),
]
_Rate = Annotated[
    float | None,
    Field(ge=0, allow_inf_nan=False),
    _quantity(units.rate_usd_per_hour),
    WithJsonSchema({"type": "string", "pattern": units.RATE_PATTERN, "examples": ["0.35 USD/h"]}),
]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )


class HeadSpec(_Part):
    """The node that runs Ray's head and our agent."""

    cpus: Count = Field(default=0, description="CPUs the head offers to work; 0 keeps work off it")


class Shape(_Part):
    """What one host of a pool has."""

    cpus: Annotated[int, Strict(), Field(ge=1, le=10_000)] = Field(description="CPUs of a host")
    memory_bytes: _Memory = Field(validation_alias="memory", description="memory of a host")
    gpus: Annotated[int, Strict(), Field(ge=0, le=1_000)] = Field(
        default=0, description="GPUs of a host"
    )
    accelerator: Label | None = Field(default=None, description="GPU type as Ray calls it: A100")

    @model_validator(mode="after")
    def _accelerator_needs_gpus(self) -> Self:
        if self.accelerator is not None and self.gpus == 0:
            raise wrong(f"accelerator {self.accelerator} needs gpus: 1 or more beside it")
        return self


class PoolSpec(_Part):
    """Hosts of one kind, place and market."""

    name: Name = Field(description="also the name of Ray's node type")
    kind: Annotated[Literal["process"], BeforeValidator(_kind)] = Field(
        description="process: every host is a Ray node on this machine"
    )
    market: Market = Field(description="how hosts are paid for")
    shape: Shape
    zone: Label | None = Field(default=None, description="rack or availability zone")
    region: Label | None = Field(default=None, description="cloud region")
    price_usd_per_hour: _Rate = Field(
        default=None, validation_alias="price", description="price of one host, or unknown"
    )
    min_hosts: Count = Field(default=0, validation_alias=AliasPath("hosts", "min"))
    max_hosts: Count = Field(validation_alias=AliasPath("hosts", "max"))

    @model_validator(mode="after")
    def _min_within_max(self) -> Self:
        if self.min_hosts > self.max_hosts:
            raise wrong(f"hosts.min {self.min_hosts} is above hosts.max {self.max_hosts}")
        return self


class Limits(_Part):
    """What the fleet may spend and how long it waits."""

    budget_usd: _Money = Field(default=None, validation_alias="budget")
    idle_timeout_s: _Duration = Field(default=60.0, validation_alias="idle_timeout")
    drain_s: _Duration = Field(default=30.0, validation_alias="drain")


class ObjectStoreSpec(_Part):
    """Where everything durable lives: a server that `rayburst up` starts, or an S3 bucket."""

    kind: Literal["embedded", "s3"]
    uri: str | None = None
    endpoint: str | None = None


class FleetSpec(_Part):
    """A whole fleet file."""

    name: Name
    region: Label | None = None
    head: HeadSpec = HeadSpec()
    pools: tuple[PoolSpec, ...]
    limits: Limits = Limits()
    object_store: ObjectStoreSpec

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a fleet file. Raises SpecError with every problem of the file."""
        return cls.parse(specfile.read_text(path), source=str(path))

    @classmethod
    def parse(cls, text: str, source: str = "<text>") -> Self:
        """Read the text of a fleet file; `source` names it in messages. Raises SpecError."""
        return specfile.validate(cls, text, source)

    def pool(self, name: str) -> PoolSpec:
        """The pool of this name. Raises SpecError that lists the known ones."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        known = ", ".join(pool.name for pool in self.pools)
        raise SpecError(f"no pool {name!r} in fleet {self.name!r}; its pools: {known}")
