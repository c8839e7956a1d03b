"""The top of the demo report: what happened in one line, and its headline figures.

Pure: report.json in, HTML out. A missing figure reads "unknown".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rayburst.report import numbers, parts, svg
from rayburst.report.interruption import Interruption
from rayburst.report.parts import bold, tile

Report = Mapping[str, Any]


def get(report: Report, part: str, key: str) -> Any:
    """A value of the report, None where the part or the key is missing."""
    return (report.get(part) or {}).get(key)


def header(report: Report, *, nodes: int, interruptions: Sequence[Interruption]) -> str:
    """Title, how the job ended, and one line that sums it up."""
    status = str(get(report, "job", "status") or numbers.UNKNOWN)
    cls = "status ok" if status == "SUCCEEDED" else "status bad"
    badge = svg.el("span", escape(status.lower()), cls=cls)
    title = f"{_title(report, status, interruptions)} {badge}"
    return parts.header("rayburst demo", title, _lead(report, nodes))


def _title(report: Report, status: str, interruptions: Sequence[Interruption]) -> str:
    if status == numbers.UNKNOWN:
        return "The job’s outcome is not recorded"
    if status != "SUCCEEDED":
        return "Training did not finish"
    through = "Trained through interruptions" if interruptions else "Trained"
    return through + (", then served" if report.get("serving") else "")


def _lead(report: Report, nodes: int) -> str:
    sizes = get(report, "training", "world_sizes") or []
    at_once = f" on {_span_words(sizes)}" if sizes else ""
    words = [
        f"{numbers.count(get(report, 'training', 'steps'), 'step')} of training{at_once}",
        f"{numbers.count(nodes, 'node')} in all",
        f"{numbers.seconds(report.get('wall_s'))} wall time",
    ]
    return ", ".join(words) + "."


def _span_words(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return numbers.count(high, "worker") if low == high else f"{low} to {high} workers"


def figures(report: Report, interruptions: Sequence[Interruption]) -> str:
    """The four headline figures, each with what it compares to."""
    tiles = (_model(report), _survived(report, interruptions), _saved(report), _served(report))
    return svg.el("div", *tiles, cls="figures")


def _model(report: Report) -> str:
    val = get(report, "training", "val_bits_per_byte")
    order0 = get(report, "training", "order0_bits_per_byte")
    notes = [f"order-0 entropy of the text {bold(numbers.bits(order0))}"]
    if val is not None and order0 is not None:
        below = order0 - val
        side = "below" if below >= 0 else "above"
        notes.append(f"{bold(numbers.bits(abs(below)))} {side} it")
    unit = "" if val is None else "bits per byte"
    return tile("Validation", numbers.bits(val), unit, notes)


def _survived(report: Report, interruptions: Sequence[Interruption]) -> str:
    survived = get(report, "job", "status") == "SUCCEEDED"
    name = "Interruptions survived" if survived else "Interruptions"
    if report.get("interruptions") is None:
        return tile(name, numbers.UNKNOWN, "", ["not in the report"])
    notes = [
        f"{escape(i.words)}: {bold(numbers.seconds(i.gap_s))} gap, "
        f"{bold(numbers.count(i.steps_lost, 'step'))} lost"
        for i in interruptions
    ]
    return tile(name, str(len(notes)), "", notes or ["no node was taken away"])


def _saved(report: Report) -> str:
    usd = get(report, "cost", "usd")
    other = get(report, "cost", "usd_if_on_demand")
    notes = [f"all on-demand {bold(numbers.usd(other))}"]
    if usd is not None and other:
        side = "less" if usd <= other else "more"
        notes.append(f"{bold(numbers.percent(abs(other - usd), other))} {side}")
    elif usd is None:
        notes.append("a price is not known")
    return tile("Cost", numbers.usd(usd), "", notes)


def _served(report: Report) -> str:
    serving = report.get("serving") or {}
    if not serving:
        return tile("Serving", "–", "", ["nothing was served"])
    value = f"{numbers.milliseconds(serving.get('p50_ms'))}"
    errors = serving.get("errors")
    notes = [
        f"p99 {bold(numbers.milliseconds(serving.get('p99_ms')))}",
        f"{bold(numbers.count(serving.get('requests'), 'request'))}, "
        f"{bold(numbers.count(errors, 'error'))}",
    ]
    rate = serving.get("requests_per_s")
    notes += [] if rate is None else [f"{bold(numbers.grouped(rate))} requests per second"]
    return tile("Serving", value, "p50", notes)
