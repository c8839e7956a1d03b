"""What a training job asks the planner for, and the grant that answers it. Pure: both as data.

    ask = Ask(run="first", least=1, most=4, resources={"CPU": 1.0}, ...)   # job -> planner
    grant = Grant(hosts=("rack-3f2c",), pools={"rack": 1}, why="...")      # planner -> job
    forbidden = outside(grant, hosts={node_id: "rack-3f2c", ...})

Both travel as JSON in the head's key-value store, under the job's submission id. A job may use the
hosts that its grant names and no other. Where no planner runs (a plain Ray cluster), nothing is
forbidden.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rayburst.train.progress import Progress

__all__ = [
    "NAMESPACE",
    "PLANNER_KEY",
    "Ask",
    "Grant",
    "Measured",
    "ask_key",
    "claimed",
    "grant_key",
    "outside",
]

NAMESPACE = b"rayburst.train"
"""Of the head's key-value store, for all that training and planner leave for each other."""

PLANNER_KEY = "planner"
"""Where a planner says that it is there: JSON list of the hosts that are granted to some job."""


def ask_key(submission_id: str) -> str:
    """Where a job publishes what it asks for."""
    return f"jobs/{submission_id}/ask"


def grant_key(submission_id: str) -> str:
    """Where the planner publishes what a job may use."""
    return f"jobs/{submission_id}/grant"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a job wants and what it has measured so far. Times in seconds, `t` in unix seconds.

    Attributes:
        run: name of the training run.
        least, most: workers it can do with, and can use.
        resources: what one worker takes of its node.
        hosts: where its workers are now; empty while none runs.
        started_at: when this group of workers was started; None once it has done a step.
        steps_left: None until the first step of this submission.
        speeds: steps a second by number of workers, as measured.
        changeover_s: from the start of a group of workers to its first step, as measured last.
        checkpoint_s: how long training stood still for the last checkpoint.
        stop_s: how long training stands still while members leave and join, as measured last, where
            the group is rebuilt in place; None where each change is a restart.
    """

    t: float
    run: str
    least: int
    most: int
    resources: Mapping[str, float]
    hosts: tuple[str, ...] = ()
    started_at: float | None = None
    steps_left: int | None = None
    speeds: Mapping[int, float] = field(default_factory=dict)
    changeover_s: float | None = None
    checkpoint_s: float | None = None
    stop_s: float | None = None

    def to_json(self) -> bytes:
        """For the key-value store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Ask:
        """Reads what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(body)
        raw["hosts"] = tuple(raw["hosts"])
        raw["speeds"] = {int(world): speed for world, speed in raw["speeds"].items()}
        return cls(**raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a job may use.

    Attributes:
        hosts: the hosts it may run on now, by name.
        coming: hosts that wait for it until all of its new place is there.
        pools: hosts by pool that are meant for it, those included that are still to come.
        why: the reason, in words and numbers; for a job that waits, what it waits for.
    """

    hosts: tuple[str, ...] = ()
    coming: tuple[str, ...] = ()
    pools: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    def to_json(self) -> bytes:
        """For the key-value store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Grant:
        """Reads what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(body)
        lists = {name: tuple(raw[name]) for name in ("hosts", "coming")}
        return cls(**{**raw, **lists})


def claimed(planner: bytes | None) -> frozenset[str] | None:
    """The hosts that are granted to some job; None where no planner runs."""
    return None if planner is None else frozenset(json.loads(planner))


def outside(
    grant: Grant | None, hosts: Mapping[str, str], taken: Collection[str] | None, *, is_job: bool
) -> set[str]:
    """The nodes that a run must leave alone.

    Args:
        grant: what the planner granted; None when it has said nothing yet.
        hosts: node id -> host, of the nodes there are.
        taken: hosts granted to some job; None where no planner runs.
        is_job: whether the run was submitted as a Ray job. A driver that was not has no id that a
            grant could be under: it keeps off the hosts of others.
    """
    if taken is None:
        return set()
    if not is_job:
        return {node for node, host in hosts.items() if host in taken}
    allowed: Iterable[str] = grant.hosts if grant else ()
    return {node for node, host in hosts.items() if host not in set(allowed)}


class Measured:
    """What a run has shown of itself, over the restarts of its group, from what rank 0 publishes.

    `started` when a group of workers is started, `hear` with the progress published last.
    """

    def __init__(self) -> None:
        self.steps_left: int | None = None
        self.speeds: dict[int, float] = {}
        self.changeover_s: float | None = None
        self.checkpoint_s: float | None = None
        self.stop_s: float | None = None
        self._started_s: float | None = None

    @property
    def started_at(self) -> float | None:
        """When the present group was started; None once it was heard of."""
        return self._started_s

    def started(self, now_s: float) -> None:
        """A group of workers is being started at unix time `now_s`."""
        self._started_s = now_s

    def hear(self, body: bytes | None) -> None:
        """Take in what was published last; what cannot be read is passed over."""
        try:
            progress = Progress.from_json(body) if body else None
        except (ValueError, TypeError):
            progress = None
        if progress is None:
            return
        self.steps_left = max(0, progress.steps - progress.step)
        self.checkpoint_s = progress.checkpoint_s or self.checkpoint_s
        if progress.stopped_s is not None:
            self.stop_s = progress.stopped_s
        if progress.eta_s:
            self.speeds[progress.world] = self.steps_left / progress.eta_s
        if self._started_s is not None and progress.since > self._started_s:
            self.changeover_s = progress.since - self._started_s
            self._started_s = None
