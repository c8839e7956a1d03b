"""What a batch costs: a curve over its size, learned while it serves.

    curve = CostCurve()
    curve.learn(8, 0.012)      # eight requests took 12 ms
    curve.upper(16)            # seconds that sixteen will hardly exceed

Pure: seconds come in, seconds go out. A straight line (a fixed part and a part for each
request) is fitted by least squares that forgets, so a machine that slows down is noticed
within some fifty batches. Each doubling of the size then keeps its own ratio to the line, which
bends it where a kernel's tile or a cache makes a step. Nothing is assumed about sizes never seen
but that a larger batch costs at most in proportion.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CostCurve", "Costs"]

_KEEP = 0.98  # weight of what was known when one more batch is seen
_OUTLIER = 4.0  # a batch that took longer than this many times the forecast counts as that many
_GAIN = 0.2  # how fast ratios and deviation follow
_DEVIATIONS = 2.5  # mean absolute deviations that `upper` adds to the mean


class _Line(NamedTuple):
    fixed_s: float
    each_s: float


class CostCurve:
    """Seconds that `n` requests of one kind take together."""

    def __init__(self) -> None:
        self._weight = self._n = self._nn = self._s = self._ns = 0.0
        self._line = _Line(0.0, 0.0)
        self._bends: dict[int, float] = {}
        self._deviation_s = 0.0
        self._largest = 0
        self._means: dict[int, float] = {}  # asked for with every request, changed by a batch

    @property
    def largest(self) -> int:
        """The largest batch seen; 0 before the first."""
        return self._largest

    def learn(self, n: int, took_s: float) -> None:
        """Takes in that `n` requests took `took_s` seconds."""
        if self._largest and n <= self._largest:
            took_s = min(took_s, _OUTLIER * max(self.mean(n), 1e-6))
        expected_s = self.mean(n) if self._largest else took_s
        self._weight = self._weight * _KEEP + 1
        self._n = self._n * _KEEP + n
        self._nn = self._nn * _KEEP + n * n
        self._s = self._s * _KEEP + took_s
        self._ns = self._ns * _KEEP + n * took_s
        self._largest = max(self._largest, n)
        self._line = self._fitted()
        self._deviation_s += _GAIN * (abs(took_s - expected_s) - self._deviation_s)
        bend, straight_s = self._bends.get(_knot(n), 1.0), self._straight(n)
        if straight_s > 0:
            self._bends[_knot(n)] = bend + _GAIN * (took_s / straight_s - bend)
        self._means.clear()

    def rescale(self, factor: float) -> None:
        """Takes every size for so many times as dear as it was: the machine has changed."""
        self._s *= factor
        self._ns *= factor
        self._line = _Line(self._line.fixed_s * factor, self._line.each_s * factor)
        self._deviation_s *= factor
        self._means.clear()

    def mean(self, n: int) -> float:
        """Expected seconds for `n` requests; 0 while nothing was seen."""
        mean_s = self._means.get(n)
        if mean_s is None:
            mean_s = self._means[n] = self._straight(n) * self._bends.get(_knot(n), 1.0)
        return mean_s

    def upper(self, n: int) -> float:
        """Seconds that `n` requests will hardly exceed."""
        return self.mean(n) + _DEVIATIONS * self._deviation_s

    def _straight(self, n: int) -> float:
        return self._line.fixed_s + n * self._line.each_s

    def _fitted(self) -> _Line:
        """Least squares, with neither part below zero."""
        spread = self._weight * self._nn - self._n * self._n
        if spread <= 1e-9 * self._weight * self._nn:  # one size only: take it for proportional
            return _Line(0.0, self._s / self._n)
        each_s = (self._weight * self._ns - self._n * self._s) / spread
        fixed_s = (self._s - each_s * self._n) / self._weight
        if each_s < 0:
            return _Line(self._s / self._weight, 0.0)
        if fixed_s < 0:
            return _Line(0.0, self._ns / self._nn)
        return _Line(fixed_s, each_s)


class Costs:
    """One curve for each kind of batch: a variant of the model, and a length of its inputs."""

    def __init__(self) -> None:
        self._curves: dict[tuple[str, int], CostCurve] = {}

    def of(self, variant: str, length: int) -> CostCurve:
        """The curve of one kind; a new one knows nothing yet."""
        key = (variant, length)
        curve = self._curves.get(key)
        if curve is None:
            curve = self._curves[key] = CostCurve()
        return curve


def _knot(n: int) -> int:
    """Sizes up to the next power of two share a bend."""
    return (n - 1).bit_length()
