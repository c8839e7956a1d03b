"""Format 1 stays readable: by rayburst, and by who knows docs/checkpoint-format.md alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.manifest import FORMAT_VERSION, Manifest

FIXTURE = Path(__file__).parents[2] / "fixtures" / "checkpoint-v1"
DTYPES = {"float32": "<f4", "bfloat16": "<u2", "int64": "<i8", "bool": "?"}


def read_as_documented(root: Path, step: int) -> dict[Any, Any]:
    """A reader written from the page alone: no rayburst, no torch."""
    raw = (root / f"manifests/{step:012d}.json").read_bytes()
    body = json.loads(raw)
    assert hashlib.sha256(raw[:-77] + b"}").hexdigest() == body["sha256"]
    assert (body["format"], body["version"], body["step"]) == ("rayburst-checkpoint", 1, step)

    def joined(chunks: list[Any]) -> bytes:
        parts = []
        for digest, pack, offset, length in chunks:
            data = (root / body["packs"][pack]).read_bytes()[offset : offset + length]
            assert xxhash.xxh3_128_hexdigest(data) == digest
            parts.append(data)
        return b"".join(parts)

    leaves: dict[str, Any] = {}
    for name, tensor in body["tensors"].items():
        whole = np.zeros(tensor["shape"], DTYPES[tensor["dtype"]])
        for offset, shape, _, chunks in tensor["shards"]:
            box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
            whole[box] = np.frombuffer(joined(chunks), whole.dtype).reshape(shape)
        leaves[name] = whole
    for name, (encoding, _, chunks) in body["objects"].items():
        leaves[name] = json.loads(joined(chunks)) if encoding == "json" else None
    root_map: dict[Any, Any] = {}
    for name, path in body["paths"]:
        here: Any = root_map
        for part, following in zip(path, [*path[1:], None], strict=True):
            key = part[0] if isinstance(part, list) else part
            key = key["int"] if isinstance(key, dict) else key
            fresh = leaves[name] if following is None else [] if isinstance(following, list) else {}
            if isinstance(here, list):
                here.extend([fresh] if len(here) <= key else [])
            else:
                here.setdefault(key, fresh)
            here = here[key]
    return root_map


def test_the_page_is_enough_to_read_a_checkpoint() -> None:
    state = read_as_documented(FIXTURE, 2)
    expected = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    np.testing.assert_array_equal(state["model"]["w"], expected)
    assert state["model"]["b"].tolist() == [0x3FC0, 0xC000]  # 1.5 and -2 as bfloat16
    assert state["model"]["scalar"] == 7
    assert state["model"]["empty"].shape == (0, 3)
    assert state["optimizer"]["state"][0]["step"] == 5
    assert state["optimizer"]["param_groups"][0]["betas"] == [0.9, 0.99]
    assert (state["nothing"], state["epoch"]) == ({}, 4)


def test_the_stored_checkpoint_loads(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "s")
    with Checkpointer(str(tmp_path / "s")) as checkpoints:
        found = checkpoints.load()
        assert [listed.step for listed in checkpoints.list()] == [1, 2]
        first = checkpoints.load(step=1)
    expected = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    assert torch.equal(found.state["model"]["w"], expected + 1)
    assert torch.equal(first.state["model"]["w"], expected)
    assert found.state["pair"] == (1, 2)
    assert list(found.state) == ["model", "optimizer", "nothing", "epoch", "pair"]
    assert (found.step, found.data, found.rng()) == (2, {"shard": 3, "offset": 17}, {"seed": 9})
    assert (found.config, found.metrics) == ({"layers": 2}, {"loss": 0.5})
    parent = found.manifest.parent
    assert parent is not None
    assert (parent.step, parent.save) == (1, "000000000001-fixture")
    assert found.manifest.about["code"] == "fixture"


def test_a_manifest_reads_back_as_it_was_written() -> None:
    data = (FIXTURE / "manifests/000000000002.json").read_bytes()
    manifest = Manifest.decode("fixture", data, step=2)
    assert manifest.encode() == data
    assert FORMAT_VERSION == 1, "a new version needs a new fixture, and this one stays readable"
