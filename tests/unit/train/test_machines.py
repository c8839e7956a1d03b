"""The nodes of a group, as a layout is planned for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayburst.errors import LayoutError
from rayburst.train import machines, plan_layout
from rayburst.train.gpt import PRESETS
from rayburst.train.machines import machines_of_everyone
from rayburst.train.parallel import Node
from rayburst.train.place import Place
from rayburst.train.run import start_run


def of(monkeypatch: pytest.MonkeyPatch, everyone: list[Any], memory_bytes: int | None = None):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machines, "from_everyone", lambda mine: everyone)
    return machines_of_everyone(Place(rank=0, world=len(everyone)), memory_bytes)


def test_workers_of_a_node_share_its_memory_and_gpus_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everyone = [("a", 90, True), ("b", 80, False), ("a", 90, True), ("b", 70, False)]
    assert of(monkeypatch, everyone) == [
        Node(name="a", devices=2, memory_bytes=45),
        Node(name="b", devices=2, memory_bytes=70),
    ]


def test_a_run_tells_of_its_machines_and_what_cannot_fit_them_is_refused(tmp_path: Path) -> None:
    run = start_run(storage=str(tmp_path))
    (mine,) = run.machines()
    assert mine.devices == 1
    assert mine.memory_bytes > 2**28
    small = run.machines(memory_bytes=2**20)
    assert [node.memory_bytes for node in small] == [2**20]
    with pytest.raises(LayoutError, match="does not fit 1 device"):
        plan_layout(PRESETS["micro"], small, "fp32", global_batch=8)
