"""Searches on a real Ray cluster: killed, interrupted, and found again the same.

.venv/bin/python -m pytest tests/integration/train/test_search.py
"""

from __future__ import annotations

import importlib
import json
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from search_gates import Gates
from support import wait_for
from training_cluster import Job, Nodes

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.runlog import read_folder
from rayburst.train.search import Rungs, Search, Trial
from rayburst.train.search.found import Found
from rayburst.train.search.journal import Journal

pytestmark = pytest.mark.timeout(900)
T = TypeVar("T")
JOB = str(Path(__file__).resolve().parents[3] / "jobs" / "tune_lm.py")
TESTS = str(Path(__file__).resolve().parents[2])
FAULTS = {"1:3": "notice", "0:8": "cut", "0:18": "kill"}
MINE = """
import json
import sys

import torch
from ray import cloudpickle
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
        run.backward(F.mse_loss(elastic(inputs), targets))
        if run.step():
            trial.reached(run.steps_done, loss)


def what(storage):
    return Search(
        run="mine", storage=storage, space=parse_space(["lr=log:1e-4..1e-1"]),
        rungs=Rungs(steps=45, first=5, factor=3), trials=4, at_once=2, checkpoint_every_s=1e-3,
    )


if __name__ == "__main__":
    storage, tests, faults, folder = sys.argv[1:]
    sys.path.append(tests)
    import search_gates

    cloudpickle.register_pickle_by_value(search_gates)
    train = search_gates.gated(train, json.loads(faults), folder)
    found = search(train, what(storage), say=lambda text: print(text, flush=True))
    print("RESULT " + json.dumps(found.to_json()))
"""
LM = """
import json
import runpy
import sys

from ray import cloudpickle

from rayburst.train.search import lm

tests, faults, folder, job = sys.argv[1:5]
sys.path.append(tests)
import search_gates

cloudpickle.register_pickle_by_value(search_gates)
search = lm.search
lm.search = lambda train, what, say: search(
    search_gates.gated(train, json.loads(faults), folder), what, say=say
)
sys.argv = [job, *sys.argv[5:]]
runpy.run_path(job, run_name="__main__")
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


class Shaken:
    """A search under the faults of `FAULTS`, each fired when its trial stands at its gate."""

    def __init__(
        self, nodes: Nodes, begin: Callable[[Gates], Job], folder: ObjectStore, gates: Gates
    ) -> None:
        self._nodes, self._begin, self._gates = nodes, begin, gates
        self._folder = folder
        self._job = begin(gates)

    def play(self) -> Job:
        """All faults; the job that came to the end."""
        noticed = self._stands_at("1:3")
        self._nodes.drain(noticed, notice_s=6)
        self._wait(lambda: self.records(1, "leave") or None, "the trial that had notice has left")
        self._nodes.kill(noticed)
        self._nodes.add()
        self.cut = self._stands_at("0:8")
        self._nodes.kill(self.cut)
        self._nodes.add()
        self._stands_at("0:18")
        self._job.kill()
        self.known = Journal(self._folder).values()
        job = self._begin(self._gates)
        assert job.wait() == 0, job.output
        assert "goes on from" in job.output
        return job

    def check(self) -> None:
        """Both trials went on from checkpoints of their own, and on other nodes."""
        for number, gate in ((1, "1:3"), (0, "0:8")):
            lost = self._gates.node_at(gate)
            where = self._gates.nodes_of(number)
            assert where[0] == lost
            assert lost not in where[1:]
            steps = [record["step"] for record in self.records(number, "start")]
            assert steps[0] == 0
            assert len(steps) >= 2
            assert all(step > 0 for step in steps[1:]), "from its own checkpoint"
        assert len(self.records(0, "start")) == 3, "cut off once, and killed once"
        left = [record["step"] for record in self.records(1, "leave")]
        assert self.records(1, "start")[1]["step"] == left[0], "with notice no step is lost"

    def records(self, trial: int, kind: str) -> list[dict[str, Any]]:
        log = read_folder(self._folder.child(f"trials/{trial:05d}"))
        return [record for record in log if record["kind"] == kind]

    def _stands_at(self, gate: str) -> str:
        return self._wait(lambda: self._gates.node_at(gate), f"a trial at {gate}")

    def _wait(self, probe: Callable[[], T | None], what: str) -> T:
        def ask() -> T | None:
            assert self._job.process.poll() is None, f"it ended early:\n{self._job.output}"
            return probe()

        return wait_for(ask, what=what, timeout_s=150)


def test_a_search_interrupted_twice_and_killed_finds_what_an_undisturbed_one_finds(
    nodes: Nodes,
    start: Callable[..., Job],
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "mine_to_search.py"
    script.write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("mine_to_search")
    nodes.ensure(2)

    def begin(gates: Gates) -> Job:
        words = (s3.uri, TESTS, json.dumps(FAULTS), str(gates.folder))
        return start(str(script), *words, cwd=tmp_path, **s3.env)

    folder = ObjectStore.open(f"{s3.uri}/mine")
    shaken = Shaken(nodes, begin, folder, Gates(tmp_path / "gates"))
    result = shaken.play().result()
    shaken.check()

    expected = undisturbed(mine.train, mine.what(str(tmp_path)))
    assert result["best"]["trial"] == expected.best.number
    assert result["trials"] == expected.to_json()["trials"], "value by value, bit by bit"
    assert {one["ended"] for one in result["trials"]} == {"stopped", "done"}
    now = Journal(folder).values()
    known = shaken.known
    assert known[0].keys() == {5, 15}, "killed between two rungs"
    assert all(now[i][step] == value for i, one in known.items() for step, value in one.items())


@pytest.mark.soak
def test_what_a_trial_raises_ends_the_search(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(2)
    script = tmp_path / "wrong.py"
    script.write_text(textwrap.dedent(MINE.replace("torch.manual_seed(0)", "raise KeyError('x')")))
    job = start(str(script), str(tmp_path), TESTS, "{}", str(tmp_path), cwd=tmp_path)
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
    nodes: Nodes,
    start: Callable[..., Job],
    s3: Any,
    tmp_path: Path,
) -> None:
    lines = "\n".join(f"{i} bears met {i % 7} wolves and {i % 5} foxes" for i in range(20000))
    store = ObjectStore.open(s3.uri)
    store.put("searched/text.txt", lines.encode())
    env = {**s3.env, "RAYBURST_STORE": s3.uri}
    arguments = ["--set", "lr=log:1e-4..1e-1", "global_batch=4,8", "--trials", "6"]
    arguments += ["--steps", "90", "--first-rung", "10", "--at-once", "2"]
    arguments += ["--data", f"{s3.uri}/searched", "--checkpoint-every", "0.001"]
    nodes.ensure(2)
    calm = start(JOB, *arguments, "--run", "calm", **env)
    assert calm.wait() == 0, calm.output

    script = tmp_path / "gated.py"
    script.write_text(LM)

    def begin(gates: Gates) -> Job:
        words = (TESTS, json.dumps(FAULTS), str(gates.folder), JOB)
        return start(str(script), *words, *arguments, "--run", "shaken", **env)

    shaken = Shaken(nodes, begin, store.child("runs/shaken"), Gates(tmp_path / "gates"))
    found, expected = shaken.play().result(), calm.result()
    shaken.check()
    assert found["trials"] == expected["trials"]
    assert found["best"]["trial"] == expected["best"]["trial"]
    assert b"<svg" in store.get("runs/shaken/search.html")
