"""Requests a second of a tenant, over all replicas of a model.

    desk = Desk()                                              # one for all, in the rates actor
    desk.lease("M", "ads", limit, wanted=5, unused=0, now_s=1.0)   # Lease(tokens=5, wait_s=0.0)

    rates = Rates(limits, ask)                                 # one on each replica
    rates.take("ads", now_s, then)                             # then(None), or then(a Refusal)

A token bucket (Turner 1986) for each tenant is kept by one named actor. A replica does not ask
for each request: it leases a block of tokens, which have left the bucket when it gets them, and
spends them by itself. So in any stretch of time all replicas together admit at most what the bucket
gives (`burst` and the rate times the stretch) and what they held when it began: one lease a
replica. What a replica does not spend in `LEASE_S` goes back with its next request for more; what
it held when it died is lost, which errs on the side of too few.

The actor restarts with empty buckets, so its death gives nobody more. While it cannot be asked,
limited tenants get 429 for what their replica does not hold. Pure but for `ask`; times are seconds
of any clock that does not jump.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from rayburst.serve.admission import EVERYBODY, Refusal

__all__ = ["LEASE_S", "Desk", "Lease", "RateLimit", "Rates"]

LEASE_S = 0.25  # a block is what the rate gives in this time, and is kept as long
_PATIENCE_S = 2.0  # for the actor's answer
_MANY = 10_000  # buckets; full ones beyond it are forgotten


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit:
    """`rate` requests a second, and `burst` at once after a rest."""

    rate: float
    burst: float

    @property
    def block(self) -> int:
        """The most tokens of one lease."""
        return max(1, math.floor(min(self.burst, self.rate * LEASE_S)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Tokens to spend; with none, seconds until there is one."""

    tokens: int
    wait_s: float = 0.0


class _Bucket:
    """Tokens of one tenant at one time."""

    __slots__ = ("at_s", "tokens")

    def __init__(self, tokens: float, at_s: float) -> None:
        self.tokens, self.at_s = tokens, at_s

    def fill(self, limit: RateLimit, now_s: float) -> None:
        passed_s = max(0.0, now_s - self.at_s)
        self.tokens = min(limit.burst, self.tokens + passed_s * limit.rate)
        self.at_s = now_s


class Desk:
    """All buckets. `is_new`: of a fresh actor, whose buckets begin full; else they begin empty."""

    def __init__(self, *, is_new: bool = True) -> None:
        self._is_new = is_new
        self._buckets: dict[tuple[str, str], tuple[_Bucket, RateLimit]] = {}

    def lease(
        self, model: str, tenant: str, limit: RateLimit, *, wanted: int, unused: int, now_s: float
    ) -> Lease:
        """Up to `wanted` whole tokens, at most a block; `unused` of an older lease come back."""
        bucket = self._bucket(model, tenant, limit, now_s)
        bucket.fill(limit, now_s)
        bucket.tokens = min(limit.burst, bucket.tokens + unused)
        tokens = max(0, min(wanted, limit.block, math.floor(bucket.tokens)))
        bucket.tokens -= tokens
        if tokens:
            return Lease(tokens=tokens)
        return Lease(tokens=0, wait_s=(1 - bucket.tokens) / limit.rate)

    def _bucket(self, model: str, tenant: str, limit: RateLimit, now_s: float) -> _Bucket:
        known = self._buckets.get((model, tenant))
        if known is not None:
            self._buckets[model, tenant] = (known[0], limit)
            return known[0]
        if len(self._buckets) >= _MANY:
            self._forget(now_s)
        bucket = _Bucket(limit.burst if self._is_new else 0.0, now_s)
        self._buckets[model, tenant] = (bucket, limit)
        return bucket

    def _forget(self, now_s: float) -> None:
        """Drops full buckets: a new one would say the same."""
        for key, (bucket, limit) in list(self._buckets.items()):
            bucket.fill(limit, now_s)
            if bucket.tokens >= limit.burst:
                del self._buckets[key]
        self._is_new = True  # those that are new from here on were full, or never seen


Then = Callable[[Refusal | None], None]
Ask = Callable[[str, RateLimit, int, int], Awaitable[Lease]]


class _Held:
    """What one replica holds for one tenant."""

    __slots__ = ("asking", "dry_until_s", "leased_s", "tokens", "used", "waiting")

    def __init__(self) -> None:
        self.tokens = 0
        self.leased_s = 0.0
        self.dry_until_s = -math.inf  # no token anywhere until then
        self.used = 0  # since leased_s
        self.asking: asyncio.Task[None] | None = None
        self.waiting: deque[Then] = deque()


class Rates:
    """One replica's leases. `ask(tenant, limit, wanted, unused)` gets one from the desk.

    Call it on one event loop. A tenant without a limit is never asked about.
    """

    def __init__(
        self, limits: Mapping[str, RateLimit], ask: Ask, *, clock: Callable[[], float]
    ) -> None:
        self._limits, self._ask, self._clock = dict(limits), ask, clock
        self._held: dict[str, _Held] = {}

    def take(self, tenant: str, now_s: float, then: Then) -> None:
        """Calls `then(None)` once the request has its token, `then(refusal)` if it gets none.

        At once when the lease holds one or the tenant is known to have none; else when the desk
        has answered.
        """
        limit = self._limits.get(tenant) or self._limits.get(EVERYBODY)
        if limit is None:
            then(None)
            return
        held = self._of(tenant)
        if now_s - held.leased_s > LEASE_S and held.asking is None and held.tokens:
            self._renew(tenant, limit, held)  # an old lease: spent while a new one is on its way
        if held.tokens > 0:
            held.tokens -= 1
            held.used += 1
            if held.tokens <= held.used // 2 and held.asking is None:
                self._renew(tenant, limit, held)
            then(None)
        elif now_s < held.dry_until_s or len(held.waiting) >= 2 * limit.block + 8:
            then(_refusal(tenant, limit, max(held.dry_until_s - now_s, 1 / limit.rate)))
        else:
            held.waiting.append(then)
            if held.asking is None:
                self._renew(tenant, limit, held)

    def give_back(self, tenant: str) -> None:
        """The request was refused for another reason: its token serves the next one."""
        if tenant in self._held:
            self._held[tenant].tokens += 1
            self._held[tenant].used -= 1

    def _of(self, tenant: str) -> _Held:
        held = self._held.get(tenant)
        if held is None:
            if len(self._held) >= _MANY:
                idle = [t for t, h in self._held.items() if h.asking is None and not h.waiting]
                for name in idle:
                    del self._held[name]
            held = self._held[tenant] = _Held()
        return held

    def _renew(self, tenant: str, limit: RateLimit, held: _Held) -> None:
        held.asking = asyncio.get_running_loop().create_task(self._lease(tenant, limit, held))

    async def _lease(self, tenant: str, limit: RateLimit, held: _Held) -> None:
        unused = 0
        if self._clock() - held.leased_s > LEASE_S:
            unused, held.tokens = held.tokens, 0
        wanted = max(1, len(held.waiting), min(2 * held.used, limit.block) - held.tokens)
        try:
            asked = self._ask(tenant, limit, min(wanted, limit.block), unused)
            lease = await asyncio.wait_for(asked, _PATIENCE_S)
        except Exception:  # noqa: BLE001  the actor is dead or far: it is asked again in a while
            lease = Lease(tokens=0, wait_s=1.0)
        now_s = self._clock()
        held.tokens += lease.tokens
        held.leased_s, held.used, held.asking = now_s, 0, None
        if not lease.tokens:
            held.dry_until_s = now_s + lease.wait_s
        while held.waiting and held.tokens:
            held.tokens -= 1
            held.used += 1
            held.waiting.popleft()(None)
        if held.waiting and lease.tokens:
            self._renew(tenant, limit, held)
            return
        while held.waiting:
            held.waiting.popleft()(_refusal(tenant, limit, lease.wait_s))


def _refusal(tenant: str, limit: RateLimit, wait_s: float) -> Refusal:
    why = f"tenant {tenant or 'anonymous'!r} may ask {limit.rate:g} times a second"
    return Refusal(status=429, why=why, retry_after_s=wait_s)
