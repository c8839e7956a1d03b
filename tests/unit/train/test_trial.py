"""A trial of a search alone, without Ray: it leaves, resumes, and measures the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import NonFiniteError, RunLeftError, SearchError
from rayburst.train.notices import Notice
from rayburst.train.search import Rungs, Search, Trial
from rayburst.train.search.found import Found
from rayburst.train.search.journal import Journal
from rayburst.train.search.progress import FAILED, Progress
from rayburst.train.search.rungs import Standing
from rayburst.train.search.space import parse_space

STEPS = 12


def search_of(folder: Path, **fields: Any) -> Search:
    usual: dict[str, Any] = {
        "run": "s",
        "storage": str(folder),
        "space": parse_space(["lr=log:1e-3..1e-1"]),
        "rungs": Rungs(steps=STEPS, first=4, factor=2),
    }
    return Search(**{**usual, **fields})


def train(settings: dict[str, Any], trial: Trial, *, bad_from: int = STEPS) -> None:
    run = trial.start_run()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"])
    elastic = run.prepare(model, optimizer)
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    for inputs, targets in run.batches(data, global_batch=8, steps=trial.steps):
        loss = F.mse_loss(elastic(inputs), targets)
        run.backward(loss * (math.nan if run.steps_done >= bad_from else 1.0))
        if run.step():
            model.eval()
            trial.reached(run.steps_done, lambda: F.mse_loss(model(x), data.tensors[1]).item())
            model.train()


class Told:
    """What a trial tells its driver; it gets notice after so many values."""

    def __init__(self, leaves_after: int = 99) -> None:
        self.said: list[dict[str, float]] = []
        self._leaves_after = leaves_after

    def __call__(self, words: dict[str, float]) -> None:
        self.said.append(words)

    def notice(self) -> Notice | None:
        is_time = len(self.said) >= self._leaves_after
        return Notice(deadline_s=None, reason="declared") if is_time else None


def trial_of(search: Search, told: Told) -> Trial:
    journal = Journal(ObjectStore.open(search.folder))
    return Trial(search, 2, journal=journal, tell=told, notices=told.notice)


def test_a_trial_that_had_notice_resumes_and_measures_what_an_undisturbed_one_does(
    tmp_path: Path,
) -> None:
    calm, shaken = search_of(tmp_path / "calm"), search_of(tmp_path / "shaken")
    whole = Told()
    train(calm.settings_of(2), trial_of(calm, whole))
    first, then = Told(leaves_after=1), Told()
    with pytest.raises(RunLeftError):
        train(shaken.settings_of(2), trial_of(shaken, first))
    assert [one["step"] for one in first.said] == [4]
    train(shaken.settings_of(2), trial_of(shaken, then))
    assert then.said == whole.said, "it tells again what was measured before it left"
    assert [one["step"] for one in whole.said] == [4, 8, 12]
    values = Journal(ObjectStore.open(shaken.folder)).values()
    assert values == Journal(ObjectStore.open(calm.folder)).values()


def test_a_trial_that_diverges_has_the_worst_value_at_every_later_rung(tmp_path: Path) -> None:
    search, told = search_of(tmp_path), Told()
    one = trial_of(search, told)
    with pytest.raises(NonFiniteError):
        train(search.settings_of(2), one, bad_from=5)
    journal = Journal(ObjectStore.open(search.folder))
    assert journal.ended() == set()
    one.diverged()
    assert journal.ended() == {2}
    values = Journal(ObjectStore.open(search.folder)).of_trial(2)
    assert math.isfinite(values[4])
    assert (values[8], values[12]) == (math.inf, math.inf)
    known = {0: {4: 1e9}, 1: {4: 1e9}, 2: values}
    assert search.rungs.standings(known, trials=3)[2] == Standing(state="stopped", rung=8)


def test_a_value_is_written_once_and_a_search_keeps_its_words(tmp_path: Path) -> None:
    journal = Journal(ObjectStore.open(str(tmp_path)))
    assert journal.begin(search_of(tmp_path).identity()) is False
    assert journal.begin(search_of(tmp_path).identity()) is True
    assert journal.add(trial=1, step=4, value=2.5) == 2.5
    assert journal.add(trial=1, step=4, value=9.0) == 2.5, "the first one stands"
    assert journal.values() == {1: {4: 2.5}}
    with pytest.raises(SearchError, match=r"begun with seed=0; now it is 1"):
        journal.begin(search_of(tmp_path, seed=1).identity())


class _Stopped(Exception):
    """What Ray Tune does to a trial that is to stop."""


def run_left(search: Search, said: list[str], *, killed_after: int = 999) -> bool:
    """Run the trials that are left as Tune would, one at a time; False: killed before the end."""
    journal = Journal(ObjectStore.open(search.folder))
    journal.begin(search.identity())
    progress = Progress(search, journal, said.append)
    heard = 0
    for number in progress.left():

        def tell(words: dict[str, float], number: int = number) -> None:
            nonlocal heard
            heard += 1
            if heard > killed_after:
                raise KeyboardInterrupt
            if progress.hear(number, words):
                raise _Stopped

        trial = Trial(search, number, journal=journal, tell=tell)
        try:
            train(search.settings_of(number), trial)
            trial.ended()
        except _Stopped:
            continue
        except KeyboardInterrupt:
            return False
    return True


def test_a_search_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    calm, killed = (search_of(tmp_path / name, trials=4) for name in ("calm", "killed"))
    said: list[str] = []
    assert run_left(calm, said)
    assert any("is stopped at step 4" in line for line in said)
    runs = 1
    while not run_left(killed, [], killed_after=1 + runs):
        runs += 1
    assert runs > 2
    ends = [
        Found(search=one, values=Journal(ObjectStore.open(one.folder)).values())
        for one in (calm, killed)
    ]
    assert ends[0].best is not None
    assert ends[0].to_json()["trials"] == ends[1].to_json()["trials"]
    assert not Progress(killed, Journal(ObjectStore.open(killed.folder)), said.append).left()


def test_a_training_function_that_raised_ends_every_trial(tmp_path: Path) -> None:
    progress = Progress(search_of(tmp_path), Journal(ObjectStore.open(str(tmp_path))), print)
    assert not progress.hear(0, {"step": 1})
    assert progress.hear(1, {"step": 0, FAILED: "KeyError: 'x'"})
    assert progress.hear(0, {"step": 2})
    assert "trial 1 raised" in progress.failure
