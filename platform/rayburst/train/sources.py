"""Where training text comes from: files, folders, object stores, Parquet, or Python's own sources.

    for document in documents(find_sources(["s3://corpus/wiki", "notes.txt"], column="body")):
        ...

Locations are local paths and URIs that `pyarrow.fs` opens (`s3://`, `gs://`, `file://`); endpoint
and credentials come from the environment. Without a location the text is the source code of
Python's standard library on this machine: every `*.py` below the library folder in order of its
path, without `site-packages` and `dist-packages` (31 MB for CPython 3.11 with its tests).

In a folder, hidden names and `__pycache__` are left out, `*.parquet` gives one document a row, and
any other file is one document of text unless it looks binary (a zero byte in its first 8 KiB). The
order is that of the names. It does not know how text is split or batched.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rayburst.errors import DataError

__all__ = ["DEFAULT_COLUMN", "Source", "documents", "find_sources"]

DEFAULT_COLUMN = "text"
_PROBE_BYTES = 8192
_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})
_ALLOWED = "a file, a folder, or a URI such as s3://bucket/folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file of text. `path` is as `filesystem` (a `pyarrow.fs.FileSystem`) knows it."""

    path: str
    size_bytes: int
    modified_ns: int
    filesystem: Any
    column: str | None = None
    """The column to read; None for a plain text file."""
    is_named: bool = False
    """Named by the user, not found in a folder: then it is never skipped silently."""

    @property
    def identity(self) -> str:
        """What tells this version of the file from another."""
        return f"{self.path}\0{self.size_bytes}\0{self.modified_ns}\0{self.column}"


def find_sources(locations: Sequence[str] = (), column: str = DEFAULT_COLUMN) -> list[Source]:
    """All files at `locations`, in a fixed order; Python's own sources when there are none.

    DataError when a location does not exist, cannot be reached, or holds nothing to read, and when
    a Parquet file has no such column.
    """
    if not locations:
        return _standard_library()
    found = [source for location in locations for source in _at(location, column)]
    for source in found:
        if source.column is not None:
            _check_column(source)
    return found


def documents(sources: Sequence[Source]) -> Iterator[bytes]:
    """The text of every source in turn, no empty documents; DataError for an unreadable one."""
    for source in sources:
        try:
            yield from _parquet_rows(source) if source.column else _text_file(source)
        except (OSError, ValueError) as error:
            raise DataError(f"{source.path} cannot be read: {error}") from error


def _standard_library() -> list[Source]:
    import pyarrow.fs as pafs

    root = Path(sysconfig.get_paths()["stdlib"])
    local = pafs.LocalFileSystem()
    found = []
    for path in sorted(root.rglob("*.py")):
        if _NOT_STDLIB.isdisjoint(path.relative_to(root).parts) and path.is_file():
            stat = path.stat()
            found.append(
                Source(
                    path=str(path),
                    size_bytes=stat.st_size,
                    modified_ns=stat.st_mtime_ns,
                    filesystem=local,
                )
            )
    if not found:
        raise DataError(
            f"no Python sources in {root}: this Python is installed without them; "
            "name your text, for example --data /path/to/texts"
        )
    return found


def _at(location: str, column: str) -> list[Source]:
    import pyarrow.fs as pafs

    filesystem, path = _open(location)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"--data {location}: nothing there. Give {_ALLOWED}")
        if info.type == pafs.FileType.File:
            return [_source(info, filesystem, column, is_named=True)]
        inside = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise DataError(f"--data {location} cannot be reached: {error}") from error
    found = [
        _source(item, filesystem, column, is_named=False)
        for item in sorted(inside, key=lambda item: item.path)
        if item.type == pafs.FileType.File and item.size and _is_visible(item.path, path)
    ]
    if not found:
        raise DataError(f"--data {location}: the folder holds no file with text in it")
    return found


def _open(location: str) -> tuple[Any, str]:
    import pyarrow.fs as pafs
    from pyarrow import ArrowInvalid

    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(location)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"--data {location} cannot be opened: {error}. Give {_ALLOWED}") from error
    return filesystem, path


def _source(info: Any, filesystem: Any, column: str, *, is_named: bool) -> Source:
    return Source(
        path=info.path,
        size_bytes=info.size or 0,
        modified_ns=info.mtime_ns or 0,
        filesystem=filesystem,
        column=column if info.path.endswith((".parquet", ".pq")) else None,
        is_named=is_named,
    )


def _is_visible(path: str, root: str) -> bool:
    parts = PurePosixPath(path).parts[len(PurePosixPath(root).parts) :]
    return not any(part.startswith(".") or part == "__pycache__" for part in parts)


def _check_column(source: Source) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with source.filesystem.open_input_file(source.path) as file:
            schema = pq.read_schema(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{source.path} is no readable Parquet file: {error}") from error
    columns = ", ".join(schema.names)
    if source.column not in schema.names:
        raise DataError(
            f"{source.path} has no column {source.column!r}. Its columns: {columns}. "
            f"Name one with --column {schema.names[0] if schema.names else 'NAME'}"
        )
    kind = schema.field(source.column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not _is_text(pa, kind):
        raise DataError(
            f"column {source.column!r} of {source.path} holds {kind}, not text. "
            f"Name a column of strings with --column. Its columns: {columns}"
        )


def _is_text(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _parquet_rows(source: Source) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    with source.filesystem.open_input_file(source.path) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=[source.column]):
            for value in batch.column(0).to_pylist():
                if value:
                    yield value.encode() if isinstance(value, str) else bytes(value)


def _text_file(source: Source) -> Iterator[bytes]:
    with source.filesystem.open_input_stream(source.path) as stream:
        data: bytes = stream.read()
    if b"\0" in data[:_PROBE_BYTES]:
        if source.is_named:
            raise DataError(
                f"{source.path} looks binary (it holds zero bytes). "
                "Give plain text (UTF-8 or another 8-bit encoding), unpacked, or Parquet"
            )
        return
    if data:
        yield data
