"""Who is let in: a request that cannot be answered in time is refused at once.

    admission = Admission(max_waiting=512, shares={"ads": 3.0})
    refusal = admission.judge(ticket, now_s=now, load=load)
    if refusal is None:
        admission.enter(ticket.tenant, now)   # and leave(tenant) once it is answered

Pure: forecasts come in (runner.py makes them from the cost curve), verdicts go out. Two
questions in this order. Is there room for it before its deadline? (503, with the time by which
it would have been late as `Retry-After`). Is it its tenant's turn? While less than half of the
room is taken, anybody may come; beyond it a tenant that holds its weighted share already gets
429, so the other half of the room is there for those who ask for less. That is max-min fairness
over the queue (Bertsekas and Gallager, Data Networks, 6.5.2) with the share as the bound, and no
request is reordered for it.

An idle replica lets every request in: how else would it learn that it has become fast again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rayburst.serve.batcher import Ticket

__all__ = ["EVERYBODY", "Admission", "Load", "Refusal"]

EVERYBODY = "*"  # the name of what each tenant has that is not named

_ACTIVE_S = 5.0  # a tenant counts for the shares so long after its last request
_FREE_PART = 0.5  # of the room, which anybody may take


class Load(NamedTuple):
    """What a replica has to do.

    `forecast_s`: until this request would be answered. `room`: requests that fit between now
    and the promise. `held`: requests waiting or running. `is_idle`: a slot is free and nothing
    waits.
    """

    forecast_s: float
    room: float
    held: int
    is_idle: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why not, and when it is worth to ask again."""

    status: int
    why: str
    retry_after_s: float


class Admission:
    """Verdicts of one replica. `shares` are weights by tenant; others weigh as `*`, or 1."""

    def __init__(
        self,
        *,
        max_waiting: int,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self._max_waiting = max_waiting
        self._shares = dict(shares or {})
        self._held: dict[str, int] = {}
        self._seen_s: dict[str, float] = {}
        self.closed_for_s: float | None = None

    def close(self, *, back_in_s: float) -> None:
        """Admits nothing more: the replica is about to leave."""
        self.closed_for_s = back_in_s

    def judge(self, ticket: Ticket, *, now_s: float, load: Load) -> Refusal | None:
        """None to admit it; changes nothing."""
        if self.closed_for_s is not None:
            why = "this replica is leaving; another one answers"
            return Refusal(status=503, why=why, retry_after_s=self.closed_for_s)
        if load.is_idle:
            return None
        return self._late(ticket, now_s, load) or self._unfair(ticket.tenant, now_s, load)

    def enter(self, tenant: str, now_s: float) -> None:
        """Counts an admitted request."""
        self._held[tenant] = self._held.get(tenant, 0) + 1
        self._seen_s[tenant] = now_s

    def leave(self, tenant: str) -> None:
        """Counts it out again: answered, cancelled or late."""
        held = self._held.get(tenant, 0) - 1
        if held > 0:
            self._held[tenant] = held
        else:
            self._held.pop(tenant, None)

    def share(self, tenant: str, now_s: float) -> float:
        """The part of the room that is a tenant's own, among those that were seen lately."""
        if len(self._seen_s) > 1:
            quiet = [t for t, at in self._seen_s.items() if now_s - at > _ACTIVE_S]
            for name in quiet:
                if name not in self._held:
                    del self._seen_s[name]
        active = {*self._seen_s, tenant}
        if len(active) == 1:
            return 1.0
        return self._weight(tenant) / sum(self._weight(name) for name in active)

    def _weight(self, tenant: str) -> float:
        return self._shares.get(tenant, self._shares.get(EVERYBODY, 1.0))

    def _late(self, ticket: Ticket, now_s: float, load: Load) -> Refusal | None:
        left_s = ticket.deadline_s - now_s
        if load.forecast_s > left_s:
            why = (
                f"it would take {load.forecast_s * 1000:.0f} ms until it is answered; "
                f"it allows {max(0.0, left_s) * 1000:.0f} ms"
            )
            return Refusal(status=503, why=why, retry_after_s=load.forecast_s - left_s)
        if load.held >= self._max_waiting:
            why = f"{load.held} requests are held, the most that max_waiting allows"
            return Refusal(status=503, why=why, retry_after_s=load.forecast_s)
        return None

    def _unfair(self, tenant: str, now_s: float, load: Load) -> Refusal | None:
        if load.held < _FREE_PART * load.room:
            return None
        share = self.share(tenant, now_s)
        own = max(1.0, share * load.room)
        mine = self._held.get(tenant, 0)
        if mine < own or share == 1:  # whoever asks alone takes nothing from anybody
            return None
        why = (
            f"tenant {tenant or 'anonymous'!r} holds {mine} of the {load.room:.0f} places, "
            "and others ask too"
        )
        return Refusal(status=429, why=why, retry_after_s=load.forecast_s)
