"""The named actor that keeps all replicas' token buckets, and how a replica asks it.

One actor for a cluster, detached: it lives while its cluster does, takes no CPU of Ray's books, and
Ray starts it anew where it can when its node is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayburst.serve.options import TenantLimit
from rayburst.serve.rates import Desk, Lease, RateLimit, Rates

__all__ = ["rates_for"]

_NAME = "rayburst-rates"
_NAMESPACE = "rayburst"


class _DeskActor:
    """Desk as an actor."""

    def __init__(self) -> None:
        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._desk = Desk(is_new=not again)

    def lease(self, model: str, tenant: str, limit: RateLimit, wanted: int, unused: int) -> Lease:
        now_s = time.monotonic()
        return self._desk.lease(model, tenant, limit, wanted=wanted, unused=unused, now_s=now_s)


class _Asker:
    """Asks the actor; makes it where there is none."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._actor: Any = _actor()

    async def __call__(self, tenant: str, limit: RateLimit, wanted: int, unused: int) -> Lease:
        if self._actor is None:
            self._actor = await asyncio.to_thread(_actor)
        try:
            lease: Lease = await self._actor.lease.remote(
                self._model, tenant, limit, wanted, unused
            )
        except RayActorError:
            self._actor = None
            raise
        return lease


def rates_for(tenants: Mapping[str, TenantLimit], *, model: str) -> Rates | None:
    """A replica's leases; None when no tenant of the model has a rate."""
    limits = {
        name: RateLimit(rate=limit.rate, burst=limit.burst or max(1.0, limit.rate))
        for name, limit in tenants.items()
        if limit.rate is not None
    }
    return Rates(limits, _Asker(model), clock=time.monotonic) if limits else None


def _actor() -> Any:
    made = ray.remote(_DeskActor).options(
        name=_NAME,
        namespace=_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
    )
    return made.remote()
