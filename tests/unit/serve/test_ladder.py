"""The ladder: which rungs there are, which one a batch gets, and when one is missed."""

from __future__ import annotations

import pytest

from rayburst.errors import ModelError
from rayburst.serve.batcher import Batcher, Ticket
from rayburst.serve.costs import Costs
from rayburst.serve.ladder import PROBE_S, Ladder

VARIANTS = {"fp32": 1.0, "bf16": 0.999, "int8": 0.985}


def ladder_of(variants=VARIANTS, **more):
    options = {"floor": 0.98, "work_s": lambda curve: curve.mean(1), **more}
    return Ladder(variants, **options)


def costs_of(**each_s):
    costs = Costs()
    for name, seconds in each_s.items():
        for _ in range(10):
            costs.of(name, 1).learn(1, seconds)
            costs.of(name, 1).learn(8, 8 * seconds)
    return costs


def choose(ladder, holds, now_s, costs=None):
    return ladder.choose(holds.__contains__, lambda: ladder.rungs[-1].name, costs or Costs(), now_s)


def test_a_rung_below_the_floor_is_none():
    ladder = ladder_of({**VARIANTS, "tiny": 0.9})
    assert [rung.name for rung in ladder.rungs] == ["fp32", "bf16", "int8"]
    assert choose(ladder, {"tiny"}, 0.0) == "int8"


@pytest.mark.parametrize("variants", [{}, {"fp32": 0.9}])
def test_a_ladder_without_rungs_is_refused_with_what_was_asked(variants):
    with pytest.raises(ModelError, match=r"agreement=0\.98 asks.*agreement=0\.9"):
        ladder_of(variants)


def test_an_agreement_that_is_no_share_is_refused():
    with pytest.raises(ModelError, match="'int8' has an agreement of 98"):
        ladder_of({"fp32": 1.0, "int8": 98})


def test_a_batch_gets_the_first_rung_that_holds_and_later_ones_none_above_it():
    ladder = ladder_of()
    ladder.asked(1, 0.0)
    assert choose(ladder, {"fp32", "bf16", "int8"}, 0.0) == "fp32"
    assert choose(ladder, {"bf16", "int8"}, 0.1) == "bf16"
    assert choose(ladder, {"fp32", "bf16", "int8"}, 0.2) == "bf16"
    assert choose(ladder, set(), 0.3) == "int8"
    assert ladder.level(0.4) == 2


def test_a_better_rung_is_tried_once_in_a_while_and_only_if_it_holds():
    ladder = ladder_of(back_s=1e9)
    ladder.asked(1, 0.0)
    choose(ladder, {"bf16"}, 0.0)
    assert choose(ladder, {"bf16"}, PROBE_S) == "bf16"
    assert choose(ladder, {"fp32", "bf16"}, PROBE_S + 1) == "fp32"
    assert choose(ladder, {"fp32", "bf16"}, PROBE_S + 2) == "bf16"
    assert ladder.level(PROBE_S + 2) == 1  # a try is no climb


def test_it_climbs_when_the_better_rung_would_carry_the_load():
    costs = costs_of(fp32=0.1, bf16=0.05, int8=0.02)
    for rate, expected in [(12, "bf16"), (6, "fp32")]:
        ladder = ladder_of()
        for n in range(20 * rate):
            ladder.asked(1, n / rate)
        choose(ladder, {"bf16"}, 20.0, costs)
        for n in range(7 * rate):
            ladder.asked(1, 20 + n / rate)
            last = choose(ladder, {"fp32", "bf16"}, 20 + n / rate, costs)
        assert last == expected
        assert ladder.load("fp32", costs, 27.0) == pytest.approx(rate * 0.1, rel=0.2)


def test_a_rung_that_is_not_loaded_is_missed_once_nothing_else_holds():
    ladder, missed = ladder_of(), []
    ladder.short = missed.append
    ladder.hold_back("bf16")
    ladder.hold_back("int8")
    costs = costs_of(fp32=0.1)
    cheapest = lambda: ladder.cheapest(costs, 1, 8)  # noqa: E731
    ladder.asked(1, 0.0)
    assert ladder.choose(lambda name: name == "fp32", cheapest, costs, 0.0) == "fp32"
    assert not missed
    assert ladder.choose(lambda name: name != "fp32", cheapest, costs, 0.1) == "fp32"
    assert missed == ["bf16"]
    ladder.admit("bf16")
    assert ladder.choose(lambda name: name != "fp32", cheapest, costs, 0.2) == "bf16"


def full(batcher, count, *, at_s=0.0, slo_s=1.0):
    for n in range(count):
        batcher.add(Ticket(n, arrived_s=at_s, deadline_s=at_s + slo_s))


def laddered(**each_s):
    batcher = Batcher(max_batch=4, patience_s=1.0, ladder=ladder_of())
    batcher.costs = costs_of(**each_s)
    return batcher


def test_the_queue_decides_which_form_computes_it():
    costs = {"fp32": 0.1, "bf16": 0.05, "int8": 0.02}  # a request, in any batch
    for waiting, expected in [(4, "fp32"), (15, "bf16"), (40, "int8")]:
        batcher = laddered(**costs)
        full(batcher, waiting)
        batch = batcher.take(0.0)
        assert (batch.variant, {t.variant for t in batch.tickets}) == (expected, {expected})


def test_nobody_asks_others_answers_down_by_a_deadline_of_their_own():
    batcher = laddered(fp32=0.1, bf16=0.05, int8=0.02)
    full(batcher, 1, slo_s=0.06)
    assert batcher.take(0.0).variant == "fp32"
    hasty = Ticket(0, arrived_s=0.0, deadline_s=0.06)
    patient = Ticket(0, arrived_s=0.0, deadline_s=1.0)
    assert batcher.finish_s(hasty, busy_s=0.0) > 0.06  # refused: only a lower rung could do it
    assert batcher.finish_s(patient, busy_s=0.0) < 0.3


def test_a_request_that_no_rung_can_answer_in_time_degrades_nobody():
    batcher = laddered(fp32=0.1, bf16=0.05, int8=0.02)
    full(batcher, 1, at_s=-0.99)
    assert batcher.take(0.0).variant == "fp32"


def test_costs_are_learned_for_the_form_that_was_used():
    batcher = laddered(fp32=0.1, bf16=0.05, int8=0.02)
    full(batcher, 15)
    batch = batcher.take(0.0)
    before = batcher.costs.of("bf16", 1).mean(4)
    batcher.learn(batch, 3 * before)
    assert batcher.costs.of("bf16", 1).mean(4) > before
    assert batcher.costs.of("", 1).largest == 0
