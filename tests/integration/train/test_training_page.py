"""docs/training.md shows a real loop before and after: both run, and few lines differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"


def diff_lines() -> list[str]:
    match = re.search(r"^```diff\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert match
    return match[1].splitlines()


def side(mark: str) -> dict[str, Any]:
    """The module that one side of the diff is, loaded."""
    text = "\n".join(line[1:] for line in diff_lines() if line[:1] in (mark, " ", ""))
    names: dict[str, Any] = {}
    exec(compile(text, str(PAGE), "exec"), names)
    return names


def test_at_most_ten_lines_differ() -> None:
    lines = diff_lines()
    new = [line for line in lines if line.startswith("+")]
    old = {line[1:].split(" #")[0].strip() for line in lines if line.startswith("-")}
    moved = [line for line in new if line[1:].strip() in old]
    assert 0 < len(new) - len(moved) <= 10
    assert sum(line.startswith("-") for line in lines) <= 10


def test_both_loops_learn_the_same_task(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain = side("-")["train"]({})
    elastic = side("+")["train"]({"storage": str(tmp_path / "spirals")})
    assert plain > 0.8
    assert elastic > 0.8
    again = side("+")["train"]({"storage": str(tmp_path / "spirals")})
    assert again == elastic, "the run had ended: nothing is trained again"
