"""The language model in a layout: the same learning and the same served model as without one."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import LayoutError
from rayburst.train import lm_worker
from rayburst.train.corpus import keep_text
from rayburst.train.lm_config import LMConfig
from rayburst.train.run import start_run
from rayburst.train.sources import find_sources
from rayburst.train.trained import load_model


def test_a_run_in_a_layout_of_one_process_ends_as_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i} bears met {i % 7} wolves" for i in range(4000)))
    monkeypatch.setattr(lm_worker, "FINAL_WINDOWS", 40)
    found = {}
    options = {"layout": "auto", "precision": "fp32", "recompute": True}
    for name, given in (("plain", {}), ("laid-out", options)):
        uri = str(tmp_path / name)
        keep_text(ObjectStore.open(uri), find_sources((str(text),), "text"))
        monkeypatch.setattr(lm_worker, "start_run", partial(start_run, storage=uri))
        config = LMConfig(
            run=name, storage=str(tmp_path), data=(str(text),), steps=2, global_batch=2,
            **given,
        )  # fmt: skip
        lm_worker.train(asdict(config.filled()))
        found[name] = load_model(uri)
    (plain, meta), (laid_out, other) = found["plain"], found["laid-out"]
    assert meta["step"] == other["step"] == 2
    assert other["val_bits_per_byte"] == pytest.approx(meta["val_bits_per_byte"], rel=1e-4)
    assert laid_out.head.weight is laid_out.token_embedding.weight
    for (name, one), two in zip(plain.named_parameters(), laid_out.parameters(), strict=True):
        assert two.detach() == pytest.approx(one.detach(), abs=1e-5), name


def test_a_layout_that_cannot_be_is_refused() -> None:
    with pytest.raises(LayoutError, match="is not understood"):
        LMConfig(run="r", storage="s", layout="rows=2")
    with pytest.raises(ValueError, match="Give one of the two"):
        LMConfig(run="r", storage="s", layout="tensor=2", mode="exact")
