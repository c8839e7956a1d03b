"""Faults of a search at known steps: a trial that comes to one waits there until it has happened.

    gated(train, {"1:3": "notice", "0:8": "cut", "0:18": "kill"}, folder)

The keys are trial:step. At a gate the trial has a checkpoint, and writes the id of its node into
`folder`; `Gates` reads it in the test, which then gives notice, cuts the node off or kills the job.
Each gate opens once: a trial that comes by again passes. Sent to workers by value, so that they
need no path to this folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LEAVES_BEFORE_S = 4.0  # a trial's margin: it uses its node up to so long before the deadline


def gated(
    train: Callable[..., None], faults: Mapping[str, str], folder: str
) -> Callable[..., None]:
    def run(settings: dict[str, Any], trial: Any) -> None:
        import ray

        node, own = ray.get_runtime_context().get_node_id(), trial.reached
        starts = Path(folder) / f"nodes-{trial.number}"
        with starts.open("a") as file:
            file.write(f"{node}\n")
        started = len(starts.read_text().split())

        is_told = False

        def reached(step: int, measure: Callable[[], float]) -> None:
            nonlocal is_told
            if not is_told:  # a trial that is stopped or cut off loses the last second of its log
                is_told = True
                _wait(lambda: _starts_told(trial) >= started)
            own(step, measure)
            kind = faults.get(f"{trial.number}:{step}")
            if kind is not None:
                _wait(lambda: _is_saved(trial))
                if _comes_first(Path(folder) / f"gate-{trial.number}:{step}", node):
                    _wait(lambda: kind == "notice" and _must_leave(trial))

        trial.reached = reached
        train(settings, trial)

    return run


def _starts_told(trial: Any) -> int:
    from rayburst.checkpoint.store import ObjectStore
    from rayburst.train.runlog import read_folder

    log = read_folder(ObjectStore.open(trial.folder))
    return sum(record["kind"] == "start" for record in log)


def _is_saved(trial: Any) -> bool:
    from rayburst.checkpoint import latest

    return latest(f"{trial.folder}/checkpoints") is not None


def _comes_first(gate: Path, node: str) -> bool:
    part = gate.with_name(f"part-{gate.name}-{os.getpid()}")
    part.write_text(node)
    try:
        os.link(part, gate)
    except FileExistsError:
        return False
    return True


def _must_leave(trial: Any) -> bool:
    notice = trial._notices()
    return notice is not None and time.time() >= notice.deadline_s - LEAVES_BEFORE_S


def _wait(is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not is_over():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing happened at this gate")
        time.sleep(0.1)


class Gates:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def node_at(self, gate: str) -> str | None:
        """The node of the trial that waits at, or has passed, `trial:step`."""
        path = self.folder / f"gate-{gate}"
        return path.read_text() if path.exists() else None

    def nodes_of(self, trial: int) -> list[str]:
        """Where the trial started, in order."""
        return (self.folder / f"nodes-{trial}").read_text().split()
