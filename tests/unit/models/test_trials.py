"""A candidate beside production: one at a time, one end, nothing lost when a decider is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_models import save_run
from typer.testing import CliRunner

from rayburst.errors import VersionConflictError, VersionError, VersionNotFoundError
from rayburst.models import ModelRegistry
from rayburst.models.judge import Limits
from rayburst.models.models_cli import app


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    """gpt@1 is production, gpt@2 is not."""
    models = ModelRegistry.open(str(tmp_path))
    for step in (10, 20):
        save_run(models.store.uri, "first", step=step)
        models.publish(f"first@{step}", name="gpt")
    models.promote("gpt@1")
    return models


def test_a_trial_runs_until_it_ends(models: ModelRegistry) -> None:
    trials = models.trials("gpt")
    assert trials.running() is None and trials.after(0) is None
    trial = trials.begin("gpt@2", weight=0.1, limits=Limits(agreement=0.5), why="longer")
    assert trials.running() == trials.after(0) == trial
    assert (trial.version, trial.weight, trial.limits.agreement) == (2, 0.1, 0.5)
    ended = trials.end(trial, "rolled back", why="it errs", figures={"errors": 0.5})
    assert trials.running() is None and trials.ending(trial) == ended
    assert models.get("gpt").version == 1
    assert trials.end(trial, "promoted", why="too late") == ended, "the first word stands"
    assert models.get("gpt").version == 1
    again = trials.begin("gpt@2")
    assert [(t.number, e and e.outcome) for t, e in trials.history()] == [
        (1, "rolled back"),
        (again.number, None),
    ]


def test_a_promotion_moves_the_alias(models: ModelRegistry) -> None:
    trials = models.trials("gpt")
    trials.end(trials.begin("gpt@2"), "promoted", why="as good")
    assert [(move.version, move.why) for move in models.history("gpt")] == [(1, ""), (2, "as good")]


def test_who_decides_may_be_killed_between_alias_and_end(models: ModelRegistry) -> None:
    trials = models.trials("gpt")
    trial = trials.begin("gpt@2")
    models.promote("gpt@2", why="as good")  # and then it was killed
    assert trials.running() is None
    ended = trials.ending(trial)
    assert ended is not None and ended.outcome == "promoted"


def test_what_cannot_be_tried_is_refused(models: ModelRegistry) -> None:
    trials = models.trials("gpt")
    with pytest.raises(VersionError, match="gpt@1 is gpt@production already"):
        trials.begin("gpt@1")
    with pytest.raises(VersionError, match="weight=0, shadow=False"):
        trials.begin("gpt@2", weight=0, shadow=False)
    with pytest.raises(VersionNotFoundError, match="versions: 1, 2"):
        trials.begin("gpt@7")
    with pytest.raises(VersionNotFoundError, match="points nowhere"):
        models.trials("gpt", "staging").begin("gpt@2")
    trials.begin("gpt@2")
    with pytest.raises(VersionConflictError, match=r"gpt@2 is tried already \(trial 1\)"):
        trials.begin("gpt@2", weight=0.5)


def test_the_command_line_begins_shows_and_withdraws(models: ModelRegistry) -> None:
    def said(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--store", models.store.uri])
        assert done.exit_code == status, done.output
        return " ".join(done.output.split())

    begun = said("canary", "gpt@2", "--weight", "0.1", "--agreement", "0.8")
    assert "gpt@2 answers 10% of what gpt@production is asked" in begun
    assert "trial 1: gpt@2" in said("show", "gpt")
    assert "withdrawn" in said("withdraw", "gpt", "--why", "not today")
    shown = said("show", "gpt")
    assert "trial 1: gpt@2" in shown and "withdrawn" in shown and "not today" in shown
    assert "no trial of gpt runs" in said("withdraw", "gpt")
