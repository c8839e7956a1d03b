"""Whole numbers that sum to a given total, as near to their shares as can be. Pure.

    apportion(100, {"a": Fraction(1), "b": Fraction(1), "c": Fraction(1)})   # {a: 34, b: 33, c: 33}

Largest remainder (Hamilton's method): every share is rounded down, and the units that are left go
to the largest remainders, ties by key. No row is off by a whole unit and the sum is exact, which
rounding each row by itself cannot promise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import TypeVar

from rayburst.errors import PriceError

K = TypeVar("K", bound=Hashable)


def apportion(total: int, weights: Mapping[K, Fraction]) -> dict[K, int]:
    """`total` dealt out by `weights` (0 or more); the values sum to `total` exactly.

    Raises:
        PriceError: there is something to deal out and nobody with a weight above 0.
    """
    whole = sum(weights.values(), Fraction(0))
    if total == 0:
        return dict.fromkeys(weights, 0)
    if whole <= 0:
        raise PriceError(f"{total} cannot be dealt out: the weights sum to {whole}")
    exact = {key: total * weight / whole for key, weight in weights.items()}
    dealt = {key: math.floor(value) for key, value in exact.items()}
    left = total - sum(dealt.values())
    largest = sorted(exact, key=lambda key: (dealt[key] - exact[key], repr(key)))
    for key in largest[:left]:
        dealt[key] += 1
    return dealt
