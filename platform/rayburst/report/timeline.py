"""The nodes of a run on one time axis: markets, states, interruptions, and the training lane.

Pure: node lives and the run as intervals in, SVG out. It knows nothing of prices or loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayburst.report import lane, numbers, svg
from rayburst.report import phases as strip
from rayburst.report.axis import WIDTH, time_axis, time_scale
from rayburst.report.history import Interval, NodeLife, Run
from rayburst.report.interruption import Interruption
from rayburst.report.marks import cross, triangle_down
from rayburst.report.style import MARKETS, market_class

_NAMED = 14.0  # a row's height from which on there is room for words


def draw(
    lives: Sequence[NodeLife],
    run: Run,
    *,
    span: Interval,
    phases: Sequence[strip.Phase],
    checkpoints: Sequence[int],
    interruptions: Sequence[Interruption],
) -> str:
    """The whole timeline. `phases` are (name, from, to), `checkpoints` instants; all in ms."""
    x = time_scale(span)
    rows = _rows(lives)
    height = _row_height(len(rows))
    acts, top = strip.draw(phases, x)
    first = top + (lane.HEIGHT if run.window else 0.0)
    bottom = first + height * len(rows) + 4
    parts = [*time_axis(span, top, bottom), *acts]
    for place, (_, stays) in enumerate(rows):
        parts += _row(stays, x, first + height * place, height, span[1])
    lanes, labels = lane.draw(run, x, top, checkpoints)
    parts += lanes
    for interruption in interruptions:
        parts += _interruption(interruption, rows, x, (top, first, height), span[1])
    parts += labels
    label = f"Timeline of {len(rows)} nodes, {len(interruptions)} interruptions"
    return svg.figure(WIDTH, bottom + 24, parts, label)


def _rows(lives: Sequence[NodeLife]) -> list[tuple[str, list[NodeLife]]]:
    """One row a node: on-prem first, then spot, then on-demand, then by first request."""
    by_node: dict[str, list[NodeLife]] = {}
    for life in lives:
        by_node.setdefault(life.node, []).append(life)
    rank = {market: place for place, market in enumerate(MARKETS)}
    return sorted(
        by_node.items(), key=lambda row: (rank.get(row[1][0].market, 9), row[1][0].requested_ms)
    )


def _row_height(rows: int) -> float:
    return 27.0 if rows <= 16 else max(7.0, 432.0 / rows)


def names_fit(rows: int) -> bool:
    """Whether rows are high enough for names beside them; where not, tips have them."""
    return _row_height(rows) >= _NAMED


def _row(
    stays: Sequence[NodeLife], x: svg.Scale, top: float, height: float, horizon_ms: int
) -> list[str]:
    bar, parts = max(height - 10, height * 0.6), []
    for stay in stays:
        parts += _life(stay, x, top + (height - bar) / 2, bar, horizon_ms)
    if height >= _NAMED:
        held_s = sum(s.end_ms(horizon_ms) - s.requested_ms for s in stays) / 1000
        middle = top + height / 2 + 4.5
        parts.append(svg.text(0, middle, _shortened(stays[0].node)))
        parts.append(svg.text(WIDTH, middle, numbers.seconds(held_s), "quiet small num"))
    return parts


def _shortened(name: str) -> str:
    return name if len(name) <= 16 else name[:7] + "…" + name[-8:]


def _life(life: NodeLife, x: svg.Scale, top: float, bar: float, horizon_ms: int) -> list[str]:
    colour = market_class(life.market)
    end = life.end_ms(horizon_ms)
    up = end if life.up_ms is None else min(life.up_ms, end)
    draining = end if life.draining_ms is None else min(max(life.draining_ms, up), end)
    name = f"{life.node} ({life.market or 'market unknown'})"
    parts = []
    for start, stop, words in (
        (life.requested_ms, up, "starting"),
        (up, draining, "up"),
        (draining, end, "draining"),
    ):
        if stop <= start:
            continue
        tip = f"{name}: {words} {numbers.seconds((stop - start) / 1000)}"
        left, width = x(start), x(stop) - x(start)
        if words == "starting":
            parts.append(
                svg.rect(
                    left + 0.75, top + 0.75, width - 1.5, bar - 1.5, "paper",
                    stroke=f"var(--{colour})", stroke_width="1.5", tip=tip,
                )
            )  # fmt: skip
        elif words == "up":
            parts.append(svg.rect(left, top, width, bar, colour, tip=tip))
        else:
            fill = f"url(#hatch-{colour})"
            parts.append(svg.rect(left, top, width, bar, fill=fill, tip=tip))
    return parts


def _interruption(
    it: Interruption,
    rows: Sequence[tuple[str, list[NodeLife]]],
    x: svg.Scale,
    frame: tuple[float, float, float],
    horizon_ms: int,
) -> list[str]:
    """A dashed line from the training lane to the node, a sign there, words beside its end."""
    top, first, height = frame
    place = next((n for n, (node, _) in enumerate(rows) if node == it.node), None)
    if place is None or it.at_ms is None:
        return []
    middle = first + height * (place + 0.5)
    at = x(it.at_ms)
    after = [s for s in rows[place][1] if s.end_ms(horizon_ms) >= it.at_ms]
    ends = x(after[0].end_ms(horizon_ms)) if after else at
    parts = [svg.line(at, top, at, middle, "event")]
    sign = cross(at, middle) if it.kind == "cut" else triangle_down(at, middle, it.words)
    parts.append(sign)
    if height >= _NAMED:
        parts.append(svg.text(max(ends, at) + 12, middle + 4.5, it.words, "small strong"))
    return parts
