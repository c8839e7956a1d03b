"""A fleet over time: hosts by market as areas, and dollars beside what on-demand would have cost.

Pure: node lives in, SVG out. Times in ms.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayburst.report import numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH, time_axis, time_scale
from rayburst.report.history import Interval, NodeLife
from rayburst.report.style import MARKETS, market_class

_TOP, _BOTTOM = 22.0, 168.0
_POINTS = 240
_MS_PER_HOUR = 3_600_000


def hosts_over_time(lives: Sequence[NodeLife], span: Interval) -> str:
    """Paid hosts by market, stacked: on-prem below, then spot, then on-demand."""
    cuts = sorted({span[0], span[1], *(t for life in lives for t in _within(life, span))})
    known = [m for m in MARKETS if any(life.market == m for life in lives)]
    markets = [*known, *sorted({life.market for life in lives} - set(MARKETS))]
    counts = {m: [_count(lives, m, at, span[1]) for at in cuts] for m in markets}
    most = max((sum(counts[m][i] for m in markets) for i in range(len(cuts))), default=0)
    x = time_scale(span)
    y = svg.Scale(low=0, high=max(most, 1), start=_BOTTOM, stop=_TOP)
    parts = [*_levels(y, "hosts", lambda tick: f"{tick:g}"), *time_axis(span, _TOP, _BOTTOM)]
    base = [0] * len(cuts)
    for market in markets:
        high = [low + count for low, count in zip(base, counts[market], strict=True)]
        points = _steps(cuts, high, x, y) + _steps(cuts, base, x, y)[::-1]
        parts.append(svg.polygon(points, market_class(market), f"{market} hosts"))
        base = high
    return svg.figure(WIDTH, _BOTTOM + 24, parts, f"Hosts over time, {most} at the most")


def spent_over_time(
    lives: Sequence[NodeLife], span: Interval, on_demand_usd_per_hour: float | None
) -> str:
    """Dollars so far, and the same node time at the on-demand price where that is known.

    Lives of unknown price add nothing to the first line, and their time to the second.
    """
    step = max((span[1] - span[0]) / _POINTS, 1)
    times = [round(span[0] + i * step) for i in range(_POINTS + 1)]
    paid = [sum(_usd(life, at, life.price_usd_per_hour) for life in lives) for at in times]
    curves = [("paid", "good", paid)]
    if on_demand_usd_per_hour is not None:
        other = [sum(_usd(life, at, on_demand_usd_per_hour) for life in lives) for at in times]
        curves.append(("all on-demand", "on-demand", other))
    high = max((values[-1] for _, _, values in curves), default=0.0)
    x = time_scale(span)
    y = svg.Scale(low=0, high=high or 1.0, start=_BOTTOM, stop=_TOP)
    parts = [*_levels(y, "USD", numbers.usd), *time_axis(span, _TOP, _BOTTOM)]
    for name, colour, values in curves:
        points = [(x(t), y(v)) for t, v in zip(times, values, strict=True)]
        parts.append(svg.path(points, f"line stroke-{colour}"))
        words = f"{name} {numbers.usd(values[-1])}"
        parts.append(svg.text(RIGHT - 4, y(values[-1]) - 8, words, "small strong num under"))
    return svg.figure(WIDTH, _BOTTOM + 24, parts, "Dollars over time")


def _levels(y: svg.Scale, unit: str, words: object) -> list[str]:
    parts = [svg.text(0, _TOP - 8, unit, "quiet small")]
    say = words if callable(words) else str
    for tick in svg.ticks(0, y.high, about=4):
        parts.append(svg.line(LEFT, y(tick), RIGHT, y(tick), "rule"))
        parts.append(svg.text(LEFT - 12, y(tick) + 4.5, say(tick), "quiet small num"))
    return parts


def _within(life: NodeLife, span: Interval) -> list[int]:
    return [t for t in (life.requested_ms, life.end_ms(span[1])) if span[0] < t < span[1]]


def _count(lives: Sequence[NodeLife], market: str, at: int, horizon_ms: int) -> int:
    return sum(
        life.market == market and life.requested_ms <= at < life.end_ms(horizon_ms)
        for life in lives
    )


def _steps(
    cuts: Sequence[int], values: Sequence[int], x: svg.Scale, y: svg.Scale
) -> list[tuple[float, float]]:
    """A staircase: each value holds from its cut to the next one."""
    points = []
    for at, after, value in zip(cuts, cuts[1:], values, strict=False):
        points += [(x(at), y(value)), (x(after), y(value))]
    return points


def _usd(life: NodeLife, at: int, usd_per_hour: float | None) -> float:
    lived = max(0, min(at, life.end_ms(at)) - life.requested_ms)
    return (usd_per_hour or 0.0) * lived / _MS_PER_HOUR
