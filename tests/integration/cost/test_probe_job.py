"""The probe as a job: a task on a node, a table, and a result that a program reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
SMALL = ("--layers", "1", "--width", "64", "--heads", "2", "--sequence", "32", "--steps", "2")


def probed(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, str(REPO / "jobs/probe.py"), *SMALL, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)


def test_a_probe_measures_on_a_node_and_says_what_is_wrong_before_it_asks_for_one() -> None:
    done = probed("--precision", "fp32")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert 0 < result["utilisation"] < 1 and result["peak_flops"] > result["flops_per_s"]
    wrong = probed("--heads", "5")
    assert wrong.returncode == 2
    assert "give a multiple, for example n_embd=65" in wrong.stderr
