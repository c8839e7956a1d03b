"""Versions never change, what is damaged is refused by name, aliases move forth and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_models import save_run, some_text

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    CheckpointError,
    DataError,
    ObjectExistsError,
    VariantError,
    VersionConflictError,
    VersionDamagedError,
    VersionError,
    VersionNotFoundError,
)
from rayburst.models import ModelRegistry, ModelVersion
from rayburst.models.manifest import decode, encode
from rayburst.train.trained import load_model


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry.open(str(tmp_path))


def publish(models: ModelRegistry, step: int, name: str = "gpt") -> ModelVersion:
    save_run(models.store.uri, "first", step=step)
    return models.publish(f"first@{step}", name=name)


def key(name: str, folder: str, number: int) -> str:
    return f"models/{name}/{folder}/{number:012}.json"


def test_a_version_knows_checkpoint_data_and_code(models: ModelRegistry, tmp_path: Path) -> None:
    address = save_run(str(tmp_path), "first", step=30, text=some_text(tmp_path))
    version = models.publish("first", name="gpt")
    assert (version.ref, version.checkpoint.uri) == ("gpt@1", address)
    assert (version.checkpoint.run, version.checkpoint.step) == ("first", 30)
    assert version.metrics["val_bits_per_byte"] == 3.5
    assert version.data.text is not None and version.data.position["step"] == 30
    assert version.code["checkpoint"].startswith("rayburst ")
    assert version.code["published with torch"] == str(torch.__version__)
    assert models.get("gpt@1") == version
    idx = torch.arange(8)[None]
    served, _ = models.load("gpt@1")
    assert torch.equal(served(idx)[0], load_model(address)[0](idx)[0])


def test_the_same_checkpoint_again_is_the_version_that_is_there(models: ModelRegistry) -> None:
    first = publish(models, 10)
    assert models.publish("first@10", name="gpt") == first
    assert publish(models, 20).version == 2
    assert models.publish("first@10", name="gpt") == first
    assert models.numbers("gpt") == [1, 2]
    assert models.publish("first@10", name="other").ref == "other@1"
    assert models.names() == ["gpt", "other"]


def test_a_version_outlives_its_run(models: ModelRegistry, tmp_path: Path) -> None:
    publish(models, 10)
    runs = models.store.child("runs")
    for item in list(runs.list()):
        runs.delete(item.key)
    with pytest.raises(CheckpointError):
        load_model(f"{tmp_path}/runs/first@10")
    assert models.verify("gpt@1").checkpoint.step == 10
    assert models.load("gpt@1")[0].config.block_size == 32


def test_production_moves_forth_and_back(models: ModelRegistry) -> None:
    for step in (10, 20, 30):
        publish(models, step)
    for number in (1, 2, 3):
        models.promote(f"gpt@{number}", why=f"step {number}")
        assert models.get("gpt").version == number
    assert models.rollback("gpt", why="it errs").version == 2
    assert models.rollback("gpt").version == 1  # two back, and not to 3, which was taken back
    assert models.get("gpt@production").version == 1
    with pytest.raises(VersionNotFoundError, match=r"no way back.*Versions: 1, 2, 3"):
        models.rollback("gpt")
    models.promote("gpt@3")
    assert models.rollback("gpt").version == 1
    told = [(m.number, m.kind, m.version) for m in models.history("gpt")]
    assert told[:4] == [(1, "promote", 1), (2, "promote", 2), (3, "promote", 3), (4, "rollback", 2)]
    assert models.history("gpt")[3].why == "it errs"
    assert models.promote("gpt@2", alias="canary").number == 1
    assert models.aliases("gpt") == {"canary": 2, "production": 1}


def test_a_promotion_of_what_is_there_moves_nothing(models: ModelRegistry) -> None:
    publish(models, 10)
    assert models.promote("gpt@1") == models.promote("gpt@1")
    assert len(models.history("gpt")) == 1


def flip(models: ModelRegistry, where: str, at: int = 40) -> None:
    data = bytearray(models.store.get(where))
    data[at] ^= 1
    models.store.put(where, bytes(data))


def test_a_changed_or_cut_manifest_is_refused_and_the_others_stay(models: ModelRegistry) -> None:
    publish(models, 10), publish(models, 20)
    models.promote("gpt@1")
    where = key("gpt", "versions", 2)
    whole = models.store.get(where)
    for bad in (whole[:-100], b"", whole.replace(b'"step":20', b'"step":10'), b"{}"):
        assert bad != whole
        models.store.put(where, bad)
        for call in (models.get, models.load, models.promote, models.verify):
            with pytest.raises(VersionDamagedError, match=r"000000000002\.json"):
                call("gpt@2")
    assert models.get("gpt").version == 1
    damaged: dict[int, VersionDamagedError] = {}
    kept = models.versions("gpt", on_damage=lambda n, e: damaged.update({n: e}))
    assert [v.version for v in kept] == [1] and list(damaged) == [2]
    models.store.put(where, models.store.get(key("gpt", "versions", 1)))
    with pytest.raises(VersionDamagedError, match="holds the manifest of gpt@1"):
        models.get("gpt@2")


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_version_without_its_whole_weights_is_never_served_nor_promoted(
    models: ModelRegistry, how: str
) -> None:
    publish(models, 10), publish(models, 20)
    models.promote("gpt@1")
    file = next(iter(models.get("gpt@2").files))
    where = f"models/gpt/{file}"
    if how == "missing":
        models.store.delete(where)
    else:
        flip(models, where, at=2000)
    for call in (models.verify, models.promote, models.load):
        with pytest.raises(VersionDamagedError, match=file):
            call("gpt@2")
    assert models.get("gpt").version == 1
    again = models.publish("first@20", name="gpt2")
    assert models.verify(again.ref)


def test_publishing_again_heals_damaged_weights(models: ModelRegistry) -> None:
    version = publish(models, 10)
    flip(models, f"models/gpt/{next(iter(version.files))}", at=2000)
    models.store.delete(key("gpt", "versions", 1))
    models.publish("first@10", name="gpt")
    assert models.verify("gpt@1")


def test_a_replaced_manifest_is_not_what_was_promoted(models: ModelRegistry) -> None:
    version = publish(models, 10)
    models.promote("gpt@1")
    where = key("gpt", "versions", 1)
    models.store.put(where, encode(version.model_copy(update={"created_ms": 1})))
    assert models.get("gpt@1").created_ms == 1  # whole, but not what was promoted
    with pytest.raises(VersionDamagedError, match="its manifest was replaced"):
        models.get("gpt@production")


def test_a_rollback_to_a_version_whose_weights_are_gone_is_refused(models: ModelRegistry) -> None:
    publish(models, 10), publish(models, 20)
    models.promote("gpt@1"), models.promote("gpt@2")
    models.store.delete(f"models/gpt/{next(iter(models.get('gpt@1').files))}")
    with pytest.raises(VersionDamagedError, match="is missing"):
        models.rollback("gpt")
    assert models.get("gpt").version == 2


class Rival(ModelRegistry):
    """Does `first` just before its own conditional write, once."""

    first: Callable[[], object] | None = None

    def _move(self, *args, **words):
        if self.first is not None:
            first, self.first = self.first, None
            first()
        return super()._move(*args, **words)


def test_of_two_moves_at_once_one_stands_and_the_other_is_told(models: ModelRegistry) -> None:
    for step in (10, 20, 30):
        publish(models, step)
    models.promote("gpt@1")
    late = Rival(models.store)
    late.first = lambda: models.promote("gpt@3")
    with pytest.raises(VersionConflictError, match="meanwhile pointed to version 3"):
        late.promote("gpt@2")
    late.first = lambda: models.promote("gpt@2")
    with pytest.raises(VersionConflictError, match="version 2"):
        late.rollback("gpt")
    assert models.get("gpt").version == 2


class LostReply:
    """A store whose first put of a key if absent is done, and whose reply is lost."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self.lost = store, 0

    def put(self, key, data, *, if_absent=False):
        tag = self.store.put(key, data, if_absent=if_absent)
        if if_absent and key.endswith(".json"):
            self.lost += 1
            raise ObjectExistsError(key)
        return tag

    def __getattr__(self, name):
        return getattr(self.store, name)


def test_a_lost_reply_neither_doubles_a_version_nor_hides_a_move(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(models.store.uri, "first", step=10)
    lossy = LostReply(models.folder("gpt"))
    monkeypatch.setattr(models, "folder", lambda name: lossy)
    version = models.publish("first@10", name="gpt")
    move = models.promote(version.ref)
    assert lossy.lost == 2
    assert (models.numbers("gpt"), move.number) == ([1], 1)
    assert models.get("gpt") == version


def test_names_that_are_none_are_told_what_there_is(models: ModelRegistry) -> None:
    with pytest.raises(VersionNotFoundError, match=r"models: none yet.*models publish"):
        models.get("gpt")
    publish(models, 10)
    for ref, told in {
        "gtp": "no model 'gtp'.*models: gpt",
        "gpt@7": "no version 7; versions: 1",
        "gpt": "points nowhere; aliases: none; versions: 1.*promote gpt@1",
        "gpt@canary": "gpt@canary points nowhere",
        "gpt@": "names no version",
        "GPT@1": "names no version",
        "gpt@0": "names no version",
        "../x@1": "names no version",
    }.items():
        with pytest.raises(VersionNotFoundError, match=told):
            models.get(ref)
    with pytest.raises(VersionError, match="cannot be named 'My GPT'"):
        models.publish("first", name="My GPT")
    with pytest.raises(VersionNotFoundError, match="'Prod' is no alias"):
        models.promote("gpt@1", alias="Prod")
    with pytest.raises(VersionNotFoundError, match="has no variant 'int4'; it has: fp32"):
        models.load("gpt@1", "int4")
    with pytest.raises(VariantError, match="'int4' is not known; there are: fp32, bf16, int8"):
        models.publish("first", name="gpt", variants=["int4"])
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        models.publish("second", name="gpt")
    with pytest.raises(DataError, match="keeps no held-out text"):
        models.publish("first", name="gpt", variants=["bf16"])
    assert models.numbers("gpt") == [1]


def test_a_newer_format_asks_for_an_upgrade(models: ModelRegistry) -> None:
    data = encode(publish(models, 10)).replace(b'"format_version":1', b'"format_version":3')
    text = data[:-77] + b"}"
    data = data[:-77] + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}'
    with pytest.raises(VersionError, match="Upgrade rayburst"):
        decode(ModelVersion, "x", data)
