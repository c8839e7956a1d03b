"""Files of a fleet on this machine: atomic, private, and readable after a crash."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rayburst.errors import FleetBrokenError


def write_atomically(path: Path, data: str | bytes, *, private: bool = False) -> None:
    """Replace `path` by `data` in one step: a reader sees the old file or the new one."""
    payload = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600 if private else 0o644)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def create_once(path: Path, data: str) -> bool:
    """Write `path` only if it does not exist, whole or not at all; False when another was first."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is no such file.

    Raises:
        FleetBrokenError: the file is there but is not a JSON object.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FleetBrokenError(f"{path} is not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise FleetBrokenError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for a message."""
    if not log.exists():
        return f"its log {log} is empty"
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return f"the end of {log}:\n" + "\n".join(f"  {line}" for line in text)
