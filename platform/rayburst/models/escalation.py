"""Which answers of a cheaper model are asked again of the full one: by how sure it is. Pure.

    points = curve(confidence, same)            # measured: one entry a position of held-out text
    point = threshold_for(points, 0.98)         # the least escalation that keeps the floor
    point.threshold, point.agreement, point.escalated

An answer whose confidence is below the threshold goes to the full model, and then is its own. So of
all answers those disagree that were kept and differ; the higher the threshold, the fewer. What was
chosen on one text holds for text like it: `agreement` is a measurement, not a bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rayburst.errors import VariantError
from rayburst.models.manifest import Escalation

__all__ = ["curve", "threshold_for"]

_STEPS = 40


def curve(confidence: NDArray[np.floating], same: NDArray[np.bool_]) -> tuple[Escalation, ...]:
    """What each threshold would give, lowest first; the first one escalates nothing.

    Args:
        confidence: of the cheaper model in each of its answers, 0 to 1: [positions].
        same: whether the full model answers the same there: [positions].
    """
    order = np.argsort(confidence, kind="stable")
    ranked = np.asarray(confidence, np.float64)[order]
    wrong_from = np.cumsum(~np.asarray(same, np.bool_)[order][::-1])[::-1]
    cuts = ranked[np.arange(1, _STEPS) * ranked.size // _STEPS]
    found = []
    for threshold in (0.0, *np.unique(cuts[cuts > 0])):
        below = int(np.searchsorted(ranked, threshold, side="left"))
        wrong = int(wrong_from[below]) if below < ranked.size else 0
        found.append(
            Escalation(
                threshold=float(threshold),
                agreement=1 - wrong / ranked.size,
                escalated=below / ranked.size,
            )
        )
    return tuple(found)


def threshold_for(points: Sequence[Escalation], floor: float) -> Escalation:
    """The point that escalates least among those that agree at least `floor` of the time.

    VariantError when none does, or when nothing was measured.
    """
    if not 0 <= floor <= 1:
        raise VariantError(f"agreement={floor:g}: give a share from 0 to 1, for example 0.98")
    kept = [point for point in points if point.agreement >= floor]
    if kept:
        return min(kept, key=lambda point: point.escalated)
    if not points:
        raise VariantError(
            "no thresholds were measured for this variant: publish it again with this rayburst "
            "(python jobs/distill_lm.py or jobs/quantize.py), or give threshold=0.9 yourself"
        )
    best = max(points, key=lambda point: point.agreement)
    raise VariantError(
        f"no threshold keeps an agreement of {floor:.2%}: {best.agreement:.2%} is reached by "
        f"escalating {best.escalated:.0%}. Ask for less, or serve the full model alone"
    )
