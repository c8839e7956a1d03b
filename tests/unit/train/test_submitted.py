"""A function travels by value, or says why it cannot."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rayburst.errors import JobError
from rayburst.train.submitted import FUNCTION, SETTINGS, pack

SOURCE = """
import math

class Scale:
    by = 3

def fn(config):
    return math.floor(config["x"] * Scale.by)
"""
LOADS = """
import sys
from ray import cloudpickle
fn, config = cloudpickle.load(sys.stdin.buffer)
print(fn(config))
"""


def test_a_function_takes_its_module_along(tmp_path: Path) -> None:
    file = tmp_path / "a_notebooks_helper.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("a_notebooks_helper", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["a_notebooks_helper"] = module
    try:
        spec.loader.exec_module(module)
        pack(module.fn, {"x": 2.5}, {"run": "mine", "workers": (1, 4)}, tmp_path)
    finally:
        del sys.modules["a_notebooks_helper"]
    file.unlink()
    elsewhere = subprocess.run(
        [sys.executable, "-c", LOADS],
        input=(tmp_path / FUNCTION).read_bytes(),
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert elsewhere.stdout.strip() == b"7"
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings == {"run": "mine", "workers": [1, 4]}


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    lock = threading.Lock()

    def holds_a_lock(config: dict[str, Any]) -> None:
        lock.acquire()

    with pytest.raises(JobError, match=r"'holds_a_lock' cannot be sent.*open files, locks"):
        pack(holds_a_lock, {}, {}, tmp_path)
