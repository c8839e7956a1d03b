"""What several tests need: a small fleet file, and waiting for what should happen."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
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
    env |= {"WORLD_SIZE": str(world)}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(world)]
        processes = [
            preloaded().Process(
                target=_run_script, args=(script, args, {**env, "RANK": str(rank)}, output)
            )
            for rank, output in enumerate(outputs)
        ]
        deadline = time.monotonic() + timeout_s
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.exitcode is None]
        for process in processes:
            process.kill()
            process.join()
        told = [output.read_text() if output.exists() else "" for output in outputs]
        assert not late, f"ranks {late} have not ended in {timeout_s:.0f} s: {told}"
        return [(p.exitcode or 0, output) for p, output in zip(processes, told, strict=True)]


def preloaded() -> ForkServerContext:
    """Starts processes that have imported torch and what training needs of rayburst."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rayburst.train.run", "torch._dynamo", "numpy.random"])
    return context


def _run_script(script: Path, args: tuple[str, ...], env: dict[str, str], output: Path) -> None:
    """Main of a process whose other file descriptors are those of the server that forked it."""
    with output.open("wb") as file:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(script), *args]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
