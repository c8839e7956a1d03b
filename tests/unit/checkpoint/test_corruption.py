"""Property: damage any object of a checkpoint in any way, and the load refuses and names it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.verify import verify
from rayburst.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
)

Damage = Callable[[bytes, bytes, int], bytes | None]


def state(step: int) -> dict[str, object]:
    return {
        "w": torch.full((300_000,), float(step)),
        "v": torch.arange(1000) + step,
        "o": {"lr": 0.1 * step, "pair": (step, 2)},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one run, none of them sharing a chunk."""
    folder = tmp_path_factory.mktemp("whole")
    with Checkpointer(str(folder)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state(step), step=step, config={"seed": step})
    return folder


def flip(data: bytes, other: bytes, at: int) -> bytes:
    bit = at % (8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def truncate(data: bytes, other: bytes, at: int) -> bytes:
    return data[: at % len(data)]


def delete(data: bytes, other: bytes, at: int) -> None:
    return None


def replace(data: bytes, other: bytes, at: int) -> bytes:
    return other


def swap_halves(data: bytes, other: bytes, at: int) -> bytes:
    middle = len(data) // 2
    return data[middle:] + data[:middle]


def garble(data: bytes, other: bytes, at: int) -> bytes:
    start = at % len(data)
    return data[:start] + b"\xff" * min(64, len(data) - start) + data[start + 64 :]


def swap_a_chunk(data: bytes, other: bytes, at: int) -> bytes:
    """One chunk's place holds the chunk that another step has there."""
    start = at % len(data) // 262_144 * 262_144
    return data[:start] + other[start : start + 262_144] + data[start + 262_144 :]


DAMAGES: list[Damage] = [flip, truncate, delete, replace, swap_halves, swap_a_chunk, garble]


@settings(deadline=None, suppress_health_check=list(HealthCheck))  # 500 examples in the soak
@given(
    damage=st.sampled_from(DAMAGES),
    which=st.integers(min_value=0, max_value=10**6),
    at=st.integers(min_value=0, max_value=10**9),
)
def test_any_damage_is_refused_by_name_and_passed_over_when_asked(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, damage: Damage, which: int, at: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(whole, folder)
    store = ObjectStore.open(folder)
    manifest = Manifest.decode("m", store.get("manifests/000000000003.json"))
    keys = [*sorted(manifest.packs()), "manifests/000000000003.json"]
    key = keys[which % len(keys)]
    twin = key.replace("000000000003", "000000000002")
    if twin not in {i.key for i in store.list()}:
        older = Manifest.decode("m", store.get("manifests/000000000002.json"))
        twin = sorted(older.packs())[0]
    before = store.get(key)
    after = damage(before, store.get(twin), at)
    if after == before:
        return
    if after is None:
        store.delete(key)
    else:
        store.put(key, after)
    try:
        with Checkpointer(store) as checkpoints:
            with pytest.raises(
                (CheckpointDamagedError, CheckpointNotFoundError),
                match="step 3" if key.startswith("m") and after is None else re.escape(key),
            ):
                checkpoints.load(step=3)
            found = checkpoints.load(fallback=True)
        assert found.step == 2
        assert torch.equal(found.state["w"], torch.full((300_000,), 2.0))
        assert found.config == {"seed": 2}
        if not (key.startswith("m") and after is None):
            assert key in found.refused[0]
            assert any(key in error for error in verify(store, 3).errors)
    finally:
        shutil.rmtree(folder)


def test_a_manifest_of_another_step_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "s")
    store = ObjectStore.open(tmp_path / "s")
    store.put("manifests/000000000003.json", store.get("manifests/000000000001.json"))
    with Checkpointer(store) as checkpoints:
        with pytest.raises(CheckpointDamagedError, match="holds the manifest of step 1, not of"):
            checkpoints.load()
        assert checkpoints.load(fallback=True).step == 2


def test_a_newer_format_is_refused_with_advice(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "s")
    store = ObjectStore.open(tmp_path / "s")
    key = "manifests/000000000003.json"
    import hashlib

    body = json.loads(store.get(key))
    body.pop("sha256")
    body["version"] = 99
    text = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    seal = hashlib.sha256(text).hexdigest()
    store.put(key, text[:-1] + f',"sha256":"{seal}"}}'.encode())
    with Checkpointer(store) as checkpoints, pytest.raises(CheckpointError, match="Upgrade"):
        checkpoints.load()


def test_nothing_here_says_so(tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path)) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint here"):
            checkpoints.load()
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint of step 4"):
            checkpoints.load(step=4)


def test_a_wrong_hint_misleads_nobody(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "s")
    store = ObjectStore.open(tmp_path / "s")
    for text in (b"", b"{}", b'{"step": 99}', b'{"step": "x"}', b"[1]"):
        store.put("latest.json", text)
        with Checkpointer(store) as checkpoints:
            assert checkpoints.load().step == 3
