"""How long a pool that fails is left alone: doubled with every attempt, no dice. Pure.

    rest = rest_of(failures, longest_s=480.0)
    rest.until, rest.attempts

Binary exponential back-off as in Metcalfe and Boggs, "Ethernet" (CACM 1976), without the random
part: one planner asks for all of a fleet, so there is nobody to keep out of step with, and the same
failures must give the same plan. What counts is told by the caller: failed launches since a host of
the pool last joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FIRST_S = 30.0
"""How long a pool stays closed after its first failed launch."""

_NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
    """A pool's rest. `until`: unix seconds; `attempts`: how many failed in a row."""

    until: float = _NEVER
    attempts: int = 0


def rest_of(failures: Iterable[float], *, longest_s: float) -> Rest:
    """The rest that failed launches ask for.

    A failure while the pool is closed is of a launch from before: it is no attempt of its own, the
    rest begins again with it. A pool that nothing was heard of for `longest_s` after it could have
    been asked again starts anew.

    Args:
        failures: unix seconds, in any order.
        longest_s: the most that one rest lasts.
    """
    until, attempts = _NEVER, 0
    for at in sorted(failures):
        if at > until + longest_s:
            attempts = 0
        if at >= until:
            attempts += 1
        until = at + min(FIRST_S * 2.0 ** (attempts - 1), longest_s)
    return Rest(until=until, attempts=attempts)
