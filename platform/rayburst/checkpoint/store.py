"""One object store client for S3 (any endpoint), Google Cloud, Azure and local disk.

`ObjectStore.open("s3://bucket/prefix")` and then `put`, `get`, `list`, `delete` by key. Endpoint
and credentials come from the environment or the instance role, as obstore reads them
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...); they never appear in a message or a pickle.

Calls block, release the GIL and may be made from many threads. Server errors and broken connections
are retried with exponential backoff and jitter; a store that throttles is left alone for as long as
its Retry-After asks (patience.py); every request has a time-out.
Every S3 upload carries a CRC-64/NVME that the server checks, so bytes that change on the way are
refused and sent again. (A signed payload is not enough: SeaweedFS stores a wrong one. The checksum
costs 0.5 ms of CPU a MB, signing by SHA-256 three times that.)

It deliberately does not know what a checkpoint is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from rayburst.checkpoint._store_errors import translate
from rayburst.checkpoint.local_files import Buffers, put_file, read_tagged, size_of, swap_file
from rayburst.checkpoint.patience import Limits, Patience
from rayburst.checkpoint.traffic import TRAFFIC
from rayburst.errors import ObjectNotFoundError, StoreError

__all__ = ["ObjectInfo", "ObjectStore", "StoreOptions", "Tag", "local_path"]

_REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_ALLOWED = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder, /folder"
_UPLOAD_TRIES = 4
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreOptions:
    """Patience of the client. `retry_s` bounds one call with all its retries."""

    connect_timeout_s: float = 5.0
    request_timeout_s: float = 120.0
    read_timeout_s: float = 60.0
    retries: int = 10  # take about 15 s; a restart of the store takes about 6
    retry_s: float = 180.0
    backoff_first_s: float = 0.1
    backoff_most_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "request_timeout_s", "read_timeout_s", "retry_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"StoreOptions({name}={getattr(self, name)}): must be above 0")
        if self.retries < 0:
            raise ValueError(f"StoreOptions(retries={self.retries}): must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One listed object; `key` is relative to the URI that was opened."""

    key: str
    size_bytes: int
    modified: datetime


class Tag(NamedTuple):
    """Which writing of an object was read or written. Equal only for the same one."""

    e_tag: str | None
    version: str | None = None


class ObjectStore:
    """Objects under one URI. Make it with `ObjectStore.open`.

        store = ObjectStore.open("s3://models/runs")
        store.put("a/b", b"bytes", if_absent=True)
        store.get("a/b")

    Errors: ObjectNotFoundError, ObjectExistsError, StoreError; each names the object.
    """

    def __init__(
        self,
        uri: str,
        backend: Any,
        prefix: str,
        root: Path | None,
        opts: StoreOptions,
        patience: Patience | None = None,
    ) -> None:
        self.uri = uri
        self._backend = backend
        self._prefix = prefix
        self._root = root
        self._options = opts
        self._patience = patience  # None: a local error is final

    @classmethod
    def open(cls, uri: str | os.PathLike[str], options: StoreOptions | None = None) -> ObjectStore:
        """Open a bucket or folder. Sends no request; a missing bucket shows at the first call."""
        opts = options or StoreOptions()
        text = os.fspath(uri)
        parts = urlsplit(text)
        path = local_path(uri)
        if path is not None:
            clean = f"file://{path}" if parts.scheme else str(path)
            return cls(clean, LocalStore(path, mkdir=True), "", path, opts)
        if parts.username or parts.password:
            raise StoreError(
                f"{parts.scheme}://…@…: credentials do not belong in a URI; set them in the "
                f"environment and open {parts.scheme}://{parts.hostname}{parts.path}"
            )
        if parts.scheme not in _REMOTE_SCHEMES or not parts.netloc:
            raise StoreError(f"{text!r} is no object store URI. Allowed: {_ALLOWED}")
        root = f"{parts.scheme}://{parts.netloc}"
        prefix = parts.path.strip("/")
        backend = _guard(root, lambda: _remote(root, parts.scheme, opts))
        patience = Patience(
            Limits(
                retries=opts.retries,
                retry_s=opts.retry_s,
                first_s=opts.backoff_first_s,
                most_s=opts.backoff_most_s,
                ask_s=opts.connect_timeout_s,
            ),
            lambda key: obstore.sign(backend, "HEAD", key, timedelta(minutes=1)),
        )
        return cls(f"{root}/{prefix}".rstrip("/"), backend, prefix, None, opts, patience)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStore.open, (self.uri, self._options))

    def __repr__(self) -> str:
        return f"ObjectStore({self.uri!r})"

    @property
    def local_root(self) -> Path | None:
        """The folder on this machine, or None for a remote store."""
        return self._root

    def patient(self, options: StoreOptions) -> ObjectStore:
        """The same objects, over connections with other patience."""
        return ObjectStore.open(self.uri, options)

    def child(self, prefix: str) -> ObjectStore:
        """The objects below `prefix`, over the same connections."""
        part = prefix.strip("/")
        inner = f"{self._prefix}/{part}".strip("/")
        uri = f"{self.uri}/{part}"
        return ObjectStore(uri, self._backend, inner, self._root, self._options, self._patience)

    def get(self, key: str) -> bytes:
        """The whole object."""
        return bytes(self.get_buffer(key))

    def get_buffer(self, key: str) -> memoryview:
        """The whole object without a copy into Python bytes: for large ones."""
        path = self._path(key)
        data = self._call(key, lambda: memoryview(obstore.get(self._backend, path).bytes()))
        return self._received(data)

    def get_tagged(self, key: str) -> tuple[bytes, Tag]:
        """The whole object, and what `replace` needs to know of it."""
        path = self._path(key)

        def read() -> tuple[bytes, tuple[str | None, str | None]]:
            if self._root is not None:
                return read_tagged(self._root / path)
            found = obstore.get(self._backend, path)
            meta = found.meta
            return bytes(found.bytes()), (meta.get("e_tag"), meta.get("version"))

        data, tag = self._call(key, read)
        return data, Tag(*tag)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer only where the object ends before."""
        return bytes(self.get_range_buffer(key, start, length))

    def get_range_buffer(self, key: str, start: int, length: int) -> memoryview:
        """`get_range` without a copy into Python bytes; empty from behind the object's end."""
        if length == 0:
            return memoryview(b"")
        path = self._path(key)

        def read() -> memoryview:
            data = obstore.get_range(self._backend, path, start=start, length=length)
            return memoryview(data)

        try:
            return self._received(self._call(key, read))
        except ObjectNotFoundError:
            raise
        except StoreError:
            # stores answer a range behind the end with an error of their own
            size = self.size(key)
            if size is not None and start >= size:
                return memoryview(b"")
            raise

    def put(
        self,
        key: str,
        data: Buffers,
        *,
        if_absent: bool = False,
    ) -> Tag:
        """Write the object in one atomic step; readers see the old bytes or all of the new.

        A sequence of buffers is written end to end without being joined in memory first.

        With `if_absent` exactly one of many concurrent writers succeeds and the others get
        ObjectExistsError. A lost reply can make the winner see that error too: who must know
        writes something unique and reads it back.
        """
        path = self._path(key)
        if self._root is not None:
            target = self._root / path
            return Tag(*self._call(key, lambda: put_file(target, data, if_absent=if_absent)))
        return self._put(key, path, data, "create" if if_absent else "overwrite")

    def replace(self, key: str, data: Buffers, tag: Tag) -> Tag:
        """Write the object if it is still the writing that `tag` is of, in one atomic step.

        ObjectExistsError: somebody wrote or deleted it meanwhile, or the reply to the first try was
        lost; who must know reads it back. On a local folder the writers must be on one machine.
        """
        path = self._path(key)
        if self._root is not None:
            target = self._root / path
            return Tag(*self._call(key, lambda: swap_file(target, data, tag)))
        known = {name: value for name, value in tag._asdict().items() if value is not None}
        return self._put(key, path, data, known)

    def _put(self, key: str, path: str, data: Buffers, mode: Any) -> Tag:
        def send() -> Any:
            return obstore.put(self._backend, path, data, mode=mode, use_multipart=False)

        for attempt in range(_UPLOAD_TRIES):
            try:
                done = self._call(key, send)
                TRAFFIC.add(sent_bytes=size_of(data))
                return Tag(done.get("e_tag"), done.get("version"))
            except StoreError as error:
                # the client takes a 400 as final, but wrong bytes on the wire are an accident
                if "BadDigest" not in str(error) or attempt + 1 == _UPLOAD_TRIES:
                    raise
        raise AssertionError("the last try returns or raises")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix` ("a/b" lists a/b/c, not a/bc), in no order."""
        where = self._path(prefix.strip("/")) if prefix.strip("/") else self._prefix
        cut = len(self._prefix) + 1 if self._prefix else 0
        stream: Any = None
        last: str | None = None

        def page() -> Any:
            nonlocal stream
            if stream is None:
                stream = obstore.list(self._backend, where, offset=last, chunk_size=1000)
            try:
                return next(stream, None)
            except BaseError:
                stream = None  # a broken one would end as if that were all; go on behind the last
                raise

        while (found := self._call(prefix, page)) is not None:
            for item in found:
                last = item["path"]
                yield ObjectInfo(
                    key=last[cut:],
                    size_bytes=item["size"],
                    modified=item["last_modified"],
                )

    def folders(self, prefix: str = "") -> Sequence[str]:
        """The names directly below the folder `prefix` that have objects below them, sorted."""
        where = self._path(prefix.strip("/")) if prefix.strip("/") else self._prefix
        found = self._call(prefix, lambda: obstore.list_with_delimiter(self._backend, where))
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found["common_prefixes"])

    def distrust(self, key: str) -> None:
        """Hear that what was read as `key` was wrong. For stores with a cache before them."""

    def announce(self, key: str, data: Buffers) -> None:
        """Say what is about to be put under `key`, for a peer's memory; nothing without a peer."""

    def only_peer(self) -> ObjectStore:
        """The peer's memory alone, to save to. StoreError without a peer."""
        raise StoreError(
            f"{self.uri}: no peer holds snapshots of it; see rayburst.checkpoint.peers"
        )

    def held(self) -> tuple[str, bytes] | None:
        """Key and bytes of the manifest that a peer holds whole; None without a peer."""
        return None

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is fine."""
        path = self._path(key)
        try:
            self._call(key, lambda: obstore.delete(self._backend, path))
        except ObjectNotFoundError:
            return

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None where there is none."""
        found = self._head(key)
        return None if found is None else int(found["size"])

    def modified(self, key: str) -> datetime | None:
        """When the object was written, by the store's clock; None where there is none."""
        found = self._head(key)
        return None if found is None else found["last_modified"]

    def _received(self, data: memoryview) -> memoryview:
        if self._root is None:
            TRAFFIC.add(received_bytes=data.nbytes)
        return data

    def _head(self, key: str) -> Any:
        path = self._path(key)
        try:
            return self._call(key, lambda: obstore.head(self._backend, path))
        except ObjectNotFoundError:
            return None

    def _path(self, key: str) -> str:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise StoreError(
                f"{key!r} is no key: use names joined by '/', as in 'runs/a/meta.json'"
            )
        return f"{self._prefix}/{key}" if self._prefix else key

    def _call(self, key: str, action: Callable[[], T]) -> T:
        name, patience = f"{self.uri}/{key}".rstrip("/"), self._patience
        if patience is None:
            return _guard(name, action)
        path = f"{self._prefix}/{key}".strip("/") or "latest.json"
        return _guard(name, lambda: patience.call(path, action))


def local_path(uri: str | os.PathLike[str]) -> Path | None:
    """The folder that a URI or path names; None for one of a remote store."""
    text = os.fspath(uri)
    parts = urlsplit(text)
    if parts.scheme not in ("", "file"):
        return None
    return Path(parts.path if parts.scheme else text).expanduser().absolute()


def _guard(name: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except (BaseError, OSError, ValueError) as error:
        # `from None`: the client's own text can quote a signed request
        raise translate(name, error) from None


def _remote(root: str, scheme: str, opts: StoreOptions) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    plain = scheme.startswith("s3") and endpoint.startswith("http://")
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=opts.connect_timeout_s),
        "timeout": timedelta(seconds=opts.request_timeout_s),
        "read_timeout": timedelta(seconds=opts.read_timeout_s),
    }
    extra: dict[str, Any] = {}
    if scheme.startswith("s3"):
        extra["unsigned_payload"] = True
        extra["checksum_algorithm"] = os.environ.get("AWS_CHECKSUM_ALGORITHM", "CRC64NVME")
        if endpoint:
            extra["endpoint"] = endpoint
    if plain or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true":
        client["allow_http"] = True
    build: Any = from_url  # its overloads know each scheme's options apart; here they are mixed
    return build(
        root,
        client_options=client,
        retry_config={"max_retries": 0},  # patience.py does it
        **extra,
    )
