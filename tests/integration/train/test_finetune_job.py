"""Fine-tuning by `jobs/finetune.py` on a real Ray cluster, with a power cut in the middle.

.venv/bin/python -m pytest tests/integration/train/test_finetune_job.py
"""

from __future__ import annotations

import importlib
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cluster import Job, Nodes, Run

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.finetune import TuneConfig, export, learn
from rayburst.train.weights import read_tensors, write_weights

pytestmark = pytest.mark.timeout(400)
JOB = str(Path(__file__).resolve().parents[3] / "jobs" / "finetune.py")

# What a user has in the folder that is submitted. The data is slow until there is a file `hurry`,
# so that there is time to cut.
MINE = """
import time
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Pairs(torch.utils.data.Dataset):
    def __init__(self, hurry):
        self.hurry = Path(hurry)
        self.x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if not self.hurry.exists():
            time.sleep(0.01)
        return self.x[i], self.x[i].sum(0, keepdim=True)
"""
STEPS = 200


def test_a_tuning_outlives_a_power_cut_and_exports_the_weights_of_an_undisturbed_one(
    nodes: Nodes,
    start: Callable[..., Job],
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine_to_tune.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("mine_to_tune")
    torch.manual_seed(3)
    base = mine.Net(16)
    weights = write_weights(f"{s3.uri}/base", base, {})
    nodes.ensure(2)

    hurry = tmp_path / "hurry"
    arguments = ["--model", "mine_to_tune:Net", "--model-args", json.dumps({"width": 16})]
    arguments += ["--data", "mine_to_tune:Pairs", "--data-args", json.dumps({"hurry": str(hurry)})]
    arguments += ["--loss", "torch.nn.functional:mse_loss", "--weights", weights]
    arguments += ["--lora-rank", "2", "--lora-targets", "up", "--mode", "exact", "--lr", "0.01"]
    arguments += ["--steps", str(STEPS), "--checkpoint-every", "1", "--workers", "1:2"]
    arguments += ["--run", "tuned", "--storage", f"{s3.uri}/runs"]
    job = start(JOB, *arguments, cwd=tmp_path, **s3.env)
    run = Run(f"{s3.uri}/runs/tuned", job)
    run.wait("committed")
    nodes.kill(run.wait("start", rank=1, world=2)[0]["node"])
    after = run.wait("change", rank=0, world=1)[0]
    assert 0 < after["step"] < STEPS, "cut off in the middle, it goes on"
    hurry.touch()
    assert job.wait() == 0, job.output
    result = job.result()
    assert (result["steps"], result["world_sizes"]) == (STEPS, [2, 1])

    alone = TuneConfig(
        model="mine_to_tune:Net",
        model_args={"width": 16},
        data="mine_to_tune:Pairs",
        data_args={"hurry": str(hurry)},
        loss="torch.nn.functional:mse_loss",
        weights=weights,
        lora_rank=2,
        lora_targets=("up",),
        mode="exact",
        lr=0.01,
        steps=STEPS,
    )
    folder = str(tmp_path / "alone")
    learn({**alone.to_dict(), "folder": folder})
    undisturbed = export(alone, folder)
    for part in ("weights", "adapter"):
        assert ObjectStore.open(result[part]).list(), f"{part} lie on the store"
        expected, found = read_tensors(undisturbed[part]), read_tensors(result[part])
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), f"{part}: {name}"
    tuned = mine.Net(16)
    tuned.load_state_dict(read_tensors(result["weights"]))
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    before, now = (
        torch.nn.functional.mse_loss(net(x), x.sum(1, keepdim=True)).item() for net in (base, tuned)
    )
    assert now < 0.5 * before


def test_what_cannot_be_tuned_is_refused_before_anything_starts(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    given = ("--data", "torch.nn:Linear", "--run", "x", "--storage", str(tmp_path))
    wrong = start(JOB, "--model", "nowhere:Net", *given)
    assert wrong.wait() == 2
    assert "'nowhere:Net' cannot be imported" in wrong.output
    assert "ray job submit --working-dir ." in wrong.output
