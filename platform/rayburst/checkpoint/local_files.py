"""Atomic, durable objects on a local file system.

A write goes to a staging file beside the target, is synced, and takes the target's name in one
step. Staging files end in `#` and digits, which the client leaves out of every list. After a
power cut an object is whole or absent.

Deliberately does not know about retries: a local error is final.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["put_file", "read_tagged", "size_of", "staging_files", "swap_file"]

_serial = itertools.count()
_STAGING = re.compile(r"#\d+$")


Buffers = bytes | memoryview | Sequence[bytes | memoryview]


def size_of(data: Buffers) -> int:
    """Bytes of one buffer or of several together."""
    parts = [data] if isinstance(data, bytes | memoryview) else data
    return sum(memoryview(part).nbytes for part in parts)


FileTag = tuple[str, None]


def read_tagged(path: Path) -> tuple[bytes, FileTag]:
    """A file's bytes and what tells this writing of it from others."""
    with path.open("rb") as file:
        return file.read(), _tag(os.fstat(file.fileno()))


def _tag(stat: os.stat_result) -> FileTag:
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}", None


def swap_file(target: Path, data: Buffers, tag: tuple[str | None, str | None]) -> FileTag:
    """`put_file`, if `target` is still the writing of `tag`; FileExistsError if it is not.

    One at a time on this machine: a lock on the folder, which ends with the process.
    """
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not target.exists() or _tag(target.stat()) != tuple(tag):
            raise FileExistsError(f"{target} was written or deleted meanwhile")
        return put_file(target, data, if_absent=False)
    finally:
        os.close(folder)


def put_file(target: Path, data: Buffers, *, if_absent: bool) -> FileTag:
    """Write `data` as the file `target`. FileExistsError if `if_absent` and it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f"{target.name}#{os.getpid()}{next(_serial):06d}")
    try:
        tag = _write_synced(staging, [data] if isinstance(data, bytes | memoryview) else data)
        if if_absent:
            os.link(staging, target)
        else:
            staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return tag


def staging_files(root: Path) -> Iterator[Path]:
    """Left-overs of writers that were killed, and files of writers at work."""
    for path in root.rglob("*"):
        if _STAGING.search(path.name):
            yield path


def _write_synced(path: Path, parts: Sequence[bytes | memoryview]) -> FileTag:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for part in parts:
            data = memoryview(part).cast("B")
            done = 0
            while done < len(data):
                done += os.write(descriptor, data[done:])
        os.fsync(descriptor)
        return _tag(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
