"""A pseudo-random order of n items that needs no table: item i is computed, not stored.

A balanced Feistel network over the next power of four, walked until the result is below n (format-
preserving encryption by cycle walking, Black and Rogaway 2002). It spreads samples well; it is not
meant to keep secrets. Vectorised over positions; the same on every machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["permute", "shifts", "words"]

Words = npt.NDArray[np.uint64]
_ROUNDS = 4


def permute(
    positions: npt.NDArray[np.int64], n: int, *, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """The item at each of `positions` (0 <= p < n) in the order that (seed, epoch) draws."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = words(seed, epoch, 1 + _ROUNDS)[1:]
    out = _feistel(positions.astype(np.uint64), half, keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def words(seed: int, epoch: int, count: int) -> Words:
    """`count` 64-bit words that belong to (seed, epoch)."""
    with np.errstate(over="ignore"):
        start: Words = _mix(np.array([seed % 2**64], dtype=np.uint64))
        start = _mix(start + np.array([epoch % 2**64], dtype=np.uint64))
        offsets: Words = np.arange(1, count + 1, dtype=np.uint64)
        return _mix(start + offsets)


def shifts(seed: int, epochs: npt.NDArray[np.int64], below: int) -> npt.NDArray[np.int64]:
    """For each of `epochs` a number from 0 to `below`, that excluded, which (seed, epoch) draws."""
    drawn = {
        epoch: int(words(seed, epoch, 1)[0] % np.uint64(below))
        for epoch in np.unique(epochs).tolist()
    }
    return np.array([drawn[epoch] for epoch in epochs.tolist()], dtype=np.int64)


def _feistel(values: Words, half: int, keys: Words) -> Words:
    mask = np.uint64(2**half - 1)
    shift = np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        with np.errstate(over="ignore"):
            left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(x: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
