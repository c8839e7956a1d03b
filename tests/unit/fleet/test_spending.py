"""What was spent is the ledger's word and what was paid since; nothing is counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.cost.spent import Spent
from rayburst.fleet.spending import REMEMBER_S, Spending

HOUR = 3600.0


@given(
    ticks=st.lists(st.tuples(st.floats(0.1, 60), st.floats(0, 50)), min_size=1, max_size=30),
    share=st.floats(0, 1),
)
def test_a_ledger_that_says_the_same_changes_nothing_whenever_it_comes(ticks, share):
    spending, now, paid, by_time = Spending(Spent(at=0.0)), 0.0, 0.0, []
    for length, rate in ticks:
        spending.charge(now, {"job j": rate})
        by_time.append((now, now + length, rate))
        now += length
        paid += rate * length / HOUR
    spending.charge(now, {})
    at = share * now
    ledger = sum(rate * max(min(end, at) - start, 0) / HOUR for start, end, rate in by_time)
    begin = spending._trail[0][0] if spending._trail else now
    taken = spending.rebase(Spent(at=at, usd={"job j": ledger, "1970-01 job j": ledger}))
    assert taken == (at > 0 and begin <= at)
    for key in ("job j", "1970-01 job j"):
        assert spending.usd(key) == pytest.approx(paid, abs=1e-9)


def test_what_the_ledger_knows_better_is_taken_over_with_what_was_paid_since():
    spending = Spending(Spent(at=0.0, usd={"job j": 1.0, "job gone": 7.0}))
    spending.charge(0.0, {"job j": 36.0})
    spending.charge(10.0, {"job j": 72.0})
    spending.charge(20.0, {"job j": 72.0})
    assert spending.usd("job j") == pytest.approx(1.3)
    assert spending.rebase(Spent(at=15.0, usd={"job j": 1.0, "job other": 2.0}))
    assert spending.usd("job j") == pytest.approx(1.1)
    assert (spending.usd("job other"), spending.usd("job gone")) == (2.0, 0.0)
    assert not spending.rebase(Spent(at=15.0)), "it was told that already"
    assert not spending.rebase(Spent(at=14.0)), "it is older"
    assert not spending.rebase(Spent(at=99.0)), "it is of a time that was not counted yet"


def test_a_ledger_too_old_to_count_on_is_left_alone():
    spending = Spending(Spent(at=0.0, usd={"fleet": 1.0}))
    for tick in range(100):
        spending.charge(tick * 60.0, {"fleet": 1.0})
    assert not spending.rebase(Spent(at=5940.0 - REMEMBER_S - 61.0))
    assert spending.rebase(Spent(at=5940.0 - REMEMBER_S + 1.0))
