"""Training text: sources, split, batches, entropy."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.errors import DataError
from rayburst.train.permutation import permute
from rayburst.train.sources import documents, find_sources
from rayburst.train.text import load_text, order0_bits_per_byte, windows


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03}.txt").write_text(f"document {i} says {i * i}\n" * (1 + i % 7))
    return folder


def split_documents(data: np.ndarray) -> list[bytes]:
    return data.tobytes().split(b"\0")[:-1]


def test_split_covers_every_document_once_and_repeats(corpus: Path, tmp_path: Path) -> None:
    text = load_text([str(corpus)], cache=tmp_path / "cache")
    train, held = split_documents(text.train), split_documents(text.validation)
    originals = [path.read_bytes() for path in sorted(corpus.iterdir())]
    assert Counter(train + held) == Counter(originals)
    assert set(train).isdisjoint(held)
    assert 1 <= len(held) <= 30
    again = load_text([str(corpus)], cache=tmp_path / "elsewhere")
    assert again.fingerprint == text.fingerprint
    assert np.array_equal(again.train, text.train)


def test_copies_of_a_document_stay_on_one_side(corpus: Path, tmp_path: Path) -> None:
    for path in list(corpus.iterdir()):
        (corpus / f"copy-{path.name}").write_bytes(path.read_bytes())
    text = load_text([str(corpus)], cache=tmp_path / "cache")
    assert set(split_documents(text.train)).isdisjoint(split_documents(text.validation))


def test_the_cache_follows_the_files(corpus: Path, tmp_path: Path) -> None:
    before = load_text([str(corpus)], cache=tmp_path / "cache")
    (corpus / "999.txt").write_text("one more\n")
    after = load_text([str(corpus)], cache=tmp_path / "cache")
    assert after.documents == before.documents + 1
    assert after.fingerprint != before.fingerprint


def test_a_single_file_is_split_into_parts(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("".join(f"line {i}\n" for i in range(2000)))
    text = load_text([str(file)], cache=tmp_path / "cache")
    assert text.validation.size > 0
    assert text.train.size + text.validation.size == file.stat().st_size + 1
    assert text.train.size > 5 * text.validation.size


def test_folders_leave_out_hidden_and_binary_files(corpus: Path, tmp_path: Path) -> None:
    (corpus / ".hidden").write_text("secret")
    (corpus / "__pycache__").mkdir()
    (corpus / "__pycache__" / "x.txt").write_text("cached")
    (corpus / "image.png").write_bytes(b"\x89PNG\0\0")
    got = b"".join(documents(find_sources([str(corpus)])))
    assert b"secret" not in got
    assert b"cached" not in got
    assert b"PNG" not in got
    with pytest.raises(DataError, match="looks binary"):
        list(documents(find_sources([str(corpus / "image.png")])))


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    table = pa.table({"title": ["a", "b", "c"], "body": ["first", None, "second"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "part.parquet")
    assert list(documents(find_sources([str(tmp_path)], column="body"))) == [b"first", b"second"]
    with pytest.raises(DataError, match=r"no column 'text'.*title, body, n.*--column title"):
        find_sources([str(tmp_path)])
    with pytest.raises(DataError, match="holds int64"):
        find_sources([str(tmp_path)], column="n")


def test_bad_data_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        find_sources([str(tmp_path / "missing")])
    with pytest.raises(DataError, match="no file with text"):
        find_sources([str(tmp_path)])
    with pytest.raises(DataError, match="cannot be opened"):
        find_sources(["nosuch://bucket/x"])
    (tmp_path / "broken.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="no readable Parquet"):
        find_sources([str(tmp_path / "broken.parquet")])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="no text in 1 files"):
        load_text([str(tmp_path / "empty.txt")], cache=tmp_path / "cache")
    same = tmp_path / "same"
    same.mkdir()
    for i in range(30):
        (same / f"{i}.txt").write_text("again")
    with pytest.raises(DataError, match="give more text"):
        load_text([str(same)], cache=tmp_path / "cache2")


def test_the_default_is_pythons_own_source() -> None:
    sources = find_sources()
    assert sum(source.size_bytes for source in sources) > 5e6
    assert any(source.path.endswith("argparse.py") for source in sources)
    assert not any("site-packages" in source.path for source in sources)


def test_order0_entropy_of_hand_computed_cases() -> None:
    assert order0_bits_per_byte(np.frombuffer(b"aaaa", dtype=np.uint8)) == 0.0
    assert order0_bits_per_byte(np.frombuffer(b"abab", dtype=np.uint8)) == pytest.approx(1.0)
    # shares 1/2, 1/4, 1/4
    assert order0_bits_per_byte(np.frombuffer(b"aabc", dtype=np.uint8)) == pytest.approx(1.5)
    assert order0_bits_per_byte(np.arange(256, dtype=np.uint8)) == pytest.approx(8.0)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 700), seed=st.integers(0, 2**63), epoch=st.integers(0, 50))
def test_a_permutation_takes_every_item_once(n: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(n), n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_draw_different_orders() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return permute(np.arange(1000), 1000, seed=seed, epoch=epoch).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    correlation = np.corrcoef(order(0, 0), np.arange(1000))[0, 1]
    assert abs(correlation) < 0.15


def test_targets_are_the_next_byte() -> None:
    data = np.arange(100, dtype=np.uint8)
    inputs, targets = windows(data, np.array([3, 50]), 4)
    assert inputs.tolist() == [[3, 4, 5, 6], [50, 51, 52, 53]]
    assert torch.equal(targets, inputs + 1)


def test_a_model_that_guesses_frequencies_reaches_order0() -> None:
    data = np.frombuffer(b"aab" * 100, dtype=np.uint8)
    expected = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert order0_bits_per_byte(data) == pytest.approx(expected)
