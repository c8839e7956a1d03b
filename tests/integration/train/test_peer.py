"""A run's newest snapshot in another node's memory, on a real Ray cluster and a real S3 server.

.venv/bin/python -m pytest tests/integration/train/test_peer.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import FaultyProxy
from support import wait_for
from training_cluster import Job, Nodes, Run
from training_ranks import Case, Phase, play, weights_of

from rayburst.checkpoint.catalog import newest_step
from rayburst.checkpoint.checkpointer import Checkpointer

pytestmark = pytest.mark.timeout(400)
IN_PLACE = str(Path(__file__).resolve().parents[2] / "in_place_job.py")
SPREAD_EPOCHS = 60

# The workers' environment is that of their node, but for what the job says.
PROXIED = """
import os, sys, ray
from rayburst.train.lm import LMConfig, run
from rayburst.train.trainer import ElasticOptions

names = ("RAY_ADDRESS", "AWS_ENDPOINT_URL")
ray.init(runtime_env={"env_vars": {name: os.environ[name] for name in names}})
run(
    LMConfig(run="held", storage=sys.argv[1], least=1, most=2, steps=100_000, global_batch=8,
             checkpoint_every_s=1),
    say=print,
    options=ElasticOptions(recovery="restart"),  # in place, who is left has the state
)
"""


@pytest.fixture(scope="module")
def nodes(s3_server: Any) -> Iterator[Nodes]:
    """A cluster of its own: Ray holds for minutes what the killed driver of a run had asked for."""
    with closing(Nodes(s3_server.env)) as made:
        yield made


@pytest.fixture
def proxy(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    made = FaultyProxy(s3_server.env["AWS_ENDPOINT_URL"])
    yield made
    made.close()


def refuse_commits(method: str, path: str, number: int) -> str | None:
    return "503" if method == "PUT" and "/checkpoints/manifests/" in path else None


def test_a_snapshot_that_the_store_never_got_comes_back_from_a_peer_after_a_power_cut(
    nodes: Nodes,
    start: Callable[..., Job],
    s3_server: Any,
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    nodes.ensure(2)
    script = tmp_path / "script.py"
    script.write_text(PROXIED)
    storage = f"{s3_server.uri}/{tmp_path.name}"
    job = start(str(script), storage, **{**s3_server.env, "AWS_ENDPOINT_URL": proxy.endpoint})
    run = Run(f"{storage}/held", job)
    victim = run.wait("start", rank=0, world=2)[0]["node"]
    run.wait("checkpoint", peer=True)

    proxy.plan = refuse_commits
    # the client tries again: by the second time the peer has long had the whole snapshot
    wait_for(lambda: proxy.fired["503"] >= 2 or None, what="a commit that fails", timeout_s=60)
    nodes.kill(victim)
    held = run.wait("from-peer")[0]
    committed = newest_step(run.folder.child("checkpoints"))
    assert committed is not None
    assert held["step"] > committed, "the store lacks what the peer has given"
    proxy.plan = lambda method, path, number: None
    after = run.wait("start", world=1)[0]
    assert after["step"] == held["step"]
    # what only the peer had is on the store with the next checkpoint, and in the weights
    assert (
        run.wait("committed", at_least=len(run.records("committed")) + 1)[-1]["step"]
        > after["step"]
    )


@pytest.mark.soak  # failed once in three runs on a busy machine, the cause unknown
def test_a_lost_piece_of_a_spread_model_comes_from_a_peer_and_the_processes_stay(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(3)
    config = {"storage": str(tmp_path), "epochs": SPREAD_EPOCHS, "spread": True}
    config |= {"least": 1, "most": 3, "checkpoint_every_s": 3600}
    job = start(IN_PLACE, json.dumps(config))
    run = Run(f"{tmp_path}/r", job)
    taken = [run.wait("snapshot", rank=rank, at_least=3) for rank in range(3)]
    nodes.kill(run.wait("start", rank=1, world=3)[0]["node"])
    (held,) = {r["step"] for r in run.wait("from-peer", at_least=2)}
    assert held >= min(r[-2]["step"] for r in taken), "all but the last was whole for sure"
    assert {r["step"] for r in run.records("committed")} == {1}, "the store has the first one alone"
    changed = run.wait("change", world=2, at_least=2)
    assert {r["step"] for r in changed} == {held}
    (tmp_path / "hurry").touch()

    assert job.wait() == 0, job.output
    assert len(run.records("start")) == 3, "nobody started again"
    assert len(weights_of(run.records("end"))) == 1
    case = Case(options={"mode": "fast"}, optimizer="sgd", dropout=0.0, epochs=SPREAD_EPOCHS)
    play(case, [Phase(world=1)], tmp_path / "alone")
    mine, alone = weights(f"{tmp_path}/r"), weights(str(tmp_path / "alone" / "run"))
    for name, value in alone.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)


def weights(folder: str) -> dict[str, torch.Tensor]:
    with Checkpointer(f"{folder}/checkpoints") as checkpoints:
        return dict(checkpoints.load().state["model"])
