"""What a replica counts, and how Prometheus reads it.

    metrics = ServingMetrics("Classifier")
    metrics.answered(200, 0.012)
    text = metrics.render()              # GET /metrics

Counting is additions to plain integers: a request pays under a microsecond. The page is made
when it is asked for, by prometheus_client.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["ServingMetrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Histogram:
    """Counts by upper bound, and the sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, words: str) -> HistogramMetricFamily:
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((f"{bound:g}" if bound != float("inf") else "+Inf", total))
        return HistogramMetricFamily(name, words, buckets=buckets, sum_value=self._sum)


class ServingMetrics(Collector):
    """The figures of one replica. `gauges` are read when the page is made."""

    def __init__(self, model: str) -> None:
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._model = model
        self._statuses: defaultdict[int, int] = defaultdict(int)
        self._variants: defaultdict[str, int] = defaultdict(int)
        self._late = 0
        self._seconds = _Histogram(_SECONDS)
        self._sizes = _Histogram(_SIZES)

    def answered(
        self, status: int, took_s: float, *, is_late: bool = False, variant: str = ""
    ) -> None:
        """Counts one response. Late: after its deadline. `variant` is the form that answered."""
        self._statuses[status] += 1
        if status == 200:
            self._seconds.add(took_s)
            self._late += is_late
            if variant:
                self._variants[variant] += 1

    def batched(self, size: int) -> None:
        """Counts one batch."""
        self._sizes.add(size)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        requests = CounterMetricFamily(
            "rayburst_serve_requests", "Responses by status", labels=["model", "status"]
        )
        for status, count in sorted(self._statuses.items()):
            requests.add_metric([self._model, str(status)], count)
        yield requests
        if self._variants:
            answers = CounterMetricFamily(
                "rayburst_serve_variant", "Answers by variant", labels=["model", "variant"]
            )
            for variant, count in sorted(self._variants.items()):
                answers.add_metric([self._model, variant], count)
            yield answers
        yield CounterMetricFamily(
            "rayburst_serve_late", "Answers that came after their deadline", value=self._late
        )
        yield self._seconds.family("rayburst_serve_seconds", "Seconds from request to answer")
        yield self._sizes.family("rayburst_serve_batch_size", "Requests computed together")
        for name, (words, read) in self.gauges.items():
            yield GaugeMetricFamily(name, words, value=read())

    def render(self) -> bytes:
        """The page in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return bytes(generate_latest(registry))
