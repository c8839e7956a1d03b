"""Who answers: production or a candidate, and when a model that was replaced may go."""

from __future__ import annotations

import pytest

from rayburst.models.judge import Limits
from rayburst.models.trials import Trial
from rayburst.serve.lineup import Lineup


def trial(weight: float = 0.25, **words: object) -> Trial:
    given = {"number": 1, "version": 2, "shadow": True, "limits": Limits(), "at_ms": 0, "id": "a"}
    return Trial.model_validate({**given, "weight": weight, **words})


def test_a_turn_ends_with_the_model_it_began_with() -> None:
    lineup = Lineup("old")
    with lineup.turn() as turn:
        lineup.replace("new")
        assert turn.model == "old"
        assert lineup.retired() == [], "somebody uses it"
        with lineup.turn() as later:
            assert later.model == "new"
    assert lineup.retired() == ["old"]
    assert lineup.retired() == [], "each is given once"


def test_a_candidate_answers_its_share_and_the_same_id_the_same_way() -> None:
    lineup = Lineup("production")
    lineup.try_out("candidate", trial(weight=0.25))
    chosen = {}
    for number in range(2000):
        with lineup.turn(f"request {number}") as turn:
            chosen[number] = turn.model
            assert (turn.trial is not None) == (turn.model == "candidate")
    share = list(chosen.values()).count("candidate") / 2000
    assert share == pytest.approx(0.25, abs=0.04)
    for number in range(50):
        with lineup.turn(f"request {number}") as turn:
            assert turn.model == chosen[number]


def test_production_answers_in_the_place_of_a_candidate_that_fails() -> None:
    lineup = Lineup("production")
    lineup.try_out("candidate", trial(weight=1))
    with lineup.turn() as turn:
        assert turn.fall_back() == turn.model == "production"
        lineup.replace("newer")
        lineup.end_trial()
        assert lineup.retired() == [], "the turn may need both"
    assert sorted(lineup.retired()) == ["candidate", "production"]


def test_a_candidate_that_is_promoted_stays_loaded() -> None:
    lineup = Lineup("production")
    lineup.try_out("candidate", trial())
    lineup.adopt()
    assert (lineup.production, lineup.trial) == ("candidate", None)
    assert lineup.retired() == ["production"]
    with lineup.both() as both:
        assert both is None
    with pytest.raises(RuntimeError, match="no candidate"):
        lineup.adopt()
