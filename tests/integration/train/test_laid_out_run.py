"""A model in a layout as an elastic run: a group that lost a member leaves a whole, smaller layout.

.venv/bin/python -m pytest tests/integration/train/test_laid_out_run.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_cluster import Job, Nodes, Run
from training_ranks import LAID_OUT_STEPS, Case, Phase, play, samples_by_step

from rayburst.train.trained import load_model

pytestmark = pytest.mark.timeout(600)
JOB = str(Path(__file__).resolve().parents[3] / "jobs" / "train_lm.py")
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
        pytest.param(
            "shard=2,pipeline=2", 1, "shard=2,pipeline=2", "pipeline=2", [2], marks=pytest.mark.soak
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
    groups = 2  # both members of a group read the same samples
    assert {s: sorted(x) for s, x in trained.items() if s > resumed} == {
        s: sorted(x * groups) for s, x in expected.items() if s > resumed
    }
    weights = {r["weights"] for r in log if r["kind"] == "end"}
    assert len(weights) == 1, "all ranks, the spare one too, tell of the same weights"


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
