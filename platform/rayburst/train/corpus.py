"""The text of a run, in the run's folder: the driver writes it once, its workers stream it.

    keep_text(folder, find_sources(["s3://corpus/wiki"], "body"))     # the driver
    corpus = open_corpus(folder, block_size=128, seed=0)              # every worker
    run.batches(corpus.samples, ...); corpus.validation

Only the driver's machine must reach the sources and have disk for them; workers keep a few shards
in memory. A run that goes on reads what it began with; other text under its name is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import DataError
from rayburst.train.sources import Source
from rayburst.train.text import Bytes, order0_bits_per_byte, sources_key, text_of
from rayburst.train.token_cache import TokenStream, read_about, write_tokens

__all__ = ["Corpus", "held_out", "keep_text", "open_corpus"]

FOLDER = "tokens"
_VALIDATION = "validation.bin"
_VALIDATION_BYTES = 16 * 1024 * 1024
"""Of the held-out text so much is kept, from its start: it is measured on in windows."""
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Windows to train on, and held-out bytes with the entropy of their frequencies."""

    samples: TokenStream
    validation: Bytes
    order0_bits_per_byte: float


def keep_text(folder: ObjectStore, sources: Sequence[Source]) -> None:
    """Split the text and write it as tokens to the run's `folder`, unless it is there.

    DataError where the sources cannot be used, and where the run began with other text.
    """
    store = folder.child(FOLDER)
    key, kept = sources_key(sources), read_about(store)
    if kept is not None and kept["sources"] == key:
        return
    text = text_of(sources)
    if kept is not None:
        if kept["text"] != text.fingerprint:
            raise DataError(
                f"{folder.uri} began with other text ({kept['text']}; now {text.fingerprint}): "
                "give what it began with, or a new run name"
            )
        return
    validation = text.validation[:_VALIDATION_BYTES]
    body = validation.tobytes()
    store.put(_VALIDATION, body)
    about = {
        "sources": key,
        "text": text.fingerprint,
        "validation": xxhash.xxh3_128_hexdigest(body),
        "order0_bits_per_byte": order0_bits_per_byte(validation),
    }
    write_tokens(store, _pieces(text.train), encode=_as_they_are, about=about)


def open_corpus(folder: ObjectStore, *, block_size: int, seed: int) -> Corpus:
    """What `keep_text` wrote; DataError where there is none, or where it is damaged."""
    store = folder.child(FOLDER)
    samples = TokenStream(store, block_size, seed=seed)
    about: dict[str, Any] = read_about(store) or {}
    return Corpus(
        samples=samples,
        validation=_proven(store, about),
        order0_bits_per_byte=about["order0_bits_per_byte"],
    )


def held_out(folder: ObjectStore) -> tuple[Bytes, dict[str, Any]] | None:
    """The held-out text of a run and the words of its tokens; None where the run kept no text.

    Of the words, `text` is the digest of all its text and `validation` that of what is held out.
    """
    store = folder.child(FOLDER)
    about = read_about(store)
    if about is None or "validation" not in about:
        return None
    return _proven(store, about), about


def _proven(store: ObjectStore, about: dict[str, Any]) -> Bytes:
    body = store.get(_VALIDATION)
    if xxhash.xxh3_128_hexdigest(body) != about.get("validation"):
        raise DataError(f"{store.uri}/{_VALIDATION} holds other bytes than were written")
    return np.frombuffer(body, dtype=np.uint8)


def _pieces(data: Bytes) -> Iterator[bytes]:
    for start in range(0, data.size, _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES].tobytes()


def _as_they_are(piece: bytes) -> Bytes:
    """The text has its marks between documents already."""
    return np.frombuffer(piece, dtype=np.uint8)
