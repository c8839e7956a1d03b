"""The threshold of a cascade: which answers go on, and that the floor is kept by it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.errors import VariantError
from rayburst.models.escalation import curve, threshold_for

SURE = np.array([0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5])
SAME = np.array([True, False, True, False, True, True, False, True])


def test_the_least_escalation_that_keeps_the_floor_is_taken() -> None:
    points = curve(SURE, SAME)
    assert (points[0].threshold, points[0].escalated) == (0.0, 0.0)
    assert points[0].agreement == pytest.approx(5 / 8)
    assert threshold_for(points, 0.6).threshold == 0.0
    found = threshold_for(points, 0.875)  # 0.2 and 0.3 go on; 0.6 alone stays wrong
    assert (found.threshold, found.escalated) == (0.4, 0.25)
    assert found.agreement == pytest.approx(7 / 8)
    assert threshold_for(points, 1.0).threshold == 0.7


def test_a_floor_that_no_threshold_keeps_is_refused_with_the_best_there_is() -> None:
    points = curve(np.array([0.5, 0.9]), np.array([True, False]))
    with pytest.raises(VariantError, match=r"99.00%: 50.00% is reached by escalating"):
        threshold_for(points, 0.99)
    with pytest.raises(VariantError, match="no thresholds were measured"):
        threshold_for((), 0.5)
    with pytest.raises(VariantError, match="give a share from 0 to 1"):
        threshold_for(points, 98)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200), st.floats(0, 1)
)
def test_what_a_point_promises_is_what_its_threshold_does(answers, floor) -> None:
    sure = np.array([s for s, _ in answers])
    same = np.array([a for _, a in answers])
    points = curve(sure, same)
    for point in points:
        kept = sure >= point.threshold
        assert point.escalated == pytest.approx(1 - kept.mean())
        assert point.agreement == pytest.approx(1 - (kept & ~same).mean())
    assert all(a.agreement <= b.agreement + 1e-12 for a, b in pairwise(points))
    if points[-1].agreement >= floor:
        chosen = threshold_for(points, floor)
        assert chosen.agreement >= floor
        assert all(p.escalated >= chosen.escalated for p in points if p.agreement >= floor)
