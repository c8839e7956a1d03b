"""Real ranks: any saved layout loads into any other, bit-identical, on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_ranks

RANKS = Path(__file__).with_name("ranks.py")


@pytest.mark.timeout(300)
def test_layouts_load_into_others(s3_uri: str, tmp_path: Path) -> None:
    for world in (4, 2, 1):
        run_ranks(RANKS, world, "reshard", s3_uri, str(tmp_path))
    assert len(list(tmp_path.glob("*.pt"))) == 7


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_every_layout_loads_into_every_other(s3_uri: str, tmp_path: Path) -> None:
    for world in (1, 2, 3, 4, 3, 2, 1):
        run_ranks(RANKS, world, "reshard", s3_uri, str(tmp_path), timeout_s=200)
    assert len(list(tmp_path.glob("*.pt"))) == 8


def test_pipeline_stages_and_back_pressure_are_agreed_by_all_ranks(
    s3_uri: str, tmp_path: Path
) -> None:
    run_ranks(RANKS, 2, "pipeline", s3_uri, str(tmp_path))


def test_a_failure_on_one_rank_is_a_failure_on_all(tmp_path: Path) -> None:
    run_ranks(RANKS, 2, "failing_rank", str(tmp_path / "store"), str(tmp_path))
