"""Decisions of a search: the same whatever the order in which values come."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.report.search_page import search_page
from rayburst.train.search.found import Found
from rayburst.train.search.rungs import Rungs, Standing
from rayburst.train.search.settings import Search
from rayburst.train.search.space import (
    Choice,
    Range,
    draw,
    parse_space,
    space_of_json,
    space_to_json,
)

RUNGS = Rungs(steps=9, first=1, factor=3)
measured = st.one_of(st.floats(-5, 5), st.just(math.inf))


@st.composite
def all_values(draw_: Any) -> list[dict[int, float]]:
    """What each trial would measure, were it never stopped."""
    count = draw_(st.integers(1, 7))
    return [{step: draw_(measured) for step in RUNGS.milestones} for _ in range(count)]


def test_trials_are_compared_at_growing_steps_and_at_the_end() -> None:
    assert RUNGS.milestones == (1, 3, 9)
    assert Rungs(steps=100, first=10, factor=3).milestones == (10, 30, 90, 100)
    assert Rungs(steps=5, first=5).milestones == (5,)
    with pytest.raises(ValueError, match="1 <= first <= steps"):
        Rungs(steps=5, first=6)


def test_a_trial_is_stopped_unless_it_is_among_the_best_of_those_before_it() -> None:
    values = {0: {1: 4.0, 3: 3.0, 9: 2.5}, 1: {1: 5.0}, 2: {1: 3.0, 3: 2.0, 9: 1.0}}
    found = RUNGS.standings(values, trials=3)
    assert found[1] == Standing(state="stopped", rung=1)
    assert [found[0].state, found[2].state] == ["done", "done"]
    assert RUNGS.best(values, trials=3) == 2


def test_a_decision_waits_for_the_trials_before_it_and_nothing_else() -> None:
    values: dict[int, dict[int, float]] = {1: {1: 9.0, 3: 9.0}}
    assert RUNGS.standings(values, trials=2)[1] == Standing(state="open")
    values[0] = {1: 1.0}
    assert RUNGS.standings(values, trials=2)[1] == Standing(state="stopped", rung=1)


def test_a_trial_that_diverged_is_stopped_at_once_and_counts_for_nobody() -> None:
    values = {0: {1: math.inf, 3: math.inf, 9: math.inf}, 1: {1: 2.0, 3: 2.0, 9: 2.0}}
    found = RUNGS.standings(values, trials=2)
    assert [one.state for one in found] == ["stopped", "done"]
    assert RUNGS.best(values, trials=2) == 1
    assert RUNGS.best({0: values[0]}, trials=1) is None


@given(all_values(), st.randoms(use_true_random=False))
def test_values_in_any_order_lead_to_the_same_end(
    values: list[dict[int, float]], random: Any
) -> None:
    count = len(values)
    ends = []
    for _ in range(2):
        known: dict[int, dict[int, float]] = {}
        decided: list[Standing] = RUNGS.standings(known, trials=count)
        while any(one.state == "open" for one in decided):
            # a trial trains on while it is open, one rung at a time, whoever is scheduled
            trial = random.choice([i for i, one in enumerate(decided) if one.state == "open"])
            left = [s for s in RUNGS.milestones if s not in known.get(trial, {})]
            if left:
                known.setdefault(trial, {})[left[0]] = values[trial][left[0]]
            now = RUNGS.standings(known, trials=count)
            for before, after in zip(decided, now, strict=True):
                assert before.state == "open" or before == after, "a decision is final"
            decided = now
        ends.append((decided, RUNGS.best(known, trials=count)))
    assert ends[0] == ends[1]


def test_settings_are_drawn_by_seed_trial_and_name_alone() -> None:
    space = parse_space(["lr=log:1e-4..1e-2", "batch=16,32", "kind=a,b", "share=0..1"])
    assert space["lr"] == Range(1e-4, 1e-2, True)
    assert space["batch"] == Choice((16, 32))
    drawn = [draw(space, seed=0, trial=i) for i in range(200)]
    assert drawn[3] == draw(dict(reversed(space.items())), seed=0, trial=3)
    assert drawn[3]["lr"] == draw({"lr": space["lr"]}, seed=0, trial=3)["lr"]
    assert drawn[3] != draw(space, seed=1, trial=3)
    assert all(1e-4 <= one["lr"] <= 1e-2 for one in drawn)
    below = sum(one["lr"] < 1e-3 for one in drawn)
    assert 70 < below < 130, "half of the logarithm's range lies below 1e-3"
    assert {one["batch"] for one in drawn} == {16, 32}
    assert space_of_json(space_to_json(space)) == space


@pytest.mark.parametrize("text", ["lr", "lr=", "=1", "lr=2..1", "lr=log:0..1", "lr=a..b"])
def test_a_space_that_cannot_be_read_is_refused_with_the_right_way(text: str) -> None:
    with pytest.raises(ValueError, match=r"log:1e-4\.\.1e-2|could not convert"):
        parse_space([text])


def search_of(**fields: Any) -> Search:
    given_ = {"run": "s", "storage": "/tmp/runs", "space": parse_space(["lr=log:1e-4..1e-2"])}
    return Search(**{**given_, "rungs": RUNGS, "trials": 3, **fields})


def test_what_was_found_is_told_as_table_json_and_page() -> None:
    values = {0: {1: 4.0, 3: 3.0, 9: 2.5}, 1: {1: 5.0, 3: 0.1}, 2: {1: math.inf}}
    found = Found(search=search_of(), values=values)
    told = found.to_json()
    assert told["best"]["trial"] == 0
    assert told["best"]["checkpoint"] == "/tmp/runs/s/trials/00000@9"
    assert told["trials"][1]["values"] == {"1": 5.0}, "what it did while it was open counts not"
    assert told["trials"][2] == {**told["trials"][2], "ended": "stopped", "values": {"1": None}}
    assert str(found.table()).count("stopped") == 2
    page = search_page(found, value="bits a byte")
    assert "Trials" in page
    assert "By lr" in page
    assert page.count("<circle") >= 4
    nothing = Found(search=search_of(trials=1), values={0: {1: math.inf}})
    assert "No trial has a finite value" in search_page(nothing, value="loss")


def test_a_search_that_cannot_be_is_refused() -> None:
    for wrong in ({"run": "a/b"}, {"space": {}}, {"trials": 0}, {"fixed": {"lr": 1}}):
        with pytest.raises(ValueError, match="give"):
            search_of(**wrong)
