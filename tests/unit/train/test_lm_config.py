"""The main job's settings, and what its command line makes of them."""

import argparse
from pathlib import Path

import pytest

from rayburst.train.gpt import PRESETS
from rayburst.train.lm import default_storage, worker_range
from rayburst.train.lm_config import TRAINING, LMConfig


def test_every_preset_has_settings() -> None:
    assert set(TRAINING) == set(PRESETS)


def test_zeros_take_the_presets_values_and_numbers_stay() -> None:
    config = LMConfig(run="r", storage="s", steps=7).filled()
    assert config.steps == 7
    assert config.global_batch == TRAINING["micro"].global_batch
    assert config.lr == TRAINING["micro"].lr
    assert config.filled() == config


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"preset": "giant"}, "Known: micro, tiny, small, gpt2"),
        ({"run": "a/b"}, "without '/'"),
        ({"run": ""}, "give a name"),
        ({"steps": -1}, "steps=-1"),
        ({"least": 0}, "1 <= MIN <= MAX"),
        ({"least": 3, "most": 2}, "1:4"),
        ({"most": 4, "global_batch": 3}, "give at least 4"),
        ({"most": 33}, "global batch of 32"),
        ({"precision": "bf16"}, "Add layout='auto'"),
        ({"recompute": True}, "Add layout='auto'"),
        ({"layout": "auto", "precision": "fp8"}, "one of fp32, bf16, fp16"),
        ({"layout": "auto", "mode": "exact"}, "Give one of the two"),
        ({"layout": "tensor=2", "device_memory_gb": 2.0}, "in layout='auto' only"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LMConfig(**{"run": "r", "storage": "s", **fields})  # type: ignore[arg-type]


def test_worker_ranges() -> None:
    assert worker_range("1:4") == (1, 4)
    assert worker_range("3") == (3, 3)
    for wrong in ("", "a", "1:b", ":", "1:-2", "1:2:3"):
        with pytest.raises(argparse.ArgumentTypeError, match="MIN:MAX"):
            worker_range(wrong)


def test_storage_is_the_fleets_or_said_to_be_local() -> None:
    said: list[str] = []
    assert default_storage({"RAYBURST_STORE": "s3://b/"}, said.append) == "s3://b/runs"
    assert said == []
    assert default_storage({}, said.append) == str(Path.home() / "rayburst" / "runs")
    assert "this machine only" in said[0]
