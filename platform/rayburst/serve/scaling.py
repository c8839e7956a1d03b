"""How many replicas keep the promise: from what comes in and what a batch costs.

    demand = Demand(slo_s=0.1, max_batch=32, slots=1)          # on each replica
    demand.asked(curve)                                        # for each request, refused or not
    demand.rate(now_s)                                         # 0.8: eight tenths of a replica

A request that just missed a batch waits for it and then for its own, so the largest batch `b` that
keeps the promise is the one with 2 cost(b) <= slo. A request then costs cost(b) / b seconds of a
slot; the sum of those by second is the part of a replica that the load needs. Serve collects it
from the replicas and asks `replicas_wanted`, which aims at `TARGET` of each: waiting times of a
queue grow as 1 / (1 - load), and 0.7 leaves room for a burst while the next replica starts. What
is refused for lateness counts, so a deployment that sheds grows. With no request at all none is
wanted, and Serve goes down to `least`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from rayburst.serve.costs import CostCurve

__all__ = ["DEMAND", "TARGET", "Demand", "replicas_wanted"]

DEMAND = "rayburst_demand"  # the name under which Serve carries it
TARGET = 0.7


class Demand:
    """What is asked of one replica, in replicas."""

    def __init__(self, *, slo_s: float, max_batch: int, slots: int) -> None:
        self._slo_s, self._max_batch, self._slots = slo_s, max_batch, slots
        self._asked: Counter[CostCurve] = Counter()  # a request pays for a count, no more
        self._since_s: float | None = None

    def asked(self, curve: CostCurve) -> None:
        """Counts a request of the kind of `curve`."""
        self._asked[curve] += 1

    def work_s(self, curve: CostCurve) -> float:
        """Seconds of a replica that one request of this kind takes."""
        size = 1 << (self._max_batch.bit_length() - 1)
        while size > 1 and 2 * curve.upper(size) > self._slo_s:
            size //= 2
        return curve.mean(size) / size / self._slots

    def rate(self, now_s: float) -> float:
        """Seconds of a replica that were asked for in each second since the last call."""
        passed_s = math.inf if self._since_s is None else now_s - self._since_s
        work_s = sum(count * self.work_s(curve) for curve, count in self._asked.items())
        self._asked.clear()
        self._since_s = now_s
        return work_s / passed_s if passed_s > 0 else 0.0


def replicas_wanted(context: Any) -> tuple[float, dict[str, Any]]:
    """A policy of Ray Serve: AutoscalingContext in, replicas out; Serve keeps bounds and delays."""
    demand = sum((context.aggregated_metrics or {}).get(DEMAND, {}).values())
    if not demand and context.total_num_requests > 0:  # by handle, or nothing is measured yet
        return max(1, context.current_num_replicas), {}
    return math.ceil(demand / TARGET - 1e-9), {}
