"""Where things stand in a fleet file, and how its problems are told.

Pure. Every problem names its line and column and, where one is clear, the line to write instead.
Deliberately does not know: YAML, what may stand in a fleet file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rayburst.errors import SpecError

Loc = tuple[str | int, ...]  # ("pools", 0, "hosts", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where something stands; lines and columns count from 1, the end is just behind it."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong and what is allowed.

    `instead` replaces what stands at `where`; `add` is a line to write beside it.
    """

    line: int
    column: int
    text: str
    where: Place | None = None
    instead: str = ""
    add: str = ""


def failure(source: str, problems: list[Problem], lines: Sequence[str] = ()) -> SpecError:
    """One error that names every problem of a file, in the order of the file.

    A line with several problems is corrected once, below the last of them.
    """
    found = sorted(problems, key=lambda problem: (problem.line, problem.column))
    told = [f"{source}: {'1 problem' if len(found) == 1 else f'{len(found)} problems'}"]
    for line, group in itertools.groupby(found, key=lambda problem: problem.line):
        here = list(group)
        for problem in here:
            told.append(f"  {source}:{line}:{problem.column}: {problem.text}")
            told += [f"      add:    {problem.add}"] if problem.add else []
        if corrected := _corrected(here, lines):
            told.append(f"      write:  {corrected}")
    return SpecError(_masked("\n".join(told)))


def _corrected(problems: list[Problem], lines: Sequence[str]) -> str:
    """The line of these problems with all its corrections; "" when there are none."""
    fixes = {p.where: p.instead for p in problems if p.where and p.where.end_line == p.line}
    if not fixes:
        return ""
    line = lines[problems[0].line - 1]
    for where, instead in sorted(fixes.items(), key=lambda fix: -fix[0].column):
        line = line[: where.column - 1] + instead + line[where.end_column - 1 :]
    return line.strip()


def name(loc: Loc) -> str:
    """A place in words: `pools[0].hosts.max`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return text.lstrip(".") or "the file"


def _masked(text: str) -> str:
    """The text without what follows `://` up to `@`, or `?` in an address: there secrets sit."""
    text = re.sub(r"(?<=://)[^/\s]*(?=@)", "***", text)
    return re.sub(r"(://[^\s?]*\?)[^\s,}]+", r"\1***", text)
