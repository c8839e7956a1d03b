"""A pool in memory with scripted failures: for tests of what stands on pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from threading import Lock

from rayburst.errors import NodeNotFoundError, PoolError
from rayburst.fleet.pools.base import Host, Notice, check_room
from rayburst.fleet.spec import PoolSpec


class FakePool:
    """Hosts that are records only.

    Args:
        failures: messages of launches that fail, used up one a launch; None lets one pass.
    """

    def __init__(
        self,
        spec: PoolSpec,
        *,
        clock: Callable[[], float],
        failures: list[str | None] | None = None,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._failures = failures or []
        self._hosts: dict[str, Host] = {}
        self._numbers = count()
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._spec.name

    def hosts(self) -> list[Host]:
        return list(self._hosts.values())

    def launch(self, count: int, *, tags: Mapping[str, str], why: str) -> list[str]:
        with self._lock:
            return self._launch(count, tags, why)

    def _launch(self, count: int, tags: Mapping[str, str], why: str) -> list[str]:
        if self._failures and (failure := self._failures.pop(0)) is not None:
            raise PoolError(f"pool {self.name!r}: {failure}")
        living = sum(host.lives for host in self._hosts.values())
        check_room(self._spec, living, count)
        started = []
        for _ in range(count):
            host = Host(
                id=f"{self.name}-{next(self._numbers):04x}",
                pool=self.name,
                address="127.0.0.1",
                requested_at=self._clock(),
                price_usd_per_hour=self._spec.price_usd_per_hour,
                why=why,
                tags=dict(tags),
            )
            self._hosts[host.id] = host
            started.append(host.id)
        return started

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        known = self._known(host)
        self._hosts[host] = replace(known, tags={**known.tags, **tags})

    def notify(self, host: str, notice: Notice) -> None:
        known = self._known(host)
        if known.notice is None:
            self._hosts[host] = replace(known, notice=notice)

    def terminate(self, host: str, *, why: str) -> None:
        known = self._hosts.get(host)
        if known is not None and known.lives:
            self._hosts[host] = replace(known, gone_at=self._clock(), gone_why=why)

    def forget(self, host: str) -> None:
        if host in self._hosts and not self._hosts[host].lives:
            del self._hosts[host]

    def _known(self, host: str) -> Host:
        if host not in self._hosts:
            known = ", ".join(h.id for h in self.hosts() if h.lives) or "none"
            raise NodeNotFoundError(f"no host {host!r} in pool {self.name!r}; it has: {known}")
        return self._hosts[host]
