"""Text as tokens in shards on an object store: written once, then read as a stream by position.

    store = ObjectStore.open("s3://bucket/tokens/wiki")
    write_tokens(store, documents(find_sources(["s3://corpus/wiki"], column="body")))
    samples = TokenStream(store, block_size=512, seed=0)
    for inputs, targets in run.batches(samples, global_batch=64, seed=0, epochs=1): ...

`tokens-00000.bin` and so on hold little-endian tokens; `tokens.json` is written last and makes the
cache whole. It names length and digest of every shard, so a damaged shard is never trained on.

The order of an epoch is drawn in two steps, so that few shards are in memory at a time: the shards
are shuffled, and windows are shuffled among the `together` shards that follow each other. It is a
function of (seed, epoch), and any position is found without reading what comes before it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import DataError, ObjectNotFoundError
from rayburst.train.order import Ints
from rayburst.train.permutation import permute, shifts

__all__ = ["TokenStream", "bytes_of", "read_about", "write_tokens"]

META = "tokens.json"
SHARD_TOKENS = 4 * 1024 * 1024
Tokens = npt.NDArray[Any]


def bytes_of(document: bytes) -> Tokens:
    """The bytes of a document as tokens, a zero byte at its end."""
    return np.frombuffer(document + b"\0", dtype=np.uint8)


def write_tokens(
    store: ObjectStore,
    documents: Iterable[bytes],
    *,
    encode: Callable[[bytes], Tokens] = bytes_of,
    dtype: str = "uint8",
    shard_tokens: int = SHARD_TOKENS,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Encode the documents into `store`, in their order. DataError where there is no token.

    `encode` gives a document's tokens, an end mark included; `dtype` ("uint8", "uint16", "uint32")
    must hold them. Memory for about two shards is enough, however long the text. `about`: JSON that
    `read_about` gives back. A cache that is there stays as it is.
    """
    if store.exists(META):
        return
    kind = np.dtype(dtype).newbyteorder("<")
    shards: list[dict[str, Any]] = []
    waiting: list[Tokens] = []
    held = 0

    def put(tokens: Tokens) -> None:
        body = tokens.tobytes()
        store.put(f"tokens-{len(shards):05}.bin", body)
        shards.append({"tokens": int(tokens.size), "xxh3": xxhash.xxh3_128_hexdigest(body)})

    for document in documents:
        tokens = encode(document)
        if tokens.size and int(tokens.max()) > np.iinfo(kind).max:
            raise DataError(f"token {int(tokens.max())} does not fit {dtype}: give a larger dtype")
        waiting.append(tokens.astype(kind))
        held += tokens.size
        while held >= shard_tokens:
            whole = np.concatenate(waiting)
            put(whole[:shard_tokens])
            waiting, held = [whole[shard_tokens:]], whole.size - shard_tokens
    if held:
        put(np.concatenate(waiting))
    if not shards:
        raise DataError(f"{store.uri}: the documents hold no token, so there is nothing to cache")
    meta = {"dtype": dtype, "shards": shards, "about": dict(about or {})}
    store.put(META, json.dumps(meta).encode())


def read_about(store: ObjectStore) -> dict[str, Any] | None:
    """What `write_tokens` was told about the cache in `store`; None where there is no whole one."""
    try:
        about: dict[str, Any] = json.loads(store.get(META)).get("about", {})
    except ObjectNotFoundError:
        return None
    return about


@dataclass(frozen=True, slots=True)
class _Epoch:
    """Shards in the order of an epoch, and where windows and pools of shards begin in it."""

    shards: Ints
    begins: Ints
    pools: Ints


class TokenStream:
    """Windows of a token cache: a `rayburst.train.feed.Samples` with an order of its own.

    Args:
        block_size: tokens of a window; its targets are one token later. A window lies in one shard.
            Each epoch shifts the windows by up to a block, so that other tokens stand together.
        seed: of the order of shards and windows.
        together: shards whose windows are mixed; up to twice as many are in memory.
    """

    def __init__(
        self, store: ObjectStore, block_size: int, *, seed: int, together: int = 4
    ) -> None:
        try:
            meta = json.loads(store.get(META))
        except ObjectNotFoundError:
            raise DataError(
                f"{store.uri} holds no whole token cache: write one with write_tokens(store, ...)"
            ) from None
        self._store, self._block, self._seed, self._together = store, block_size, seed, together
        self._dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        self._shards: list[dict[str, Any]] = meta["shards"]
        counts = [max(0, s["tokens"] // block_size - 1) for s in self._shards]
        self._counts = np.array(counts, dtype=np.int64)
        self._bases = np.concatenate([[0], np.cumsum(self._counts)])
        if not len(self):
            raise DataError(
                f"{store.uri}: no shard has the {2 * block_size} tokens that windows of "
                f"{block_size} are drawn from: give more text or a smaller block_size"
            )
        self.tokens_per_sample = block_size
        held = [meta["dtype"], *((s["tokens"], s["xxh3"]) for s in self._shards)]
        self.fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(held).encode())
        self._epochs: dict[int, _Epoch] = {}
        self._held: OrderedDict[int, Future[Tokens]] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="tokens")

    def __len__(self) -> int:
        return int(self._bases[-1])

    def arrange(self, epoch: int, places: Ints) -> Ints:
        """The windows at these places of an epoch, and what comes next is fetched meanwhile."""
        order = self._order(epoch)
        out = np.empty_like(places)
        pools = np.searchsorted(order.pools, places, side="right") - 1
        for pool in np.unique(pools).tolist():
            chosen = pools == pool
            begin, end = int(order.pools[pool]), int(order.pools[pool + 1])
            drawn = permute(
                places[chosen] - begin, end - begin, seed=self._seed, epoch=epoch * 2**20 + pool + 1
            )
            slots = np.searchsorted(order.begins, begin + drawn, side="right") - 1
            inside = begin + drawn - order.begins[slots]
            out[chosen] = self._bases[order.shards[slots]] + inside
            self._fetch_ahead(order, pool)
        return out

    def batch(self, epochs: Ints, indices: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these windows: LongTensor [samples, block_size] each."""
        rows = np.empty((len(indices), self._block + 1), dtype=np.int64)
        owners = np.searchsorted(self._bases, indices, side="right") - 1
        phases = shifts(self._seed, epochs, self._block)
        for shard in np.unique(owners).tolist():
            chosen = np.flatnonzero(owners == shard)
            starts = (indices[chosen] - self._bases[shard]) * self._block + phases[chosen]
            rows[chosen] = self._tokens(shard)[starts[:, None] + np.arange(self._block + 1)]
        whole = torch.from_numpy(rows)
        return whole[:, :-1], whole[:, 1:]

    def _order(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            count = len(self._shards)
            shards = permute(np.arange(count), count, seed=self._seed, epoch=epoch)
            begins = np.concatenate([[0], np.cumsum(self._counts[shards])])
            pools = np.append(begins[:-1][:: self._together], begins[-1])
            self._epochs = {epoch: _Epoch(shards=shards, begins=begins, pools=pools)}
        return self._epochs[epoch]

    def _fetch_ahead(self, order: _Epoch, pool: int) -> None:
        first = pool * self._together
        for shard in order.shards[first : first + 2 * self._together].tolist():
            self._asked(shard)

    def _asked(self, shard: int) -> Future[Tokens]:
        """The shard, on its way; the ones that were not wanted longest are let go."""
        with self._lock:
            if shard not in self._held:
                self._held[shard] = self._readers.submit(self._read, shard)
            self._held.move_to_end(shard)
            while len(self._held) > 2 * self._together:
                self._held.popitem(last=False)
            return self._held[shard]

    def _tokens(self, shard: int) -> Tokens:
        return self._asked(shard).result()

    def _read(self, shard: int) -> Tokens:
        key = f"tokens-{shard:05}.bin"
        body = self._store.get_buffer(key)
        if xxhash.xxh3_128_hexdigest(body) != self._shards[shard]["xxh3"]:
            raise DataError(f"{self._store.uri}/{key} holds other bytes than were written")
        return np.frombuffer(body, dtype=self._dtype)
