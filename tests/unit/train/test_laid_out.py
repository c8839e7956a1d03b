"""A model in a layout as a run, in one process; and the whole mesh of a group that has just met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_ranks import Counting, learn_laid_out

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ExactModeError, LayoutError, RunLeftError, TrainError
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.notices import Notice
from rayburst.train.parallel import Device, Layout, ParallelOptions, whole_mesh
from rayburst.train.run import RunOptions, start_run
from rayburst.train.runlog import read_folder

SMALL = GPTConfig(vocab_size=64, block_size=16, n_layer=1, n_head=2, n_embd=16)


def adamw(parameters: list[Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def steps_of(folder: Path) -> list[tuple[int, float]]:
    log = read_folder(ObjectStore.open(str(folder)))
    return [(r["step"], r["loss"]) for r in log if r["kind"] == "step"]


def test_a_run_in_a_layout_leaves_resumes_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    def go(folder: Path, leaves_at: int) -> None:
        def notice() -> Notice | None:
            is_time = run.steps_done >= leaves_at
            return Notice(deadline_s=None, reason="declared") if is_time else None

        run = start_run(storage=str(folder), notices=notice)
        learn_laid_out(run, "", lambda samples: None, 6)

    go(tmp_path / "calm", 99)
    with pytest.raises(RunLeftError):
        go(tmp_path / "shaken", 3)
    go(tmp_path / "shaken", 99)
    assert steps_of(tmp_path / "shaken") == steps_of(tmp_path / "calm")
    ends = [
        record["weights"]
        for name in ("calm", "shaken")
        for record in read_folder(ObjectStore.open(str(tmp_path / name)))
        if record["kind"] == "end"
    ]
    assert len(ends) == 2
    assert ends[0] == ends[1]


def test_float16_skips_the_steps_in_which_it_looks_for_its_scale(tmp_path: Path) -> None:
    run = start_run(storage=str(tmp_path))
    torch.manual_seed(0)
    model = run.lay_out(GPT(SMALL), ParallelOptions(precision="fp16"), adamw)
    losses = []
    for _, x, y in run.batches(Counting(), global_batch=8, steps=4):
        run.backward(model(x, y))
        run.step()
        losses.append(model.evaluate(x, y))
    assert run.steps_done == 4
    assert losses[-1] < 4.5


def test_what_does_not_go_with_a_layout_is_refused_with_what_does(tmp_path: Path) -> None:
    def lay_out(**options: Any) -> Any:
        run = start_run(RunOptions(**options), storage=str(tmp_path))
        return run, run.lay_out(GPT(SMALL), ParallelOptions(), adamw)

    with pytest.raises(ExactModeError, match=r"run\.prepare in place of run\.lay_out"):
        lay_out(mode="exact")
    with pytest.raises(TrainError, match=r"ParallelOptions\(micro_batch=2\)"):
        lay_out(micro_batch=2)
    run, _ = lay_out()
    with pytest.raises(TrainError, match=r"run\.backward\(model\(inputs, targets\)\)"):
        for _, x, _y in run.batches(Counting(), global_batch=8, steps=1):
            run.backward(x.float().mean())


def devices(text: str) -> list[Device]:
    """ "aab": ranks 0 and 1 on node a, rank 2 on b."""
    return [Device(node=name, index=rank) for rank, name in enumerate(text)]


@pytest.mark.parametrize(
    ("layout", "where", "expected", "ranks", "spare"),
    [
        ("tensor=2", "aabb", "data=2,tensor=2", (0, 1, 2, 3), ()),
        ("tensor=2", "aab", "tensor=2", (0, 1), (2,)),
        ("tensor=2", "abb", "tensor=2", (1, 2), (0,)),
        ("tensor=2", "aaabbb", "data=2,tensor=2", (0, 1, 3, 4), (2, 5)),
        ("pipeline=2", "abc", "pipeline=2", (0, 1), (2,)),
        ("shard=4", "abc", "shard=3", (0, 1, 2), ()),
        ("shard=2", "abcd", "data=2,shard=2", (0, 1, 2, 3), ()),
        ("shard=2,pipeline=2", "abc", "pipeline=2", (0, 1), (2,)),
        ("", "abc", "data=3", (0, 1, 2), ()),
    ],
)
def test_a_group_that_has_met_becomes_the_largest_whole_mesh(
    layout: str, where: str, expected: str, ranks: tuple[int, ...], spare: tuple[int, ...]
) -> None:
    found = whole_mesh(Layout.parse(layout), devices(where))
    assert (found.layout, found.ranks, found.spare) == (Layout.parse(expected), ranks, spare)


def test_a_group_without_one_whole_mesh_says_what_is_missing() -> None:
    with pytest.raises(LayoutError, match="0 whole groups of 2 ranks"):
        whole_mesh(Layout.parse("tensor=2"), devices("ab"))
    with pytest.raises(LayoutError, match="3 are needed"):
        whole_mesh(Layout.parse("shard=4"), devices("ab"), least_shard=3)
    with pytest.raises(LayoutError, match="not neighbours"):
        whole_mesh(Layout.parse("tensor=2"), devices("abab"))
