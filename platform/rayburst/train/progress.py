"""How far a run is: throughput and time left, and one plain line about it. PURE.

`Meter` turns steps into a `Progress`; rank 0 publishes it as JSON, the driver prints `line(...)`.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import asdict, dataclass

__all__ = ["Meter", "Progress", "duration", "line"]

_WINDOW_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A moment of a run. `loss` in nats a byte, `t` and `since` in unix seconds."""

    t: float
    since: float
    """When this group of workers took its first step."""
    step: int
    steps: int
    resumed_from: int
    world: int
    loss: float
    val_bits_per_byte: float | None
    tokens_per_s: float | None
    eta_s: float | None
    state: str = "running"
    """`running`, or why the group stopped: "saving and leaving: ..."."""
    checkpoint_s: float | None = None
    """How long training stood still for the last checkpoint."""
    between_s: float | None = None
    """Mean time between interruptions of a group of this size, by what was seen so far."""
    stopped_s: float | None = None
    """How long the longest of the ranks finished no step when the group changed in place last, its
    own step aside."""

    def to_json(self) -> bytes:
        """For the key-value store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Progress:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(body))


class Meter:
    """Throughput over the last seconds, and the time that is left at that rate."""

    def __init__(self, *, steps: int, window_s: float = _WINDOW_S) -> None:
        self._steps = steps
        self._window_s = window_s
        self._seen: deque[tuple[float, int, int]] = deque()

    def add(self, *, t: float, step: int, tokens: int) -> tuple[float | None, float | None]:
        """Note that `step` was done at `t` with `tokens`; returns (tokens per second, ETA in s)."""
        self._seen.append((t, step, tokens))
        while len(self._seen) > 2 and t - self._seen[0][0] > self._window_s:
            self._seen.popleft()
        first_t, first_step, _ = self._seen[0]
        elapsed_s = t - first_t
        if elapsed_s <= 0:
            return None, None
        # the first step of the window ended when the window began: its tokens do not count
        done = sum(tokens for _, _, tokens in self._seen) - self._seen[0][2]
        steps_per_s = (step - first_step) / elapsed_s
        eta_s = (self._steps - step) / steps_per_s if steps_per_s > 0 else None
        return done / elapsed_s, eta_s


def line(progress: Progress) -> str:
    """One line for the terminal."""
    p = progress
    parts = [
        f"step {p.step:>{len(str(p.steps))}}/{p.steps}",
        f"{100 * p.step // max(1, p.steps):3}%",
        f"loss {p.loss:.3f}",
        f"{p.loss / math.log(2):.2f} bits/byte",
    ]
    if p.val_bits_per_byte is not None:
        parts.append(f"validation {p.val_bits_per_byte:.3f}")
    if p.tokens_per_s is not None:
        parts.append(f"{p.tokens_per_s:,.0f} tokens/s")
    parts.append(f"world {p.world}")
    if p.eta_s is not None:
        parts.append(f"ETA {duration(p.eta_s)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`seconds` for a person: 45 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
