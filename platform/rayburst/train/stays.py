"""How long workers stayed in each pool, carried from checkpoint to checkpoint. Pure.

    stays = Stays.begin(Stays.from_json(saved), hosts={"spot-a-1": "spot-a"}, now_s=t)
    stays.seen(now_s=later)["spot-a"].watched_s

Each checkpoint says which hosts trained, and what was seen until then. The group that goes on from
it knows by that which of them are gone: each is an interruption of its pool, whatever took it. A
run that rests longer than `REST_S` was stopped, not interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rayburst.train.pace import Stay

__all__ = ["REST_S", "Stays"]

REST_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stays:
    """`before`: what was seen by pool until `since_s`; since then `hosts` (host -> pool) train."""

    before: Mapping[str, Stay]
    hosts: Mapping[str, str]
    since_s: float

    @classmethod
    def begin(cls, saved: Stays | None, *, hosts: Mapping[str, str], now_s: float) -> Stays:
        """A group on `hosts` begins, after what `saved` says of the groups before it."""
        before = dict(saved.before) if saved else {}
        if saved and now_s - saved.since_s <= REST_S:
            for host, pool in saved.hosts.items():
                if host not in hosts:
                    seen = before.get(pool, Stay())
                    before[pool] = replace(seen, interruptions=seen.interruptions + 1)
        return cls(before=before, hosts=dict(hosts), since_s=now_s)

    def seen(self, now_s: float) -> dict[str, Stay]:
        """What was seen by pool until `now_s`."""
        found = dict(self.before)
        for pool, workers in self.workers.items():
            stay = found.get(pool, Stay())
            more_s = workers * max(0.0, now_s - self.since_s)
            found[pool] = replace(stay, watched_s=stay.watched_s + more_s)
        return found

    @property
    def workers(self) -> Counter[str]:
        """How many hosts train in each pool."""
        return Counter(self.hosts.values())

    def to_json(self, now_s: float) -> dict[str, Any]:
        """For a checkpoint that is taken at `now_s`."""
        pools = {p: [s.watched_s, s.interruptions] for p, s in self.seen(now_s).items()}
        return {"pools": pools, "hosts": dict(self.hosts), "t": now_s}

    @classmethod
    def from_json(cls, body: Mapping[str, Any] | None) -> Stays | None:
        """What `to_json` gave; None for a checkpoint that has none."""
        if body is None:
            return None
        before = {
            pool: Stay(watched_s=watched_s, interruptions=count)
            for pool, (watched_s, count) in body["pools"].items()
        }
        return cls(before=before, hosts=body["hosts"], since_s=body["t"])
