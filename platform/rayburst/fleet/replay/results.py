"""What a replay found: rows, means, the share of the excess removed; as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rayburst.fleet.replay.lanes import Floats
from rayburst.report.tables import Table

_COLUMNS = (
    *("zone", "fraction", "policy", "cost", "excess", "misses", "starts"),
    *("spot h", "on-demand h"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One policy on one zone at one fraction: means over the jobs, misses summed.

    Attributes:
        cost_ratio: cost over all-on-demand.
        starts, spot_h, on_demand_h: None for the yardstick, which has a cost only.
    """

    trace_set: str
    zone: str
    fraction: float
    policy: str
    cost_ratio: float
    misses: int
    jobs: int
    starts: float | None
    spot_h: float | None
    on_demand_h: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All rows of a replay.

    Attributes:
        job_costs: (zone, policy) to cost ratios of shape [fractions, jobs].
        job_starts_s: zone to the time each of those jobs began, from the first tick of the trace.
    """

    rows: tuple[Row, ...]
    job_starts_s: Mapping[str, Floats] = field(default_factory=dict)
    job_costs: Mapping[tuple[str, str], Floats] = field(default_factory=dict)

    def mean(self) -> dict[str, dict[str, float]]:
        """Fraction to policy to cost ratio, the mean of zones."""
        found: dict[str, dict[str, list[float]]] = {}
        for row in self.rows:
            by = found.setdefault(str(row.fraction), {})
            by.setdefault(row.policy, []).append(row.cost_ratio)
        return {f: {p: float(np.mean(v)) for p, v in by.items()} for f, by in found.items()}

    def removed(self, against: str = "uniform-progress") -> dict[str, float]:
        """Share of the excess of `against` over omniscient that rayburst removes, by fraction."""
        needed = {"rayburst", against, "omniscient"}
        return {
            f: (by[against] - by["rayburst"]) / (by[against] - by["omniscient"])
            for f, by in self.mean().items()
            if needed <= set(by) and by[against] - by["omniscient"] > 1e-9
        }

    def misses(self) -> int:
        """Deadlines missed, all policies together."""
        return sum(row.misses for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """`rows`, `mean` and `removed`, ready for json.dump."""
        excess = self._excess()
        rows = [
            {**asdict(row), "excess": excess.get((row.zone, row.fraction, row.policy))}
            for row in self.rows
        ]
        return {"rows": rows, "mean": self.mean(), "removed": self.removed()}

    def table(self) -> Table:
        """Every row, by zone and fraction, then the means of several zones. A name is said once."""
        excess = self._excess()
        zones = list(dict.fromkeys(row.zone for row in self.rows))
        rows = sorted(self.rows, key=lambda row: (zones.index(row.zone), row.fraction))
        lines: list[tuple[str, ...]] = [
            (
                row.zone,
                f"{row.fraction:g}",
                row.policy,
                f"{row.cost_ratio:.4f}",
                _number(excess.get((row.zone, row.fraction, row.policy)), ".4f"),
                str(row.misses),
                _number(row.starts, ".1f"),
                _number(row.spot_h, ".1f"),
                _number(row.on_demand_h, ".1f"),
            )
            for row in rows
        ]
        for fraction, by in self.mean().items() if len(zones) > 1 else ():
            best = by.get("omniscient")
            for policy, cost in by.items():
                over = None if best is None else cost - best
                cells = (f"{float(fraction):g}", policy, f"{cost:.4f}", _number(over, ".4f"))
                lines.append(("mean of zones", *cells, *self._totals(fraction, policy)))
        removed = self.removed()
        below = any(over < -1e-6 for over in excess.values())
        note = "cost: over all-on-demand. excess: cost above omniscient. Hours are means of jobs."
        if below:
            note += " omniscient needs all nodes of a gang: one that may shrink can cost less."
        elif removed:
            shares = ", ".join(f"{float(f):g}: {s:.0%}" for f, s in removed.items())
            note += f" rayburst removes of uniform-progress's excess, by fraction: {shares}."
        return Table("Replay", _COLUMNS, _said_once(lines), note)

    def _totals(self, fraction: str, policy: str) -> tuple[str, ...]:
        """Misses of all zones, and means of zones of starts and hours, as text."""
        rows = [r for r in self.rows if str(r.fraction) == fraction and r.policy == policy]

        def mean(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.mean(known)) if known else None

        return (
            str(sum(row.misses for row in rows)),
            _number(mean([row.starts for row in rows]), ".1f"),
            _number(mean([row.spot_h for row in rows]), ".1f"),
            _number(mean([row.on_demand_h for row in rows]), ".1f"),
        )

    def _excess(self) -> dict[tuple[str, float, str], float]:
        best = {(r.zone, r.fraction): r.cost_ratio for r in self.rows if r.policy == "omniscient"}
        return {
            (r.zone, r.fraction, r.policy): r.cost_ratio - best[r.zone, r.fraction]
            for r in self.rows
            if (r.zone, r.fraction) in best
        }


def _said_once(lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Zone and fraction only where they change."""
    shown, before = [], ("", "")
    for zone, fraction, *cells in lines:
        at = ("" if zone == before[0] else zone, "" if (zone, fraction) == before else fraction)
        shown.append((*at, *cells))
        before = (zone, fraction)
    return shown


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
