"""What the headers of a request mean: content types and bounded numbers. Pure.

kind, accept = kinds(headers, codec.kinds)          # "application/json", "application/x-npy"
number(headers, b"x-rayburst-priority", 0, 9, is_whole=True)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rayburst.errors import BadRequestError
from rayburst.serve.codec import ARROW, JSON, NPY

__all__ = ["Headers", "kinds", "number"]

Headers = Mapping[bytes, bytes]

_KINDS = {JSON.encode(): JSON, NPY.encode(): NPY, ARROW.encode(): ARROW}
_ANY = (b"*/*", b"application/*", b"")


def kinds(headers: Headers, known: tuple[str, ...]) -> tuple[str, str]:
    """The content type of the body and of the answer; BadRequestError (415) for another one."""
    given = headers.get(b"content-type", b"application/json")
    kind = _KINDS.get(given) or _KINDS.get(given.split(b";")[0].strip().lower())
    if kind is None or kind not in known:
        allowed = ", ".join(known)
        raise _Unsupported(f"content-type {given[:80]!r} is not taken; send {allowed}")
    wanted = headers.get(b"accept", b"*/*")
    if wanted in _ANY:
        return kind, kind
    for part in wanted.split(b","):
        name = part.split(b";")[0].strip().lower()
        if name in _KINDS and _KINDS[name] in known:
            return kind, _KINDS[name]
    return kind, kind


def number(
    headers: Headers, name: bytes, least: float, most: float, *, is_whole: bool = False
) -> float:
    """The number that a header holds; BadRequestError when it holds none within the bounds."""
    try:
        value = float(headers[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most or (is_whole and value != int(value)):
        whole = "a whole number from " if is_whole else ""
        raise BadRequestError(
            f"header {name.decode()} is {headers[name][:40]!r}; give {whole}{least:g} to {most:g}"
        )
    return value


class _Unsupported(BadRequestError):
    status = 415
