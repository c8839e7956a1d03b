"""A search as one HTML file: the trials' curves with their rungs, values by setting, the table.

    Path("search.html").write_text(search_page(found, value="bits a byte"))

Pure: what was found in, HTML out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rayburst.report import bars, numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH
from rayburst.report.parts import bold, header, legend, sample, section, tile
from rayburst.report.style import page
from rayburst.train.search.found import Found, Tried, shown
from rayburst.train.search.space import Choice, Range, is_number

__all__ = ["search_page"]

_TOP, _BOTTOM = 26.0, 330.0
_HIGH = 0.9  # of the values' range: what is above leaves the picture


def search_page(found: Found, *, value: str) -> str:
    """The page. `value` says what was measured, lower is better."""
    what, best = found.search, found.best
    lead = (
        f"{what.trials} trials of up to {numbers.grouped(what.rungs.steps)} steps, drawn with seed "
        f"{what.seed}; compared at {', '.join(map(numbers.grouped, what.rungs.milestones))} steps, "
        f"the best 1 of {what.rungs.factor} goes on."
    )
    names = [n for n in what.space if any(is_number(t.settings[n]) for t in found.trials)]
    return page(
        f"search {what.run}",
        [
            header("rayburst search", escape(what.run), lead),
            _figures(found, value),
            section("Trials", f"{value.capitalize()} by step.", _legend() + _curves(found, best)),
            *(
                section(
                    f"By {name}",
                    f"The last {value} of each trial that counts; stronger came further.",
                    _by_setting(found, name),
                )
                for name in names
            ),
            section("In numbers", found.table().note, _table(found)),
        ],
    )


def _figures(found: Found, value: str) -> str:
    best, trials = found.best, found.trials
    trained = sum(one.standing.rung for one in trials)
    whole = found.search.rungs.steps * len(trials)
    stopped = sum(one.standing.state == "stopped" for one in trials)
    settings = [] if best is None else [f"{n} {bold(shown(v))}" for n, v in best.settings.items()]
    shown_best = "none" if best is None or best.last is None else f"{best.last:.3f}"
    return svg.el(
        "div",
        tile("Best", shown_best, value.split(" of ")[0], settings),
        tile("Trial", "-" if best is None else str(best.number), "", [f"of {len(trials)}"]),
        tile("Stopped early", str(stopped), "", [f"{len(trials) - stopped} came to the end"]),
        tile(
            "Steps compared",
            numbers.percent(trained, whole),
            "",
            ["of training every trial to its end"],
        ),
        cls="figures",
    )


def _legend() -> str:
    return legend(
        [
            (sample(svg.path([(1, 7), (19, 7)], "line")), "best"),
            (sample(_thin([(1, 7), (19, 7)], "ink")), "came to the end"),
            (sample(_thin([(1, 7), (19, 7)], "grey")), "stopped"),
            (sample(svg.line(1, 7, 19, 7, "level")), "compared"),
        ]
    )


def _thin(points: Sequence[tuple[float, float]], colour: str, tip: str = "") -> str:
    written = "M" + "L".join(f"{svg.number(x)} {svg.number(y)}" for x, y in points)
    return svg.el(
        "path", tip=tip, d=written, fill="none", stroke=f"var(--{colour})", stroke_width="1.4"
    )


def _curves(found: Found, best: Tried | None) -> str:
    values = [v for t in found.trials for v in t.values.values() if math.isfinite(v)]
    if not values:
        return '<p class="quiet">No trial has a finite value.</p>'
    rungs = found.search.rungs
    x = svg.Scale(low=0, high=rungs.steps, start=LEFT, stop=RIGHT)
    y = _scale(values)
    parts = [*_heights(y), svg.line(LEFT, _BOTTOM, RIGHT, _BOTTOM, "axis")]
    for step in rungs.milestones:
        parts.append(svg.line(x(step), _TOP, x(step), _BOTTOM, "level"))
        words = numbers.grouped(step)
        parts.append(svg.text(x(step), _BOTTOM + 17, words, "quiet small mid"))
    parts.append(svg.text(LEFT - 24, _BOTTOM + 17, "steps", "quiet small num"))
    last = None if best is None else best.number
    for one in sorted(found.trials, key=lambda t: (t.number == last, t.standing.rung)):
        parts += _curve(one, x, y, is_best=one.number == last)
    return svg.figure(WIDTH, _BOTTOM + 24, parts, "Values of all trials by step")


def _curve(one: Tried, x: svg.Scale, y: svg.Scale, *, is_best: bool) -> list[str]:
    points = [(x(step), y(v)) for step, v in one.values.items() if math.isfinite(v)]
    if not points:
        return []
    settings = ", ".join(f"{name} {shown(value)}" for name, value in one.settings.items())
    tip = f"trial {one.number}: {settings}"
    colour = "grey" if one.standing.state == "stopped" else "ink"
    drawn = svg.path(points, "line") if is_best else _thin(points, colour, tip)
    ends = svg.el("circle", cls="dots", cx=points[-1][0], cy=points[-1][1], r=3.6, tip=tip)
    if not is_best:  # the others' names are in their tips: at the end they lie on each other
        return [drawn, ends]
    words = f"trial {one.number}"
    return [drawn, ends, svg.text(points[-1][0] + 8, points[-1][1] + 4.5, words, "strong under")]


def _scale(values: Sequence[float]) -> svg.Scale:
    ordered = sorted(values)
    low, high = ordered[0], ordered[int((len(ordered) - 1) * _HIGH)]
    pad = max((high - low) * 0.1, abs(low) * 0.01, 1e-9)
    return svg.Scale(low=low - pad, high=high + pad, start=_BOTTOM, stop=_TOP)


def _heights(y: svg.Scale) -> list[str]:
    parts = []
    for tick in svg.ticks(y.low, y.high, about=6):
        parts.append(svg.line(LEFT, y(tick), RIGHT, y(tick), "rule"))
        parts.append(svg.text(LEFT - 12, y(tick) + 4.5, f"{tick:g}", "quiet small num"))
    return parts


def _by_setting(found: Found, name: str) -> str:
    points = [
        (float(t.settings[name]), t.last, t)
        for t in found.trials
        if is_number(t.settings[name]) and t.last is not None
    ]
    if not points:
        return '<p class="quiet">No trial has a finite value.</p>'
    among = found.search.space[name]
    is_log = isinstance(among, Range) and among.is_log
    across = [math.log10(at) if is_log else at for at, _, _ in points]
    pad = max((max(across) - min(across)) * 0.04, 1e-9)
    x = svg.Scale(low=min(across) - pad, high=max(across) + pad, start=LEFT, stop=RIGHT)
    y = _scale([value for _, value, _ in points])
    parts = [*_heights(y), svg.line(LEFT, _BOTTOM, RIGHT, _BOTTOM, "axis")]
    ticks = sorted(set(across)) if isinstance(among, Choice) else svg.ticks(x.low, x.high, about=8)
    for tick in ticks:
        words = f"{10**tick:.2g}" if is_log else f"{tick:g}"
        parts.append(svg.text(x(tick), _BOTTOM + 17, words, "quiet small mid"))
    best = found.best
    for at, (_, value, one) in zip(across, points, strict=True):
        share = one.standing.rung / found.search.rungs.steps
        tip = f"trial {one.number}: {name} {shown(one.settings[name])}, {value:.4f}"
        is_best = best is not None and one.number == best.number
        parts.append(
            svg.el(
                "circle",
                cls="good" if is_best else "ink",
                cx=x(at),
                cy=y(value),
                r=6.0 if is_best else 4.5,
                opacity=f"{0.25 + 0.75 * share:.2f}",
                tip=tip,
            )
        )
    return svg.figure(WIDTH, _BOTTOM + 24, parts, f"Last value of each trial by {name}")


def _table(found: Found) -> str:
    told = found.table()
    return bars.table(told.columns, told.rows)
