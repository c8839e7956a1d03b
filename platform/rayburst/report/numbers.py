"""Numbers as words with units. What is unknown says so; nothing is guessed or hidden."""

from __future__ import annotations

UNKNOWN = "unknown"


def grouped(value: float | None) -> str:
    """A count: 1,204."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def count(value: float | None, noun: str) -> str:
    """A count with its noun: 1 step, 3 steps, unknown steps."""
    return f"{grouped(value)} {noun}" + ("" if value == 1 else "s")


def seconds(value: float | None) -> str:
    """A duration a reader takes in at once: 8.4 s, 84 s, 12 min 4 s, 3 h 12 min."""
    if value is None:
        return UNKNOWN
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return _two(whole, "min", "s")
    return _two(round(value / 60), "h", "min")


def notice(value: float | None) -> str:
    """How long before its end a node was told of it: notice 30 s, notice of 0: notice at once."""
    return "notice at once" if value is not None and value < 0.05 else f"notice {seconds(value)}"


def _two(small: int, big_unit: str, small_unit: str) -> str:
    """So many of the smaller unit, sixty to the bigger one; no zero of the smaller is said."""
    big, rest = divmod(small, 60)
    return f"{big} {big_unit}" + (f" {rest} {small_unit}" if rest else "")


def clock(value_s: float) -> str:
    """A point in time since the start: 0:00, 4:30, 2:03:00."""
    whole = round(value_s)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def usd(value: float | None) -> str:
    """Money; small sums keep three significant digits: $12.40, $0.0312."""
    if value is None:
        return UNKNOWN
    if value == 0 or abs(value) >= 1:
        return f"${value:,.2f}"
    decimals = 2
    while decimals < 12 and abs(value) < 10 ** (2 - decimals):
        decimals += 1
    return f"${value:.{decimals}f}"


def milliseconds(value: float | None) -> str:
    """A latency: 8.4 ms, 61 ms, 1.24 s."""
    if value is None:
        return UNKNOWN
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.1f} ms" if value < 9.95 else f"{value:.0f} ms"


def bits(value: float | None) -> str:
    """Bits per byte, three decimals."""
    return UNKNOWN if value is None else f"{value:.3f}"


def percent(part: float | None, whole: float | None) -> str:
    """A share of a whole: 61%; shares below one percent keep a decimal."""
    if part is None or not whole:
        return UNKNOWN
    share = 100 * part / whole
    return f"{share:.1f}%" if 0 < abs(share) < 0.95 else f"{share:.0f}%"
