"""The job scripts as a user runs them: `ray job submit` on a fleet whose hosts come for the work.

.venv/bin/python -m pytest tests/integration/train/test_submitted_jobs.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayburst.checkpoint.store import ObjectStore
from rayburst.dev.embedded import down, up
from rayburst.fleet.layout import user_environment
from rayburst.train.trained import load_model
from rayburst.train.weights import read_tensors

REPO = Path(__file__).resolve().parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
SPEC = """
name: jobs
object_store: {kind: embedded}
limits: {idle_timeout: 30s, drain: 5s}
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB},
     price: 0.35 USD/h, hosts: {max: 4}}
"""
MINE = """
import torch


class Pairs(torch.utils.data.Dataset):
    def __init__(self):
        self.x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return self.x[i], self.x[i].sum(0, keepdim=True)
"""
COMMANDS = {
    "tuned": "finetune.py --run tuned --model torch.nn:Linear --data mine:Pairs "
    """--model-args '{"in_features": 4, "out_features": 1}' """
    "--loss torch.nn.functional:mse_loss --steps 40 --lr 0.1",
    "searched": "tune_lm.py --run searched --set lr=log:1e-4..1e-2 --trials 2 --steps 4 "
    "--first-rung 2 --at-once 1",
    "laid-out": "train_lm.py --run laid-out --layout pipeline=2 --workers 2:2 --steps 3 "
    "--global-batch 4",
}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user of a fleet that is up."""
    file = tmp_path / "fleet.yaml"
    file.write_text(SPEC)
    fleet = up(file, root=tmp_path)
    try:
        yield {**os.environ, **user_environment(fleet, fleet.read_state())}
    finally:
        assert down(fleet).clean


@pytest.mark.soak  # two minutes: beyond this suite's share of CI
@pytest.mark.timeout(400)
def test_fine_tuning_a_search_and_a_layout_are_submitted_and_end_with_their_results(
    shell: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(REPO / "jobs", folder)
    (folder / "mine.py").write_text(MINE)
    (folder / "text.txt").write_text("\n".join(f"{i} bears met {i % 7}" for i in range(9000)))
    submitted = {}
    for name, command in COMMANDS.items():
        data = "" if name == "tuned" else " --data text.txt"
        words = f"python {command}{data}"
        submitted[name] = subprocess.Popen(
            [RAY, "job", "submit", "--working-dir", str(folder), "--", "sh", "-c", words],
            env=shell,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    results: dict[str, Any] = {}
    for name, process in submitted.items():
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"{name}: {told[-4000:]}"
        line = next(x for x in told.splitlines() if x.startswith("RESULT "))
        results[name] = json.loads(line.removeprefix("RESULT "))

    for name, value in shell.items():
        if name.startswith(("AWS_", "RAYBURST_")):
            monkeypatch.setenv(name, value)
    tuned = torch.nn.Linear(4, 1)
    tuned.load_state_dict(read_tensors(results["tuned"]["weights"]))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    assert torch.nn.functional.mse_loss(tuned(x), x.sum(1, keepdim=True)) < 1.0, "4 untuned"
    best = results["searched"]["best"]
    assert len(results["searched"]["trials"]) == 2
    assert load_model(best["checkpoint"])[1]["step"] == 4
    runs = ObjectStore.open(f"{shell['RAYBURST_STORE']}/runs")
    assert b"<svg" in runs.get("searched/search.html")
    laid_out = results["laid-out"]
    assert (laid_out["steps"], laid_out["world_sizes"]) == (3, [2])
    assert load_model(laid_out["checkpoint"])[1]["step"] == 3
