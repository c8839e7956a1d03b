"""How many more hosts each pool was granted: the agent writes it, the provider launches no others.

A cap alone leaves a gap. When a host goes, its place under the cap is free until the agent has
looked again, and the autoscaler, which looks as often, fills it with a host that nobody planned. An
opening says how many hosts may follow those that the agent had seen, the dead ones among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, flock

from rayburst.errors import PoolError
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host, Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """`more` hosts of a pool beside those `seen` on record, living or gone."""

    more: int
    seen: tuple[str, ...]

    def admits(self, count: int, hosts: Iterable[Host]) -> bool:
        """Whether `count` hosts may be launched while `hosts` are on record."""
        known = set(self.seen)
        return sum(host.id not in known for host in hosts) + count <= self.more


def write_openings(fleet: FleetDir, openings: Mapping[str, Opening]) -> None:
    """Leave them for the provider; before the caps that let the autoscaler ask."""
    write_atomically(
        fleet.openings_file, json.dumps({pool: asdict(one) for pool, one in openings.items()})
    )


@contextmanager
def admitted(fleet: FleetDir, pool: Pool, count: int) -> Iterator[None]:
    """Launch inside of this: one at a time, and only what was granted.

    Where no agent has written openings yet, the caps alone decide.

    Raises:
        PoolError: the agent granted fewer.
    """
    with (fleet.path / "openings.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        raw = (read_json(fleet.openings_file) or {}).get(pool.name)
        if raw is not None and not Opening(**raw).admits(count, pool.hosts()):
            raise PoolError(
                f"pool {pool.name!r} was asked for {count} host(s) that no plan granted; the caps "
                "that are read next say how many there may be"
            )
        yield
