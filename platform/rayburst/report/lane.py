"""The training lane above the nodes: world size as height, stops, lost work, checkpoints.

Pure: the run as intervals in, SVG out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayburst.report import numbers, svg
from rayburst.report.history import Era, Interval, Run, eras
from rayburst.report.marks import diamond, triangle_right

_LANE = 58.0
HEIGHT = _LANE + 32.0


def draw(
    run: Run, x: svg.Scale, top: float, checkpoints: Sequence[int]
) -> tuple[list[str], list[str]]:
    """Shapes, and the labels to write over them; nothing for a run that never started."""
    if run.window is None:
        return [], []
    begun, base = {start for start, _ in run.windows}, top + _LANE
    stages = eras(run)
    tall = (_LANE - 10) / max((era.world for era in stages), default=1)
    shapes = [_stop(c, c[0] in begun, x, top) for c in run.changeovers]
    labels = [svg.text(0, base - 18, "training", "strong")]
    for era in stages:
        drawn, label = _stage(era, run, x, (base, tall * era.world))
        shapes += drawn
        labels += label
    marks = base + 13
    labels.append(svg.text(0, marks + 4, "checkpoints", "quiet small"))
    labels += [diamond(x(at), marks, "checkpoint saved") for at in checkpoints]
    restarts = [end for start, end in run.changeovers if start not in begun]
    labels += [triangle_right(x(end), marks, "training goes on") for end in restarts]
    return shapes, labels


def _stop(changeover: Interval, is_first: bool, x: svg.Scale, top: float) -> str:
    length = numbers.seconds((changeover[1] - changeover[0]) / 1000)
    words = "workers start" if is_first else "training stands still"
    left = x(changeover[0])
    return svg.rect(
        left, top + 4, x(changeover[1]) - left, _LANE - 4, "stall", tip=f"{words}: {length}"
    )


def _stage(
    era: Era, run: Run, x: svg.Scale, box: tuple[float, float]
) -> tuple[list[str], list[str]]:
    """One stretch at one world size, hatched where its steps were lost later."""
    base, high = box
    left, right = x(era.start_ms), x(era.end_ms)
    words = numbers.count(era.world, "worker")
    shapes = [svg.rect(left, base - high, right - left, high, "good", tip=words)]
    lost = [s for s in run.steps if s.redone and era.start_ms <= s.start_ms < era.end_ms]
    if lost:
        right = x(min(s.start_ms for s in lost))
        width = x(max(s.end_ms for s in lost)) - right
        tip = numbers.count(len({s.step for s in lost}), "step") + " lost and computed again"
        shapes.append(svg.rect(right, base - high, width, high, fill="url(#hatch-lost)", tip=tip))
    for label, needed in ((words, 16 + 8.2 * len(words)), (str(era.world), 22)):
        if right - left > needed:
            return shapes, [svg.text(left + 8, base - high / 2 + 5, label, "on strong")]
    return shapes, []
