"""What an interruption cost, from a run log written by hand."""

from __future__ import annotations

from rayburst.report.gaps import Gap, gap_after


def start(t, world, step, hosts):
    return [
        {"t": t + 0.1 * rank, "kind": "start", "rank": rank, "world": world, "step": step}
        | {"host": host, "market": "spot", "pool": "spot"}
        for rank, host in enumerate(hosts)
    ]


def steps(t, world, first, last):
    return [
        {"t": t + i, "kind": "step", "rank": rank, "world": world, "step": first + i}
        for i in range(last - first + 1)
        for rank in range(world)
    ]


LOG = [
    *start(0, 3, 0, ["a", "b", "c"]),
    *steps(1, 3, 1, 20),  # t = 1..20
    *start(32, 2, 15, ["a", "c"]),
    *steps(35, 2, 16, 40),
]


def test_gap_and_lost_steps_of_a_cut():
    gap = gap_after(LOG, node="b", t=18.5)
    assert gap == Gap(gap_s=15.0, steps_lost=5, world_before=3, world_after=2)


def test_a_restart_that_still_uses_the_node_is_not_the_end_of_its_interruption():
    grown = [
        *start(0, 2, 0, ["a", "b"]),
        *steps(1, 2, 1, 10),
        *start(15, 3, 10, ["a", "b", "c"]),
        *steps(18, 3, 11, 20),
        *start(40, 2, 20, ["a", "c"]),
        *steps(42, 2, 21, 22),
    ]
    gap = gap_after(grown, node="b", t=9.0)
    assert gap == Gap(gap_s=42.0 - 27.0, steps_lost=0, world_before=3, world_after=2)


def test_nothing_is_said_before_training_is_back_or_of_a_node_without_a_worker():
    assert gap_after(LOG[:60], node="b", t=18.5) is None
    assert gap_after(LOG, node="stranger", t=18.5) is None


def test_a_change_in_place_counts_as_a_restart_does_and_undoes_no_step():
    changed = [
        *start(0, 3, 0, ["a", "b", "c"]),
        *steps(1, 3, 1, 20),
        *({**record, "kind": "change"} for record in start(21, 2, 20, ["a", "c"])),
        *steps(22, 2, 21, 30),
    ]
    gap = gap_after(changed, node="b", t=18.5)
    assert gap == Gap(gap_s=2.0, steps_lost=0, world_before=3, world_after=2)


def test_a_node_that_goes_after_the_end_cost_a_later_submission_nothing():
    again = [*LOG, {"t": 76, "kind": "end", "rank": 0, "world": 2, "step": 40}]
    again += [*start(900, 1, 40, ["d"]), *steps(903, 1, 41, 50)]
    assert gap_after(again, node="b", t=18.5) == gap_after(LOG, node="b", t=18.5)
    assert gap_after(again, node="c", t=80) is None
