"""What a pool is: hosts of one kind, place and market that can be taken and given back.

Obligations of every pool, held by one contract test for all kinds:
- a host's id is the pool's name, a dash, and letters and digits: `spot-a-3f2c`;
- `launch` is bounded by the pool's `max_hosts`, under concurrent callers too, and raises PoolError
  with nothing left behind when it cannot deliver;
- `terminate` is idempotent, and asking for an unknown or gone host is no error;
- `hosts` is cheap (called several times a second), may be stale by a second or two, and goes on
  listing a host that is gone until `forget` is called, so that nothing disappears from the record
  unseen. It raises PoolError when it cannot know, rather than say that there are none;
- a pool keeps no state in memory that a second process, or a restarted one, would need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rayburst.errors import PoolError
from rayburst.fleet.spec import PoolSpec

UP_TAG = "rayburst-up-at"
"""The tag that says when a host joined, in unix seconds."""

OWNERS_WISH = "its owner wants it back"
"""Why an owner's notice takes a machine."""

ENDED_BY_AUTOSCALER = "ended by the autoscaler"
"""Why a host is gone that nothing was wrong with."""

GIVEN_BACK = "given back"
"""How the reason begins why a host is gone that the planner sent away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Warning that a host will be taken away.

    Attributes:
        given_at: unix seconds.
        deadline: unix seconds after which the host is gone.
        why: in words, for people.
        reclaim: True when the owner takes the host at the deadline (spot); False when the fleet
            asked for it and terminates the host itself.
        planned: True when the fleet itself sends the host away: no market took it.
    """

    given_at: float
    deadline: float
    why: str
    reclaim: bool = True
    planned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine of a pool, as the pool knows it. Times are unix seconds.

    Attributes:
        gone_at: when it was taken, given back or found dead; None while it lives.
        price_usd_per_hour: the price at launch, None when unknown.
    """

    id: str
    pool: str
    address: str
    requested_at: float
    price_usd_per_hour: float | None
    why: str
    tags: Mapping[str, str] = field(default_factory=dict)
    notice: Notice | None = None
    gone_at: float | None = None
    gone_why: str = ""

    @property
    def lives(self) -> bool:
        return self.gone_at is None


class Pool(Protocol):
    """A source of hosts. See the module's docstring for what each method owes its caller."""

    @property
    def name(self) -> str: ...

    def hosts(self) -> list[Host]:
        """Every host that was not forgotten, living or gone."""
        ...

    def launch(self, count: int, *, tags: Mapping[str, str], why: str) -> list[str]:
        """Start `count` hosts; returns their ids once they are on record."""
        ...

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        """Merge `tags` into a host's tags."""
        ...

    def notify(self, host: str, notice: Notice) -> None:
        """Give a host notice; the first notice stands."""
        ...

    def terminate(self, host: str, *, why: str) -> None:
        """End a host now."""
        ...

    def forget(self, host: str) -> None:
        """Drop the record of a host that is gone."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSite:
    """Where a pool is opened.

    Attributes:
        fleet: the fleet's name: what marks a host as this fleet's.
        folder: the fleet's folder on the head, where a pool may keep records.
        subnet: the fleet's part of this machine's loopback network, like "127.40.7".
        joins: whether there is a cluster that hosts are to join.
        clock: unix seconds.
    """

    fleet: str
    folder: Path
    subnet: str
    joins: bool = False
    clock: Callable[[], float] = time.time


def check_room(spec: PoolSpec, living: int, count: int) -> None:
    """Raise PoolError when `count` more hosts are above the pool's most."""
    if living + count > spec.max_hosts:
        raise PoolError(
            f"pool {spec.name!r} was asked for {count} more host(s) and has {living} of at "
            f"most {spec.max_hosts}; raise `hosts: {{max: ...}}` in the fleet file"
        )


def pool_of(host: str) -> str:
    """The pool that a host's id names."""
    return host.rpartition("-")[0]
