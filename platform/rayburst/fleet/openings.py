"""How many more hosts each pool was granted: the agent writes it, the provider launches no others.

A cap alone leaves a gap. When a host goes, its place under the cap is free until the agent has
looked again, and the autoscaler, which looks as often, fills it with a host that nobody planned. An
opening says how many hosts may follow those that the agent had seen, the dead ones among them. A
launch that failed since then has used it up: the autoscaler would ask the same pool again, a tick
before the agent's next plan closes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, flock

from rayburst.errors import PoolError
from rayburst.fleet.failures import Failures, read_failures
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host, Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """`more` hosts of a pool beside those `seen` on record, living or gone.

    `failed_at`: the newest failed launch that the agent had seen, in unix seconds; 0 for none.
    """

    more: int
    seen: tuple[str, ...]
    failed_at: float = 0.0

    def admits(self, count: int, hosts: Iterable[Host], *, failed_at: float = 0.0) -> bool:
        """Whether `count` hosts may be launched while `hosts` and such a failure are on record."""
        known = set(self.seen)
        more = self.more if failed_at <= self.failed_at else 0
        return sum(host.id not in known for host in hosts) + count <= more


def write_openings(fleet: FleetDir, openings: Mapping[str, Opening]) -> None:
    """Leave them for the provider; before the caps that let the autoscaler ask."""
    write_atomically(
        fleet.openings_file, json.dumps({pool: asdict(one) for pool, one in openings.items()})
    )


def newest(failures: Mapping[str, Failures], pool: str) -> float:
    """When a pool last failed to launch, in unix seconds; 0 where none is on record."""
    return failures[pool].at[-1] if pool in failures else 0.0


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
        failed_at = newest(read_failures(fleet), pool.name)
        if raw is not None and not Opening(**raw).admits(count, pool.hosts(), failed_at=failed_at):
            raise PoolError(
                f"pool {pool.name!r} was asked for {count} host(s) that no plan granted; the caps "
                "that are read next say how many there may be"
            )
        yield
