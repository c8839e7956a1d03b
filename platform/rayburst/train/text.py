"""Text as bytes, split once into training and validation, and windows of it.

    text = load_text(["corpus/"])                      # or load_text() for Python's own sources
    inputs, targets = windows(text.train, np.array([0, 512]), 128)

The split goes by document and follows each document's content, so a document and its exact copies
lie on one side. Documents end with a zero byte. The result is kept on disk and mapped into memory,
so the processes of one machine share it and a restart does not read the sources again.

Which windows come when is not decided here (`rayburst.train.token_cache`, `text_windows`). The
module knows no model, no process group and no Ray.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayburst.errors import DataError
from rayburst.train.order import Ints
from rayburst.train.sources import DEFAULT_COLUMN, Source, documents, find_sources

__all__ = [
    "Text",
    "load_text",
    "order0_bits_per_byte",
    "sources_key",
    "text_of",
    "windows",
]

Bytes = npt.NDArray[np.uint8]
VALIDATION_SHARE = 0.05
_FORMAT = 1
_FEW_DOCUMENTS = 20
_PIECE_BYTES = 16 * 1024
_DOCUMENT_END = b"\0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Bytes for training and for validation, with the digest of both and of their order."""

    train: Bytes
    validation: Bytes
    fingerprint: str
    documents: int


def load_text(
    locations: Sequence[str] = (), column: str = DEFAULT_COLUMN, cache: Path | None = None
) -> Text:
    """The text at `locations` (see `rayburst.train.sources`), split and mapped into memory.

    `cache` is the folder that keeps it; by default one of this user's in the temporary folder.
    DataError when there is nothing to read, or too little to split.
    """
    return text_of(find_sources(locations, column), cache)


def text_of(sources: Sequence[Source], cache: Path | None = None) -> Text:
    """As `load_text`, of sources that were found."""
    folder = (cache or default_cache()) / sources_key(sources)
    if not (folder / "meta.json").exists():
        _build(sources, folder)
    meta = json.loads((folder / "meta.json").read_text())
    return Text(
        train=_map(folder / "train.bin"),
        validation=_map(folder / "validation.bin"),
        fingerprint=meta["fingerprint"],
        documents=meta["documents"],
    )


def default_cache() -> Path:
    """This user's own folder for prepared text; DataError when another user holds its name."""
    folder = Path(tempfile.gettempdir()) / f"rayburst-text-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")
    return folder


def order0_bits_per_byte(data: Bytes) -> float:
    """Entropy of the byte frequencies of `data`: what a model without any context needs."""
    counts = np.bincount(data, minlength=256)
    shares = counts[counts > 0] / data.size
    return float(-(shares * np.log2(shares)).sum())


def windows(data: Bytes, starts: Ints, block_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, LongTensor [len(starts), block_size] each; targets are one byte later."""
    rows = data[starts[:, None] + np.arange(block_size + 1)]
    tokens = torch.from_numpy(rows.astype(np.int64))
    return tokens[:, :-1], tokens[:, 1:]


def _map(path: Path) -> Bytes:
    # Opened read-write in copy-on-write mode: torch wants writable memory, the file stays as it is.
    return np.memmap(path, dtype=np.uint8, mode="c")


def sources_key(sources: Sequence[Source]) -> str:
    """What tells these versions of these files from any others."""
    digest = hashlib.blake2b(f"rayburst text {_FORMAT}".encode(), digest_size=16)
    for source in sources:
        digest.update(source.identity.encode())
    return digest.hexdigest()


def _build(sources: Sequence[Source], folder: Path) -> None:
    """Read and split the sources into `folder`, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        _split(sources, work)
        try:
            work.rename(folder)
        except OSError:
            if not (folder / "meta.json").exists():  # not another worker that was faster
                raise
    except OSError as error:
        raise DataError(f"the text cannot be kept in {folder.parent}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _split(sources: Sequence[Source], work: Path) -> None:
    ends = [0]
    with (work / "all.bin").open("wb") as everything:
        for document in documents(sources):
            everything.write(document)
            everything.write(_DOCUMENT_END)
            ends.append(everything.tell())
    count = len(ends) - 1
    if not count:
        raise DataError(
            f"no text in {len(sources)} files, the first being {sources[0].path}: "
            "give files that hold text"
        )
    data: Any = np.memmap(work / "all.bin", dtype=np.uint8, mode="r")
    pieces = _pieces(ends)
    sides = _sides([_digest(data, piece) for piece in pieces])
    total = hashlib.blake2b(digest_size=16)
    with (work / "train.bin").open("wb") as train, (work / "validation.bin").open("wb") as held:
        for piece, is_held in zip(pieces, sides, strict=True):
            part = data[piece.start : piece.stop].tobytes()
            total.update(part)
            total.update(b"v" if is_held else b"t")
            (held if is_held else train).write(part)
    (work / "all.bin").unlink()
    meta = {"fingerprint": total.hexdigest(), "documents": count}
    (work / "meta.json").write_text(json.dumps(meta))


def _pieces(ends: list[int]) -> list[range]:
    """What the split moves as a whole: documents, or parts of them where there are only a few."""
    whole = [range(a, b) for a, b in itertools.pairwise(ends)]
    if len(whole) >= _FEW_DOCUMENTS:
        return whole
    size = min(_PIECE_BYTES, max(1, math.ceil(ends[-1] / _FEW_DOCUMENTS)))
    return [
        range(start, min(start + size, piece.stop))
        for piece in whole
        for start in range(piece.start, piece.stop, size)
    ]


def _digest(data: Bytes, piece: range) -> int:
    content = data[piece.start : piece.stop].tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _sides(digests: list[int]) -> list[bool]:
    """True where a piece is held out: by its digest, and one piece at least on either side."""
    if len(set(digests)) < 2:
        raise DataError(
            "the text is one piece (or copies of one) and cannot be split into training and "
            "validation: give more text"
        )
    limit = int(VALIDATION_SHARE * 2**64)
    limit = max(limit, min(digests) + 1)
    return [digest < min(limit, max(digests)) for digest in digests]
