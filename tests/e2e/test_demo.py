"""The demo does what it claims, on the real engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayburst.dev.embedded import down, fleet_dir
from rayburst.fleet import processes

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.soak  # five minutes: beyond this suite's share of CI
@pytest.mark.timeout(900)
def test_the_demo_bursts_loses_two_nodes_learns_serves_and_leaves_nothing(tmp_path):
    log = tmp_path / "demo.log"
    with log.open("w") as out:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "rayburst", "demo", "--name", "e2e"],
                cwd=tmp_path,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=840,
            )
        finally:
            if processes.owned(fleet_dir(tmp_path, "e2e").path):
                down(fleet_dir(tmp_path, "e2e"))
    told = log.read_text()
    assert done.returncode == 0, told[-4000:]
    folder = tmp_path / ".rayburst" / "e2e" / "demo"
    report = json.loads((folder / "report.json").read_text())
    assert report["job"]["status"] == "SUCCEEDED"
    training = report["training"]
    assert training["order0_bits_per_byte"] - training["val_bits_per_byte"] >= 1.0
    assert len(training["world_sizes"]) >= 2
    notice, cut = report["interruptions"]
    assert (notice["kind"], cut["kind"]) == ("notice", "cut")
    assert notice["steps_lost"] == cut["steps_lost"] == 0, "who is left holds the state"
    assert notice["gap_s"] > 0
    assert cut["gap_s"] > 0
    seconds = report["fleet"]["node_seconds"]
    assert seconds["on_prem"] > 0
    assert seconds["spot"] > 0
    assert seconds["on_demand"] == 0
    assert 0 < report["cost"]["usd"] < report["cost"]["usd_if_on_demand"]
    assert report["serving"]["requests"] == 300
    assert report["serving"]["errors"] == 0
    assert "<svg" in (folder / "report.html").read_text()
