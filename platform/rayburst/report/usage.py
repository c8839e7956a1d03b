"""What a run's paid nodes did over time, as stacked shares. Pure: a story in, SVG out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayburst.report import numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH, time_axis, time_scale
from rayburst.report.bars import LOOKS
from rayburst.report.history import Interval
from rayburst.report.parts import legend, swatch
from rayburst.report.spend import PURPOSES, blocked_on_checkpoints, layers, partition

if TYPE_CHECKING:
    from rayburst.report.run_page import RunStory

_TOP, _BOTTOM = 12.0, 140.0
_BINS = 96


def over_time(story: RunStory) -> str:
    """One column a stretch of time, cut by purpose; empty where no node was paid."""
    x = time_scale(story.span)
    y = svg.Scale(low=0, high=1, start=_BOTTOM, stop=_TOP)
    parts = [*_levels(y), *time_axis(story.span, _TOP, _BOTTOM)]
    for start, end, by in _binned(story):
        paid = sum(by.values())
        base = 0.0
        for purpose in LOOKS:
            share = by[purpose] / paid if paid else 0.0
            if share:
                tip = f"{PURPOSES[purpose]}: {numbers.percent(share, 1.0)}"
                top, low = y(base + share), y(base)
                width = x(end) - x(start) + 0.25  # no hairlines between columns
                parts.append(svg.rect(x(start), top, width, low - top, tip=tip, **LOOKS[purpose]))
            base += share
    return svg.figure(WIDTH, _BOTTOM + 24, parts, "Utilisation over time")


def legend_of(story: RunStory) -> str:
    """The purposes that occur."""
    seen = {purpose for _, _, by in _binned(story) for purpose, spent in by.items() if spent}
    return legend([(swatch(**LOOKS[p]), PURPOSES[p]) for p in LOOKS if p in seen])


def _binned(story: RunStory) -> list[tuple[int, int, dict[str, int]]]:
    blocked = blocked_on_checkpoints(story.log)
    whole = (story.span[0], story.span[1])
    known = [(life, layers(life, story.run, blocked, whole)) for life in story.lives]
    length = max((whole[1] - whole[0]) / _BINS, 1)
    found = []
    for place in range(_BINS):
        cut = (round(whole[0] + place * length), round(whole[0] + (place + 1) * length))
        total = dict.fromkeys(PURPOSES, 0)
        for life, by in known:
            span = _within(cut, (life.requested_ms, life.end_ms(whole[1])))
            if span[1] > span[0]:
                for purpose, spent in partition(span, {**by, "idle": [span]}).items():
                    total[purpose] += spent
        found.append((*cut, total))
    return found


def _within(one: Interval, other: Interval) -> Interval:
    return (max(one[0], other[0]), min(one[1], other[1]))


def _levels(y: svg.Scale) -> list[str]:
    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts.append(svg.line(LEFT, y(tick), RIGHT, y(tick), "rule"))
        parts.append(svg.text(LEFT - 12, y(tick) + 4.5, f"{tick:.0%}", "quiet small num"))
    return parts
