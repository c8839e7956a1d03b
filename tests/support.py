"""What several tests need: a small fleet file, and waiting for what should happen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SPEC = """
name: {name}
object_store: {{kind: embedded}}
limits: {{idle_timeout: 8s, drain: 10s}}
pools:
  - {{name: rack, kind: process, market: on-prem, shape: {{cpus: 1, memory: 1GiB}},
     price: 0.35 USD/h, hosts: {{max: 1}}}}
  - {{name: spot-a, kind: process, market: spot, shape: {{cpus: 1, memory: 1GiB}},
     price: 0.92 USD/h, hosts: {{max: 1}}}}
  - {{name: cloud, kind: process, market: on-demand, shape: {{cpus: 1, memory: 1GiB}},
     price: 3.06 USD/h, hosts: {{max: 1}}}}
"""


def wait_for(probe: Callable[[], T | None], *, what: str, timeout_s: float = 90) -> T:
    """Poll the system under test until `probe` gives something; a failure says what was missing."""
    deadline = time.monotonic() + timeout_s
    while (found := probe()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.2)
    return found


def write_spec(folder: Path, name: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(SPEC.format(name=name))
    return file


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(script: Path, world: int, *args: str, timeout_s: float = 110) -> None:
    """Run `script` as torchrun does; all processes must succeed. Ends what it started."""
    for rank, (code, output) in enumerate(end_ranks(script, world, *args, timeout_s=timeout_s)):
        assert code == 0, f"rank {rank}: {output}"


def end_ranks(
    script: Path, world: int, *args: str, timeout_s: float = 110
) -> list[tuple[int, str]]:
    """Run `script` as torchrun does until all processes have ended: exit codes and outputs."""
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *args],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [p.communicate(timeout=timeout_s)[0] for p in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]
