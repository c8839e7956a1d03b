"""What a search may choose: settings by name, drawn by the number of the trial. Pure.

    space = parse_space(["lr=log:1e-4..1e-2", "global_batch=16,32,64"])
    draw(space, seed=0, trial=3)            # {"lr": 0.0021..., "global_batch": 32}

A draw is a function of seed, trial and the setting's name: no order of calls, no process and no
other setting changes it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayburst.train.permutation import words

__all__ = ["Choice", "Range", "Space", "draw", "parse_space", "space_of_json", "space_to_json"]


@dataclass(frozen=True, slots=True)
class Range:
    """A number between `low` and `high`; `is_log`: evenly spread over its logarithm."""

    low: float
    high: float
    is_log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.is_log and self.low <= 0):
            raise ValueError(
                f"{self}: give low below high, and above 0 for log, for example log:1e-4..1e-2"
            )

    def at(self, share: float) -> float:
        """The value at `share` (0 to 1) of the range."""
        if self.is_log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def __str__(self) -> str:
        return f"{'log:' if self.is_log else ''}{self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`, each as likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Choice(()): give at least one value")

    def at(self, share: float) -> Any:
        """The value at `share` (0 to 1) of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


Space = Mapping[str, Range | Choice]


def draw(space: Space, *, seed: int, trial: int) -> dict[str, Any]:
    """The settings of trial number `trial`."""
    return {name: among.at(_share(seed, trial, name)) for name, among in space.items()}


def _share(seed: int, trial: int, name: str) -> float:
    of_trial = int(words(seed, trial, 1)[0])
    return int(words(of_trial, zlib.crc32(name.encode()), 1)[0]) / 2**64


def parse_space(texts: Sequence[str]) -> dict[str, Range | Choice]:
    """From NAME=LOW..HIGH, NAME=log:LOW..HIGH and NAME=VALUE,VALUE. ValueError says what is not."""
    found: dict[str, Range | Choice] = {}
    for text in texts:
        name, _, among = text.partition("=")
        if not name or not among or name in found:
            raise ValueError(
                f"{text!r}: give each setting once, as lr=log:1e-4..1e-2 or global_batch=16,32"
            )
        found[name] = _among(text, among)
    return found


def _among(text: str, among: str) -> Range | Choice:
    low, dots, high = among.removeprefix("log:").partition("..")
    if not dots:
        return Choice(tuple(map(_value, among.split(","))))
    try:
        return Range(float(low), float(high), among.startswith("log:"))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def space_to_json(space: Space) -> dict[str, Any]:
    """As JSON holds it."""
    return {
        name: {"values": list(among.values)}
        if isinstance(among, Choice)
        else {"low": among.low, "high": among.high, "is_log": among.is_log}
        for name, among in space.items()
    }


def space_of_json(space: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """What `space_to_json` gave."""
    return {
        name: Choice(tuple(among["values"])) if "values" in among else Range(**among)
        for name, among in space.items()
    }


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
