"""One run's side of its deal with the planner: publish what it asks for, keep to its grant.

Lives in the controller of a run. The key-value store is passed in: what is Ray's own is in
`_ray_hooks.py`, what is decided here is in `grants.py`. It does not know how nodes are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rayburst.train.grants import (
    PLANNER_KEY,
    Ask,
    Grant,
    Measured,
    ask_key,
    claimed,
    grant_key,
    outside,
)

__all__ = ["Granted"]

_TELL_EVERY_S = 2.0


class Granted:
    """`tell` what is asked for, and ask which nodes are `outside` of the grant.

    Args:
        submission_id: the Ray job; "" for a driver that was not submitted as one.
        kv_get, kv_put: the head's key-value store.
        clock: unix seconds.
    """

    def __init__(
        self,
        submission_id: str,
        *,
        kv_get: Callable[[str], bytes | None],
        kv_put: Callable[[str, bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self.measured = Measured()
        self._id = submission_id
        self._get, self._put = kv_get, kv_put
        self._clock = clock
        self._told: Ask | None = None

    def tell(self, ask: Ask) -> None:
        """Publish, when something changed, and every two seconds in any case."""
        last = self._told
        is_new = last is None or replace(last, t=ask.t, speeds=ask.speeds) != ask
        if self._id and (is_new or last is None or ask.t - last.t >= _TELL_EVERY_S):
            self._put(ask_key(self._id), ask.to_json())
            self._told = ask

    @property
    def has_planner(self) -> bool:
        """Whether somebody grants this run its nodes."""
        return bool(self._id) and self._get(PLANNER_KEY) is not None

    def inside(self, hosts: Mapping[str, str]) -> set[str] | None:
        """The nodes that are granted to this run; None where nobody grants it any."""
        if not self.has_planner:
            return None
        return set(hosts) - self.outside(hosts)

    def outside(self, hosts: Mapping[str, str]) -> set[str]:
        """The nodes (ids) that this run must leave alone; `hosts` is node id -> host."""
        body = self._get(grant_key(self._id)) if self._id else None
        grant = Grant.from_json(body) if body else None
        return outside(grant, hosts, claimed(self._get(PLANNER_KEY)), is_job=bool(self._id))
