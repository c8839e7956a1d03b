"""Tokens in shards: every window once an epoch, from any position, few shards in memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import DataError
from rayburst.train.corpus import keep_text, open_corpus
from rayburst.train.order import Order
from rayburst.train.run import RunOptions, start_run
from rayburst.train.sources import Source, find_sources
from rayburst.train.text import order0_bits_per_byte, text_of
from rayburst.train.token_cache import TokenStream, write_tokens

TOKENS = np.random.default_rng(0).integers(1, 200, 10_000).astype(np.uint8)
DOCUMENTS = [part.tobytes() for part in np.array_split(TOKENS, 77)]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    made = ObjectStore.open(str(tmp_path / "cache"))
    write_tokens(made, iter(DOCUMENTS), shard_tokens=1000)
    return made


def order_of(samples: TokenStream, batch: int = 32) -> Order:
    return Order(samples=len(samples), global_batch=batch, seed=3, arrange=samples.arrange)


def test_the_shards_hold_the_text_in_its_order(store: ObjectStore) -> None:
    keys = sorted(item.key for item in store.list() if item.key.endswith(".bin"))
    whole = b"".join(store.get(key) for key in keys)
    assert whole == b"".join(document + b"\0" for document in DOCUMENTS)
    assert {len(store.get(key)) for key in keys[:-1]} == {1000}


def test_an_epoch_has_every_window_once_and_each_epoch_another_order(store: ObjectStore) -> None:
    samples = TokenStream(store, 16, seed=1, together=3)
    n = len(samples)
    order = order_of(samples)
    epochs = [order.indices(range(e * n, (e + 1) * n))[1] for e in (0, 1)]
    for indices in epochs:
        assert sorted(indices.tolist()) == list(range(n))
    assert not np.array_equal(*epochs)
    middle = order.indices(range(n // 2, n // 2 + 10))[1]
    assert np.array_equal(middle, epochs[0][n // 2 : n // 2 + 10])


def test_windows_are_text_and_their_targets_come_one_later(store: ObjectStore) -> None:
    samples = TokenStream(store, 16, seed=1)
    text = b"".join(document + b"\0" for document in DOCUMENTS)
    inputs, targets = samples.batch(np.array([0, 0, 4, 5]), np.array([0, 5, 70, 70]))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    found = [text.index(bytes(row.tolist())) for row in inputs]
    assert found[1] - found[0] == 5 * 16
    assert 0 < abs(found[3] - found[2]) < 16, "each epoch shifts the windows by up to a block"


def test_the_last_window_of_a_shard_ends_in_it_whatever_the_shift(store: ObjectStore) -> None:
    samples = TokenStream(store, 16, seed=1)
    epochs = np.arange(100)
    inputs, targets = samples.batch(epochs, np.full(100, 1000 // 16 - 2))
    assert inputs.shape == targets.shape == (100, 16)
    assert len(set(inputs[:, 0].tolist())) > 3


def test_few_shards_are_held_at_a_time(store: ObjectStore) -> None:
    samples = TokenStream(store, 16, seed=1, together=2)
    order = order_of(samples)
    for position in range(0, len(samples) - 32, 32):
        samples.batch(*order.indices(order.batch(position)))
        assert len(samples._held) <= 4


def test_a_run_over_a_cache_goes_on_in_the_middle(store: ObjectStore, tmp_path: Path) -> None:
    seen: list[list[int]] = []
    for steps in (5, 11):
        run = start_run(RunOptions(checkpoint_every_s=1e6), storage=str(tmp_path / "run"))
        torch.manual_seed(0)
        model = torch.nn.Embedding(256, 1)
        wrapped = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        samples = TokenStream(store, 16, seed=1)
        for inputs, _ in run.batches(samples, global_batch=8, steps=steps):
            run.backward(wrapped(inputs).mean())
            run.step()
            seen.append(inputs[:, 0].tolist())
    order = Order(samples=len(samples), global_batch=8, seed=0, arrange=samples.arrange)
    expected = [samples.batch(*order.indices(range(p, p + 8)))[0][:, 0] for p in range(0, 88, 8)]
    assert seen == [first.tolist() for first in expected]


def test_a_damaged_shard_and_a_missing_cache_are_refused(
    store: ObjectStore, tmp_path: Path
) -> None:
    body = bytearray(store.get("tokens-00000.bin"))
    body[0] ^= 1
    store.put("tokens-00000.bin", bytes(body))
    with pytest.raises(DataError, match=r"tokens-00000\.bin holds other bytes"):
        TokenStream(store, 16, seed=1).batch(
            np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        )
    empty = ObjectStore.open(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="write one with write_tokens"):
        TokenStream(empty, 16, seed=1)
    with pytest.raises(DataError, match="give a larger dtype"):
        write_tokens(empty, iter([b"x"]), encode=lambda _: np.array([70_000]), dtype="uint16")
    with pytest.raises(DataError, match="hold no token"):
        write_tokens(empty, iter(()))


def story(folder: Path, count: int) -> list[Source]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(f"document {i} says {i * i}\n" * (1 + i % 7))
    return find_sources([str(folder)])


def test_the_text_of_a_run_is_kept_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    sources, folder = story(tmp_path / "a", 100), ObjectStore.open(str(tmp_path / "run"))
    keep_text(folder, sources)
    text = text_of(sources)
    corpus = open_corpus(folder, block_size=16, seed=0)
    assert np.array_equal(corpus.validation, text.validation)
    assert corpus.order0_bits_per_byte == order0_bits_per_byte(text.validation)
    assert folder.get("tokens/tokens-00000.bin") == text.train.tobytes()
    assert len(corpus.samples) == text.train.size // 16 - 1

    shutil.rmtree(tmp_path / "a")
    keep_text(folder, sources)  # needs no source again
    assert open_corpus(folder, block_size=16, seed=0).samples.fingerprint == (
        corpus.samples.fingerprint
    )
    keep_text(folder, story(tmp_path / "b", 100))  # the same text at another place
    with pytest.raises(DataError, match="began with other text"):
        keep_text(folder, story(tmp_path / "b", 101))
    folder.put("tokens/validation.bin", b"x" + folder.get("tokens/validation.bin")[1:])
    with pytest.raises(DataError, match=r"validation\.bin holds other bytes"):
        open_corpus(folder, block_size=16, seed=0)
