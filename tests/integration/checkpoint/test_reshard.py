"""Real ranks: any saved layout loads into any other, bit-identical, on a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = Path(__file__).with_name("ranks.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(world: int, *args: str, timeout_s: float = 110) -> None:
    """Run the case on `world` processes; all must succeed. Ends what it started."""
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANKS), *args],
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
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


@pytest.mark.timeout(300)
def test_layouts_load_into_others(s3_uri: str, tmp_path: Path) -> None:
    for world in (4, 2, 1):
        run_ranks(world, "reshard", s3_uri, str(tmp_path))
    assert len(list(tmp_path.glob("*.pt"))) == 7


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_every_layout_loads_into_every_other(s3_uri: str, tmp_path: Path) -> None:
    for world in (1, 2, 3, 4, 3, 2, 1):
        run_ranks(world, "reshard", s3_uri, str(tmp_path), timeout_s=200)
    assert len(list(tmp_path.glob("*.pt"))) == 8


def test_pipeline_stages_and_back_pressure_are_agreed_by_all_ranks(
    s3_uri: str, tmp_path: Path
) -> None:
    run_ranks(2, "pipeline", s3_uri, str(tmp_path))


def test_a_failure_on_one_rank_is_a_failure_on_all(tmp_path: Path) -> None:
    run_ranks(2, "failing_rank", str(tmp_path / "store"), str(tmp_path))
