"""Searches on a real Ray cluster: killed, interrupted, and found again the same.

.venv/bin/python -m pytest tests/integration/train/test_search.py
"""

from __future__ import annotations

import importlib
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import wait_for
from training_cluster import Job, Nodes

from rayburst.checkpoint import latest
from rayburst.checkpoint.store import ObjectStore
from rayburst.train.runlog import read_folder
from rayburst.train.search import Rungs, Search, Trial
from rayburst.train.search.found import Found
from rayburst.train.search.journal import Journal

pytestmark = pytest.mark.timeout(900)
JOB = str(Path(__file__).resolve().parents[3] / "jobs" / "tune_lm.py")
MINE = """
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from rayburst.train.search import Rungs, Search, search
from rayburst.train.search.space import parse_space


def train(settings, trial):
    run = trial.start_run()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"])
    elastic = run.prepare(model, optimizer)
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.sin().sum(1, keepdim=True))

    def loss():
        model.eval()
        with torch.no_grad():
            value = F.mse_loss(model(x), data.tensors[1]).item()
        model.train()
        return value

    for inputs, targets in run.batches(data, global_batch=16, steps=trial.steps):
        time.sleep(settings["pause_s"])
        run.backward(F.mse_loss(elastic(inputs), targets))
        if run.step():
            trial.reached(run.steps_done, loss)


def what(storage, pause_s):
    return Search(
        run="mine", storage=storage, space=parse_space(["lr=log:1e-4..1e-1"]),
        fixed={"pause_s": pause_s}, rungs=Rungs(steps=45, first=5, factor=3), trials=4,
        at_once=2, checkpoint_every_s=0.5,
    )


if __name__ == "__main__":
    found = search(train, what(sys.argv[1], 0.15), say=lambda text: print(text, flush=True))
    print("RESULT " + json.dumps(found.to_json()))
"""


def undisturbed(train: Callable[..., None], search: Search) -> Found:
    """Every trial to its end in this process; what each would have measured."""
    journal = Journal(ObjectStore.open(search.folder))
    for number in range(search.trials):
        train(
            search.settings_of(number),
            Trial(search, number, journal=journal, tell=lambda told: None),
        )
    return Found(search=search, values=journal.values())


def test_a_search_that_was_killed_goes_on_and_finds_what_an_undisturbed_one_finds(
    nodes: Nodes,
    start: Callable[..., Job],
    s3_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "mine_to_search.py"
    script.write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("mine_to_search")
    nodes.ensure(2)
    journal = Journal(ObjectStore.open(f"{s3_server.uri}/mine"))
    first = start(str(script), s3_server.uri, cwd=tmp_path, **s3_server.env)

    def measured() -> bool | None:
        assert first.process.poll() is None, f"the search ended early:\n{first.output}"
        is_saved = latest(f"{s3_server.uri}/mine/trials/00000/checkpoints") is not None
        return True if is_saved and 15 in journal.of_trial(0) else None

    wait_for(measured, what="a value of the second rung, and a checkpoint")
    first.kill()
    known = journal.values()
    again = start(str(script), s3_server.uri, cwd=tmp_path, **s3_server.env)
    assert again.wait() == 0, again.output
    assert "goes on from" in again.output

    expected = undisturbed(mine.train, mine.what(str(tmp_path), 0.0))
    result = again.result()
    assert result["best"]["trial"] == expected.best.number
    assert result["trials"] == expected.to_json()["trials"], "value by value, bit by bit"
    assert {one["ended"] for one in result["trials"]} == {"stopped", "done"}
    now = journal.values()
    assert all(now[i][step] == value for i, one in known.items() for step, value in one.items())
    started = [
        record["step"]
        for number in known
        for record in read_folder(ObjectStore.open(f"{s3_server.uri}/mine/trials/{number:05d}"))
        if record["kind"] == "start"
    ]
    assert max(started) > 0, "a trial resumed from its own checkpoint"


@pytest.mark.soak
def test_what_a_trial_raises_ends_the_search(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(2)
    script = tmp_path / "wrong.py"
    script.write_text(textwrap.dedent(MINE.replace("torch.manual_seed(0)", "raise KeyError('x')")))
    job = start(str(script), str(tmp_path), cwd=tmp_path)
    assert job.wait() == 1
    assert "SearchError: trial" in job.output
    assert "KeyError: 'x'" in job.output


def test_decisions_are_those_of_rays_asha_when_values_come_in_the_order_of_the_trials() -> None:
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    drawn = random.Random(5)
    rungs = Rungs(steps=28, first=1, factor=3)
    for _ in range(40):
        theirs = ASHAScheduler(
            time_attr="t",
            metric="m",
            mode="min",
            max_t=100,
            grace_period=1,
            reduction_factor=3,
            stop_last_trials=False,
        )
        values = {i: {step: drawn.random() for step in rungs.milestones} for i in range(9)}
        alive = list(range(9))
        for number in alive:
            theirs.on_trial_add(None, SimpleNamespace(trial_id=str(number)))
        stopped: dict[int, int] = {}
        for step in rungs.milestones[:-1]:
            for number in list(alive):
                told = {"t": step, "m": values[number][step]}
                trial = SimpleNamespace(trial_id=str(number))
                if theirs.on_trial_result(None, trial, told) == TrialScheduler.STOP:
                    stopped[number] = step
                    alive.remove(number)
        ours = rungs.standings(values, trials=9)
        assert {i: one.rung for i, one in enumerate(ours) if one.state == "stopped"} == stopped


@pytest.mark.soak
def test_the_language_model_is_searched_over_a_notice_a_power_cut_and_a_kill(
    nodes: Nodes, start: Callable[..., Job], s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    lines = "\n".join(f"{i} bears met {i % 7} wolves and {i % 5} foxes" for i in range(20000))
    store = ObjectStore.open(s3_server.uri)
    store.put("searched/text.txt", lines.encode())
    env = {**s3_server.env, "RAYBURST_STORE": s3_server.uri}
    arguments = [JOB, "--set", "lr=log:1e-4..1e-1", "global_batch=4,8", "--trials", "6"]
    arguments += ["--steps", "120", "--first-rung", "10", "--at-once", "2"]
    arguments += ["--data", f"{s3_server.uri}/searched", "--checkpoint-every", "2"]
    nodes.ensure(0)
    noticed, cut = nodes.add(), nodes.add()
    calm = start(*arguments, "--run", "calm", **env)
    assert calm.wait() == 0, calm.output

    job = start(*arguments, "--run", "shaken", **env)
    journal = Journal(store.child("runs/shaken"))

    def logged(kind: str) -> int:
        folders = {item.key.split("/")[0] for item in store.list("runs/shaken/trials")}
        logs = (read_folder(store.child(f"runs/shaken/trials/{one}")) for one in folders)
        return sum(record["kind"] == kind for log in logs for record in log)

    def wait_for_trials(probe: Callable[[], bool], what: str) -> None:
        def ask() -> bool | None:
            assert job.process.poll() is None, f"the search ended early:\n{job.output}"
            return probe() or None

        wait_for(ask, what=what, timeout_s=200)

    # both nodes have a trial: whichever node goes, a trial is interrupted
    wait_for_trials(lambda: logged("committed") >= 2, "checkpoints of two trials")
    nodes.drain(noticed, notice_s=8)
    wait_for_trials(lambda: logged("leave") == 1, "the trial that had notice has left")
    nodes.kill(noticed)
    nodes.add()
    begun = logged("start")
    nodes.kill(cut)
    nodes.add()
    wait_for_trials(lambda: logged("start") >= begun + 2, "two trials started again")
    measured = len(journal.values())
    wait_for_trials(lambda: len(journal.values()) > measured, "another value")
    job.kill()
    job = start(*arguments, "--run", "shaken", **env)
    assert job.wait() == 0, job.output
    assert "goes on from" in job.output
    found, expected = job.result(), calm.result()
    assert found["trials"] == expected["trials"]
    assert found["best"]["trial"] == expected["best"]["trial"]
    assert b"<svg" in store.get("runs/shaken/search.html")
