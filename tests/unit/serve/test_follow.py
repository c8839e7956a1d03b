"""A replica follows an alias and its trials; what cannot be loaded takes nothing down."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_models import save_run

from rayburst.errors import RayburstError, VersionDamagedError
from rayburst.models import ModelRegistry
from rayburst.models.moves import parse_ref
from rayburst.serve.follow import Follower


class Loaded:
    """A version that was loaded; the real one holds weights."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    models = ModelRegistry.open(str(tmp_path))
    for step in (10, 20, 30):
        save_run(models.store.uri, "first", step=step)
        models.publish(f"first@{step}", name="gpt")
    models.promote("gpt@1")
    return models


@pytest.fixture
def loads() -> list[str]:
    """Versions that were loaded."""
    return []


@pytest.fixture
def follower(models: ModelRegistry, loads: list[str]) -> Follower[Loaded]:
    def load(ref: str) -> Loaded:
        models.verify(ref)
        loads.append(ref)
        return Loaded(ref)

    return Follower(models, parse_ref("gpt"), load)


def test_it_follows_moves(
    models: ModelRegistry, follower: Follower[Loaded], loads: list[str]
) -> None:
    old = follower.lineup.production
    follower.look()
    assert loads == ["gpt@1"]
    models.promote("gpt@2")
    models.promote("gpt@3")
    follower.look()
    assert follower.lineup.production.label == "gpt@3"
    assert loads == ["gpt@1", "gpt@3"], "what was between is not loaded"
    assert old.is_closed
    models.rollback("gpt")
    models.promote("gpt@3")
    follower.look()
    assert loads == ["gpt@1", "gpt@3"], "it is there"


def test_one_that_follows_from_the_middle_knows_where_it_stands(models: ModelRegistry) -> None:
    models.promote("gpt@2")
    models.trials("gpt").end(models.trials("gpt").begin("gpt@3"), "withdrawn", why="")
    running = models.trials("gpt").begin("gpt@1", weight=0.5)
    follower = Follower(models, parse_ref("gpt"), Loaded)
    assert follower.lineup.production.label == "gpt@2"
    follower.look()
    assert follower.lineup.trial == running


def test_a_damaged_version_takes_nothing_down(
    models: ModelRegistry, follower: Follower[Loaded], loads: list[str], tmp_path: Path
) -> None:
    models.promote("gpt@2")
    file = next(iter(models.get("gpt@2").files))
    path = tmp_path / "models" / "gpt" / file
    kept = path.read_bytes()
    path.write_bytes(b"other bytes")
    for _ in range(2):
        with pytest.raises(VersionDamagedError):
            follower.look()
        assert follower.lineup.production.label == "gpt@1"
    path.write_bytes(kept)
    follower.look()
    assert follower.lineup.production.label == "gpt@2"


def test_a_trial_comes_and_goes(models: ModelRegistry, follower: Follower[Loaded]) -> None:
    trials = models.trials("gpt")
    trial = trials.begin("gpt@2", weight=0.5)
    follower.look()
    with follower.lineup.both() as both:
        assert both is not None
        assert (both.production.label, both.candidate.label) == ("gpt@1", "gpt@2")
        candidate = both.candidate
    trials.end(trial, "rolled back", why="it errs")
    follower.look()
    assert follower.lineup.trial is None and candidate.is_closed
    assert follower.lineup.production.label == "gpt@1"


def test_a_candidate_that_is_promoted_is_not_loaded_again(
    models: ModelRegistry, follower: Follower[Loaded], loads: list[str]
) -> None:
    trials = models.trials("gpt")
    trial = trials.begin("gpt@2")
    follower.look()
    trials.end(trial, "promoted", why="as good")
    follower.look()
    assert follower.lineup.production.label == "gpt@2" and follower.lineup.trial is None
    assert loads == ["gpt@1", "gpt@2"]
    follower.look()
    models.rollback("gpt")
    follower.look()
    assert follower.lineup.production.label == "gpt@1"


def test_a_candidate_that_cannot_be_loaded_is_rolled_back(
    models: ModelRegistry, follower: Follower[Loaded], tmp_path: Path
) -> None:
    trials = models.trials("gpt")
    trial = trials.begin("gpt@2")
    file = next(iter(models.get("gpt@2").files))
    (tmp_path / "models" / "gpt" / file).write_bytes(b"other bytes")
    follower.look()
    ended = trials.ending(trial)
    assert ended is not None and ended.outcome == "rolled back"
    assert "cannot be loaded" in ended.why
    follower.look()
    assert follower.lineup.production.label == "gpt@1" and follower.lineup.trial is None


def test_a_number_cannot_be_followed(models: ModelRegistry) -> None:
    with pytest.raises(ValueError, match="never moves"):
        Follower(models, parse_ref("gpt@1"), Loaded)
    with pytest.raises(RayburstError, match="points nowhere"):
        Follower(models, parse_ref("gpt@staging"), Loaded)
