"""A model in a layout as an elastic run: a group that lost a member leaves a whole, smaller layout.

.venv/bin/python -m pytest tests/integration/train/test_laid_out_run.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import laid_out_job
import pytest
from support import wait_for
from training_cluster import Job, Nodes, Run
from training_ranks import LAID_OUT_STEPS, Case, Phase, play, samples_by_step

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.parallel import Layout
from rayburst.train.runlog import read_folder
from rayburst.train.trained import load_model

pytestmark = pytest.mark.timeout(600)
JOB = str(Path(__file__).resolve().parents[3] / "jobs" / "train_lm.py")
LAID_OUT_JOB = laid_out_job.__file__
FAST = {"mode": "fast"}


def losses_of(log: list[dict[str, Any]]) -> list[float]:
    """By step, as rank 0 had them last."""
    by_step = {r["step"]: r["loss"] for r in log if r["kind"] == "step" and r["rank"] == 0}
    return [by_step[step] for step in sorted(by_step)]


def layouts_of(log: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    return [(r["layout"], r["spare"]) for r in log if r["kind"] == "layout" and r["rank"] == 0]


@pytest.mark.parametrize(
    ("layout", "lost", "first", "then", "spare"),
    [
        ("pipeline=2", 0, "pipeline=2,data=2", "pipeline=2", [2]),
        ("tensor=2", 3, "tensor=2,data=2", "tensor=2", [2]),
        ("shard=2", 1, "data=2,shard=2", "shard=2", [2]),
        ("auto", 2, "data=4", "shard=3", []),
        *(
            pytest.param(*given, marks=pytest.mark.soak)
            for given in (
                ("", 3, "data=4", "data=3", []),
                ("shard=4", 0, "shard=4", "shard=3", []),
                ("shard=2,tensor=2", 2, "shard=2,tensor=2", "tensor=2", [2]),
                ("shard=2,pipeline=2", 1, "shard=2,pipeline=2", "pipeline=2", [2]),
            )
        ),
    ],
)
def test_a_lost_member_leaves_a_whole_smaller_layout_that_learns_as_one_process(
    tmp_path: Path, layout: str, lost: int, first: str, then: str, spare: list[int]
) -> None:
    cut = Phase(4, "cut", 3, ranks=(lost,))
    case = Case(options=FAST, layout=layout)
    log = play(case, [cut, Phase(3)], tmp_path / "cut")
    began, ended = layouts_of(log)
    assert {part for part in first.split(",")} == set(began[0].split(","))
    assert (began[1], ended) == ([], (then, spare))
    resumed = [r["step"] for r in log if r["kind"] == "start" and r["rank"] == 0][-1]
    assert 0 < resumed < LAID_OUT_STEPS, "it went on from a checkpoint of the other layout"
    one = play(Case(options=FAST, layout=""), [Phase(1)], tmp_path / "one")
    assert losses_of(log) == pytest.approx(losses_of(one), rel=1e-3)
    trained = samples_by_step(tmp_path / "cut")
    expected = samples_by_step(tmp_path / "one")
    ended_as = Layout.parse(then)
    groups = ended_as.tensor * ended_as.pipeline  # all members of a group read the same samples
    assert {s: sorted(x) for s, x in trained.items() if s > resumed} == {
        s: sorted(x * groups) for s, x in expected.items() if s > resumed
    }
    weights = {r["weights"] for r in log if r["kind"] == "end"}
    assert len(weights) == 1, "all ranks, the spare one too, tell of the same weights"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("layout", "per_node", "first", "then", "spare"),
    [
        ("", 1, "data=4", "data=3", []),
        ("shard=4", 1, "shard=4", "shard=3", []),
        ("shard=2", 1, "data=2,shard=2", "shard=2", [2]),
        ("tensor=2", 2, "data=2,tensor=2", "tensor=2", []),
        ("pipeline=2", 1, "data=2,pipeline=2", "pipeline=2", [2]),
        ("shard=2,tensor=2", 2, "shard=2,tensor=2", "tensor=2", []),
        ("shard=2,pipeline=2", 1, "shard=2,pipeline=2", "pipeline=2", [2]),
    ],
)
def test_on_ray_each_layout_that_lost_a_node_ends_in_a_whole_smaller_one(
    nodes: Nodes,
    start: Callable[..., Job],
    tmp_path: Path,
    layout: str,
    per_node: int,
    first: str,
    then: str,
    spare: list[int],
) -> None:
    nodes.ensure(0)
    for _ in range(4 // per_node):
        nodes.add(cpus=per_node)
    gate = tmp_path / "gate"
    config = {"layout": layout, "steps": LAID_OUT_STEPS, "least": 1, "most": 4, "lost": 3, "at": 3}
    config |= {"run": "r", "storage": str(tmp_path), "gate": str(gate)}
    job = start(LAID_OUT_JOB, json.dumps(config))
    run = Run(f"{tmp_path}/r", job)

    def lost() -> str | None:
        assert job.process.poll() is None, f"the job ended early:\n{job.output}"
        return gate.read_text() if gate.exists() else None

    nodes.kill(wait_for(lost, what="the worker that is to be lost", timeout_s=200))
    assert job.wait() == 0, job.output
    log = run.records("start", rank=0) + run.records("layout") + run.records("step")
    assert layouts_of(log) == [(first, []), (then, spare)]
    worlds = [(r["world"], r["step"]) for r in log if r["kind"] == "start"]
    assert [world for world, _ in worlds] == [4, 4 - per_node]
    assert worlds[0][1] == 0 < worlds[1][1] <= 3, "from a checkpoint of the larger layout"
    assert len({r["weights"] for r in run.records("end")}) == 1
    alone = tmp_path / "alone"
    laid_out_job.train({"layout": "", "steps": LAID_OUT_STEPS, "folder": str(alone)})
    one = losses_of(read_folder(ObjectStore.open(str(alone))))
    assert losses_of(log) == pytest.approx(one, rel=1e-3)


@pytest.mark.soak
def test_on_ray_a_pipeline_that_lost_a_stage_goes_on_as_a_smaller_layout(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i} bears met {i % 7} wolves" for i in range(20000)))
    nodes.ensure(4)
    arguments = ["--run", "laid-out", "--storage", str(tmp_path), "--data", str(text)]
    arguments += ["--layout", "pipeline=2", "--workers", "2:4", "--steps", "60"]
    job = start(JOB, *arguments, "--global-batch", "8", "--checkpoint-every", "1")
    run = Run(f"{tmp_path}/laid-out", job)
    run.wait("committed")
    assert run.records("layout", rank=0)[0]["layout"] == "data=2,pipeline=2"
    nodes.kill(run.wait("start", rank=3, world=4)[0]["node"])
    after = run.wait("start", rank=0, world=3)[0]
    assert 0 < after["step"] < 60, "it goes on from a checkpoint of the larger layout"
    assert job.wait() == 0, job.output
    last = run.records("layout", rank=0)[-1]
    assert (last["layout"], last["spare"]) == ("pipeline=2", [2])
    assert {r["step"] for r in run.records("step")} == set(range(1, 61))
    result = job.result()
    assert result["world_sizes"] == [4, 3]
    assert result["val_bits_per_byte"] < result["order0_bits_per_byte"]
    model, meta = load_model(run.folder.uri)
    assert meta["step"] == 60
    assert model.head.weight is model.token_embedding.weight
