"""Real ranks: any saved layout loads into any other, bit-identical, on a real S3 server."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support import end_ranks

RANKS = Path(__file__).with_name("ranks.py")


def run_ranks(world: int, *args: str, timeout_s: float = 110, killed: int | None = None) -> None:
    """Run the case on `world` processes; all must succeed but one that kills itself."""
    for rank, (code, output) in enumerate(end_ranks(RANKS, world, *args, timeout_s=timeout_s)):
        assert code == (-signal.SIGKILL if rank == killed else 0), output


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


def test_ranks_of_one_machine_read_once(tmp_path: Path) -> None:
    run_ranks(3, "shared_reads", str(tmp_path / "store"), str(tmp_path))


def test_a_rank_that_dies_takes_the_save_with_it_and_nothing_else(tmp_path: Path) -> None:
    run_ranks(2, "killed_rank", str(tmp_path / "store"), str(tmp_path), killed=1)
