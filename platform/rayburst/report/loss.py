"""Loss over time: training and validation in bits per byte, with the world size above.

Pure: the run as intervals in, SVG out. The model reads bytes, so the training loss in nats
per token divided by ln 2 is bits per byte and shares the axis with validation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rayburst.report import numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH, time_axis, time_scale
from rayburst.report.history import Era, Interval, Run, eras

_TOP = 44.0
_BOTTOM = 292.0
_POINTS = 420  # more than the eye resolves across the plot


def draw(
    run: Run,
    *,
    span: Interval,
    validation: Sequence[tuple[int, float]],
    order0: float | None,
    marks: Sequence[int],
) -> str:
    """The chart. `validation` is (ms, bits per byte); `marks` are interruptions in ms."""
    x = time_scale(span)
    curves = [_curve(run, era, span) for era in eras(run)]
    values = [v for curve in curves for _, v, _ in curve] + [v for _, v in validation]
    values += [] if order0 is None else [order0]
    if not values:
        return '<p class="quiet">The run log holds no loss.</p>'
    y = _value_scale(values)
    parts = [*_value_axis(y), *time_axis(span, _TOP, _BOTTOM)]
    parts += [_band(c, x) for c in run.changeovers]
    parts += [svg.line(x(at), _TOP, x(at), _BOTTOM, "event") for at in marks]
    parts += _world_sizes(run, x)
    parts += [] if order0 is None else _level(order0, y)
    for curve in curves:
        parts += _lines(curve, x, y)
    parts += _validation(validation, x, y)
    return svg.figure(WIDTH, _BOTTOM + 24, parts, "Loss over time in bits per byte")


def _curve(run: Run, era: Era, span: Interval) -> list[tuple[float, float, bool]]:
    """(ms, bits per byte, redone), the mean over ranks and over what one pixel holds."""
    bin_ms = max((span[1] - span[0]) / _POINTS, 1)
    bins: dict[tuple[int, bool], list[tuple[int, float]]] = {}
    for step in run.steps:
        if step.loss is None or not math.isfinite(step.loss):
            continue
        if era.start_ms <= step.start_ms < era.end_ms and step.world == era.world:
            key = (int((step.end_ms - span[0]) // bin_ms), step.redone)
            bins.setdefault(key, []).append((step.end_ms, step.loss / math.log(2)))
    return [
        (sum(t for t, _ in held) / len(held), sum(v for _, v in held) / len(held), redone)
        for (_, redone), held in sorted(bins.items())
    ]


def _value_scale(values: Sequence[float]) -> svg.Scale:
    low, high = min(values), max(values)
    pad = max((high - low) * 0.08, 0.05)
    low = math.floor((low - pad) * 2) / 2
    return svg.Scale(low=max(low, 0.0), high=high + pad, start=_BOTTOM, stop=_TOP)


def _value_axis(y: svg.Scale) -> list[str]:
    parts = [svg.text(LEFT - 12, _TOP - 4, "bits per byte", "quiet small num")]
    for tick in svg.ticks(y.low, y.high, about=6):
        if y(tick) < _TOP + 10:
            continue
        parts.append(svg.line(LEFT, y(tick), RIGHT, y(tick), "rule"))
        parts.append(svg.text(LEFT - 12, y(tick) + 4.5, f"{tick:g}", "quiet small num"))
    return parts


def _band(changeover: Interval, x: svg.Scale) -> str:
    left = x(changeover[0])
    words = "no training for " + numbers.seconds((changeover[1] - changeover[0]) / 1000)
    return svg.rect(
        left, _TOP, x(changeover[1]) - left, _BOTTOM - _TOP, "stall", opacity="0.35", tip=words
    )


def _world_sizes(run: Run, x: svg.Scale) -> list[str]:
    """The world size as a step line above the plot, with its number on each step."""
    worlds = sorted({era.world for era in eras(run)})
    if not worlds:
        return []
    y = svg.Scale(low=min(worlds) - 0.5, high=max(worlds), start=36, stop=20)
    parts = [svg.text(LEFT - 12, 22, "world size", "quiet small num")]
    before: Era | None = None
    for era in eras(run):
        high = y(era.world)
        if before is not None:
            edge = [(x(before.end_ms), y(before.world)), (x(era.start_ms), high)]
            parts.append(svg.path(edge, "join"))
        parts.append(svg.path([(x(era.start_ms), high), (x(era.end_ms), high)], "worlds"))
        changed = before is None or before.world != era.world
        if changed:
            parts.append(svg.text(x(era.start_ms) + 2, high - 5, str(era.world), "small strong"))
        before = era
    return parts


def _level(order0: float, y: svg.Scale) -> list[str]:
    at = y(order0)
    words = f"order-0 entropy of the text: {numbers.bits(order0)}"
    return [
        svg.line(LEFT, at, RIGHT, at, "level"),
        svg.text(RIGHT, at - 7, words, "quiet small num under"),
    ]


def _lines(curve: Sequence[tuple[float, float, bool]], x: svg.Scale, y: svg.Scale) -> list[str]:
    kept = [(x(t), y(v)) for t, v, redone in curve if not redone]
    lost = [(x(t), y(v)) for t, v, redone in curve if redone]
    if lost and kept:
        lost = [kept[-1], *lost]  # so that the two lines meet
    return [
        svg.path(points, cls)
        for points, cls in ((kept, "line"), (lost, "line lost-line"))
        if points
    ]


def _validation(points: Sequence[tuple[int, float]], x: svg.Scale, y: svg.Scale) -> list[str]:
    parts = [
        svg.el("circle", cls="dots", cx=x(t), cy=y(v), r=4.2, tip=f"validation {numbers.bits(v)}")
        for t, v in points
    ]
    if points:
        t, v = points[-1]
        parts.append(svg.text(x(t) + 10, y(v) + 4.5, numbers.bits(v), "strong under"))
    return parts
