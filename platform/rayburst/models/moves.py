"""Where an alias such as "production" points, as the history of its moves. Pure.

Moves are only ever appended. Each knows which move a rollback goes back to: of a promotion that is
the move before it, of a rollback what was below the move that it went back to. So two rollbacks in
a row go back two promotions, and never to what was rolled back.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rayburst.errors import VersionNotFoundError
from rayburst.models.manifest import NAME, Sha256

__all__ = ["ALIAS", "PRODUCTION", "Move", "Ref", "parse_ref"]

PRODUCTION = "production"
ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Move(BaseModel):
    """The alias points to `version`, whose manifest has the seal `manifest_sha256`, from now on.

    `below`: the number of the move that a rollback goes back to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(ge=1)
    kind: Literal["promote", "rollback"]
    version: int = Field(ge=1)
    manifest_sha256: str = Sha256
    below: int | None = None
    why: str = ""
    at_ms: int
    id: str


class Ref(BaseModel):
    """A version as people name it: by number, or by an alias."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int | None = None
    alias: str | None = None


def parse_ref(text: str) -> Ref:
    """`gpt@3`, `gpt@production`, or `gpt`, which is `gpt@production`. VersionNotFoundError."""
    name, at, what = text.partition("@")
    if NAME.fullmatch(name) and (what or not at):
        if what.isdecimal() and int(what) > 0:
            return Ref(name=name, version=int(what))
        if not at or ALIAS.fullmatch(what):
            return Ref(name=name, alias=what or PRODUCTION)
    raise VersionNotFoundError(
        f"{text!r} names no version: write NAME@NUMBER or NAME@ALIAS, for example gpt@3 or "
        "gpt@production; names have a-z, 0-9, '.', '_' and '-'"
    )
