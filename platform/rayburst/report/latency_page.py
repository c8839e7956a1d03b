"""Latency and throughput under load, as one page: percentiles by load size, servers side by side.

    page = latency_page("load test", cells)       # cells: LoadCell, one a server and load size

Pure: data in, HTML out. A bar spans the median to the 99th percentile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from rayburst.report import bars, numbers, svg
from rayburst.report.parts import header, legend, section, swatch
from rayburst.report.style import page

_WIDTH, _LEFT, _RIGHT = 1080.0, 190.0, 930.0
_ROW, _TOP, _APART = 30.0, 16.0, 12.0
_LOOKS = ("good", "on-prem", "spot", "on-demand", "other", "soft")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadCell:
    """One server under one load. `size` is requests at once (or what `unit` says)."""

    server: str
    size: float
    p50_ms: float
    p99_ms: float
    requests_per_s: float
    p95_ms: float | None = None
    errors: int = 0


def cells_of(runs: Sequence[Mapping[str, Any]], *, load: str) -> list[LoadCell]:
    """Medians over the rounds of a serving benchmark's JSON (`cells`), for one kind of load."""
    grouped: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["load"] == load:
            grouped.setdefault((str(run["server"]), float(run["size"])), []).append(run)
    return [
        LoadCell(
            server=server,
            size=size,
            p50_ms=median(r["p50_ms"] for r in held),
            p95_ms=median(r["p95_ms"] for r in held),
            p99_ms=median(r["p99_ms"] for r in held),
            requests_per_s=median(r["rps"] for r in held),
            errors=sum(int(r["errors"]) for r in held),
        )
        for (server, size), held in grouped.items()
    ]


def latency_page(
    title: str, cells: Sequence[LoadCell], *, lead: str = "", unit: str = "at once"
) -> str:
    """The whole page as HTML; `lead` says where and when it was measured."""
    head = header("rayburst serving", escape(title), lead)
    look = {name: _LOOKS[i % len(_LOOKS)] for i, name in enumerate(_servers(cells))}
    names = legend([(swatch(cls=colour), name) for name, colour in look.items()])
    knows_p95 = any(cell.p95_ms is not None for cell in cells)
    percentiles = ("p50", "p95", "p99") if knows_p95 else ("p50", "p99")
    columns = ("server", unit, *percentiles, "requests/s", "errors")
    spans = "From the median (circle) to the 99th percentile"
    return page(
        title,
        [
            head,
            section(
                "Latency",
                spans + ("; a line at the 95th." if knows_p95 else "."),
                names + _latencies(cells, look, unit),
            ),
            section("Throughput", "Answers a second.", names + _rates(cells, look, unit)),
            section("In numbers", "", bars.table(columns, [_row(c, knows_p95) for c in cells])),
        ],
    )


def _servers(cells: Sequence[LoadCell]) -> list[str]:
    return list(dict.fromkeys(cell.server for cell in cells))


def _ordered(cells: Sequence[LoadCell]) -> list[LoadCell]:
    place = {name: i for i, name in enumerate(_servers(cells))}
    return sorted(cells, key=lambda cell: (cell.size, place[cell.server]))


def _placed(cells: Sequence[LoadCell]) -> list[tuple[LoadCell, float]]:
    """Every cell and the middle of its row; sizes stand apart."""
    sizes = sorted({cell.size for cell in cells})
    return [
        (cell, _TOP + _ROW * (place + 0.5) + _APART * sizes.index(cell.size))
        for place, cell in enumerate(_ordered(cells))
    ]


def _latencies(cells: Sequence[LoadCell], look: Mapping[str, str], unit: str) -> str:
    high = max((cell.p99_ms for cell in cells), default=1.0)
    x = svg.Scale(low=0, high=high * 1.02, start=_LEFT, stop=_RIGHT)
    parts = _frame(cells, x, unit, numbers.milliseconds)
    for cell, middle in _placed(cells):
        tip = (
            f"{cell.server}: median {numbers.milliseconds(cell.p50_ms)}, "
            f"99th {numbers.milliseconds(cell.p99_ms)}"
        )
        width = x(cell.p99_ms) - x(cell.p50_ms)
        parts.append(svg.rect(x(cell.p50_ms), middle - 7, width, 14, look[cell.server], tip=tip))
        if cell.p95_ms is not None:
            parts.append(svg.rect(x(cell.p95_ms) - 1, middle - 7, 2, 14, "paper"))
        parts.append(svg.el("circle", cls="dots", cx=x(cell.p50_ms), cy=middle, r=5.0, tip=tip))
        words = f"{numbers.milliseconds(cell.p50_ms)} … {numbers.milliseconds(cell.p99_ms)}"
        parts.append(svg.text(x(cell.p99_ms) + 10, middle + 4.5, words, "small"))
    return svg.figure(_WIDTH, _bottom(cells) + 24, parts, "Latency by load")


def _rates(cells: Sequence[LoadCell], look: Mapping[str, str], unit: str) -> str:
    high = max((cell.requests_per_s for cell in cells), default=1.0)
    x = svg.Scale(low=0, high=high * 1.02, start=_LEFT, stop=_RIGHT)
    parts = _frame(cells, x, unit, numbers.grouped)
    for cell, middle in _placed(cells):
        words = f"{numbers.grouped(cell.requests_per_s)}/s"
        width = x(cell.requests_per_s) - _LEFT
        parts.append(svg.rect(_LEFT, middle - 9, width, 18, look[cell.server], tip=words))
        parts.append(svg.text(x(cell.requests_per_s) + 10, middle + 4.5, words, "small strong"))
    return svg.figure(_WIDTH, _bottom(cells) + 24, parts, "Throughput by load")


def _frame(cells: Sequence[LoadCell], x: svg.Scale, unit: str, say: Any) -> list[str]:
    """Ticks, and the load size beside the first row of each."""
    parts, before = [], None
    for tick in svg.ticks(0, x.high, about=7):
        parts.append(svg.line(x(tick), _TOP, x(tick), _bottom(cells), "rule"))
        parts.append(svg.text(x(tick), _bottom(cells) + 17, say(tick), "quiet small mid"))
    for cell, middle in _placed(cells):
        if cell.size != before:
            parts.append(svg.text(0, middle + 4.5, f"{cell.size:g} {unit}", "strong"))
            before = cell.size
    return parts


def _bottom(cells: Sequence[LoadCell]) -> float:
    return _TOP + _ROW * len(cells) + _APART * max(len({cell.size for cell in cells}) - 1, 0)


def _row(cell: LoadCell, knows_p95: bool) -> tuple[str, ...]:
    return (
        cell.server,
        f"{cell.size:g}",
        numbers.milliseconds(cell.p50_ms),
        *([numbers.milliseconds(cell.p95_ms)] if knows_p95 else []),
        numbers.milliseconds(cell.p99_ms),
        numbers.grouped(cell.requests_per_s),
        str(cell.errors),
    )
