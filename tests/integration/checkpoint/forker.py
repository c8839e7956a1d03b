"""Runs checkpoint work in fresh processes that may be killed: forks them from one warm parent.

Reads one JSON command a line, forks, runs the case, and answers with the exit status (negative
for a signal) and what the child said. A fork costs milliseconds where an interpreter with torch
costs seconds. Nothing that starts threads is touched before the fork.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import sys
from enum import Enum
from typing import Any

import torch

from rayburst.checkpoint.checkpointer import Checkpointer, Options
from rayburst.checkpoint.gc import collect, plan_gc
from rayburst.checkpoint.protocol import GcStep, SaveStep
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore


def state_at(step: int, seed: int = 0) -> dict[str, Any]:
    """A state of which a tenth changes from step to step; the same at every call."""
    base = torch.arange(400_000, dtype=torch.float32) + seed
    tenth = base.numel() // 10
    start = (step % 10) * tenth
    base[start : start + tenth] = float(step)
    small = {
        f"p{i}": torch.full((37,), float(i + (step if i % 7 == step % 7 else 0))) for i in range(40)
    }
    return {"w": base, "small": small, "step": step}


def killer(at: str | None, occurrence: int = 1) -> Any:
    """A hook that kills this very process at the n-th time the step is reached."""
    seen = 0

    def reached(step: Enum) -> None:
        nonlocal seen
        if at is not None and step.name == at:
            seen += 1
            if seen == occurrence:
                os.kill(os.getpid(), signal.SIGKILL)

    return reached


def save_steps(say: Any, uri: str, steps: list[int], kill_at: str | None, occurrence: int) -> None:
    """Save the steps one after the other; say each that was acknowledged."""
    options = Options(reached=killer(kill_at, occurrence))
    with Checkpointer(uri, options) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), step=step, data={"pos": step})
            say(step)


def save_until_killed(say: Any, uri: str, first: int, last: int, seed: int) -> None:
    """Save steps and be killed at a random moment of a random one, or reach the end."""
    draw = random.Random(seed)
    steps = [s.name for s in SaveStep]
    kill_at, occurrence = draw.choice(steps), draw.randint(1, 4)
    save_steps(say, uri, list(range(first, last)), kill_at, occurrence)


def stalled_save(say: Any, uri: str, step: int) -> None:
    """Take the lease, say so, and wait to be killed."""

    def reached(at: SaveStep) -> None:
        if at is SaveStep.PACKS_DONE:
            say("stalled")
            signal.pause()

    with Checkpointer(uri, Options(reached=reached)) as checkpoints:
        checkpoints.save(state_at(step), step=step)


def collect_once(say: Any, uri: str, kill_at: str | None, occurrence: int) -> None:
    """Keep the newest three and collect; be killed at the n-th time the step is reached."""
    store = ObjectStore.open(uri)
    done = collect(
        store,
        plan_gc(store, Retention(newest=3)),
        grace_s=0,
        lease_s=0,
        new_id=lambda: secrets.token_hex(4),
        reached=killer(kill_at, occurrence),
    )
    say([done.stored_bytes, done.referenced_bytes])


def collect_and_be_killed(say: Any, uri: str, seed: int) -> None:
    """Collect and be killed at a random moment, or reach the end."""
    draw = random.Random(seed)
    collect_once(say, uri, draw.choice([s.name for s in GcStep]), draw.randint(1, 3))


CASES = {
    f.__name__: f
    for f in (save_steps, save_until_killed, stalled_save, collect_once, collect_and_be_killed)
}


def run(command: dict[str, Any]) -> dict[str, Any]:
    """Fork, run, wait."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            say = lambda word: os.write(write, f"{json.dumps(word)}\n".encode())  # noqa: E731
            os.environ.update(command.get("env", {}))
            CASES[command["case"]](say, **command["args"])
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    os.close(write)
    said = b""
    while part := os.read(read, 65536):
        said += part
        if b'"stalled"' in said:
            os.kill(pid, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    words = [json.loads(line) for line in said.splitlines()]
    return {"status": os.waitstatus_to_exitcode(status), "said": words}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
