"""When a job will end and what it will cost: on-prem only, spot only, mixed, on-demand. Pure.

    told = forecast(JobNeeds(work_s=48 * 3600, deadline_s=60 * 3600, changeover_s=720), terms,
                    belief, rng=np.random.default_rng(0))
    print(told)                       # a table with intervals
    told.option("mixed").usd.high

Spot's future is not known, so it is drawn many times over from the rates that were recorded or
learned (`fleet/replay/futures.py`), and the job is played through every draw: "mixed" by the policy
that also decides live. An interval holds 90% of the draws. How often it held what then happened is
measured on recorded markets (docs/cost.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from rayburst.errors import PriceError
from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.replay.futures import Belief, by_deadline, futures, play_each, spot_only
from rayburst.fleet.replay.lanes import Floats, Lanes, Rules
from rayburst.report import numbers
from rayburst.report.tables import Table

if TYPE_CHECKING:
    import pandas

COVERS = 0.90
OPTIONS = ("on-prem", "spot", "mixed", "on-demand")
_LONGEST = 6.0  # spot alone is followed for so many times the work, then given up


@dataclass(frozen=True, kw_only=True, slots=True)
class JobNeeds:
    """One job. `work_s`: running time without pauses, on `nodes` nodes at once.

    Attributes:
        changeover_s: from asking for nodes to training again, paid at each start.
        deadline_s: from now; None is none, and then "mixed" has no reason to take on-demand.
        budget_usd: of all nodes together; None is none.
    """

    work_s: float
    changeover_s: float
    nodes: int = 1
    deadline_s: float | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        if self.work_s <= 0 or self.changeover_s < 0 or self.nodes < 1:
            raise PriceError(
                f"work {self.work_s} s, changeover {self.changeover_s} s, {self.nodes} nodes: work "
                "above 0, the changeover 0 or more, a node at least"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Prices of one node an hour, and how many nodes are owned. None: unknown, or not to be had."""

    on_prem_usd_per_hour: float | None = None
    own_nodes: int = 0
    spot_usd_per_hour: float | None = None
    on_demand_usd_per_hour: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """An interval that holds COVERS of all futures, and the middle one. Infinity: it may never."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to run the job.

    Attributes:
        hours, usd: until its end, and in all.
        on_time, in_budget: share of futures that keep the deadline and the budget.
        why_not: why it cannot be had; then the rest is None.
    """

    name: str
    hours: Span | None = None
    usd: Span | None = None
    on_time: float | None = None
    in_budget: float | None = None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """All options of one job. Prints as a table."""

    needs: JobNeeds
    options: Sequence[Option]
    futures: int

    def option(self, name: str) -> Option:
        """One option by its name. Raises PriceError that lists them."""
        for option in self.options:
            if option.name == name:
                return option
        raise PriceError(f"no option {name!r}; there are {', '.join(OPTIONS)}")

    @property
    def best(self) -> Option | None:
        """The cheapest that keeps deadline and budget in 95% of futures; None where none does."""
        kept = [
            option
            for option in self.options
            if option.usd is not None
            and (option.on_time or 0) >= 0.95
            and (option.in_budget or 0) >= 0.95
        ]
        return min(kept, key=lambda option: option.usd.middle if option.usd else 0.0, default=None)

    def table(self) -> Table:
        rows = [_row(option) for option in self.options]
        note = f"{COVERS:.0%} of {self.futures} futures lie between low and high. " + (
            f"Take {self.best.name}." if self.best else "Nothing keeps both for certain."
        )
        columns = (
            "option",
            "ends after",
            "low",
            "high",
            "USD",
            "low",
            "high",
            "on time",
            "in budget",
        )
        return Table("forecast", columns, rows, note)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; what may never end has None."""
        raw = asdict(self)
        for option in raw["options"]:
            for span in (option["hours"], option["usd"]):
                for key in span or ():
                    span[key] = span[key] if math.isfinite(span[key]) else None
        return raw

    def __str__(self) -> str:
        return str(self.table())

    def frame(self) -> pandas.DataFrame:
        """One row an option: hours and USD with their intervals, shares of futures in time."""
        import pandas

        rows = [
            {
                "option": option.name,
                **{f"hours_{k}": v for k, v in asdict(option.hours or _NO_SPAN).items()},
                **{f"usd_{k}": v for k, v in asdict(option.usd or _NO_SPAN).items()},
                "on_time": option.on_time,
                "in_budget": option.in_budget,
            }
            for option in self.options
        ]
        return pandas.DataFrame(rows).set_index("option")

    def html(self) -> str:
        """The forecast as one page: when each option ends and what it costs, with intervals."""
        from rayburst.report.forecast_page import forecast_page

        return forecast_page(self)

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that no style leaks."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="820"></iframe>'


_NO_SPAN = Span(low=math.nan, middle=math.nan, high=math.nan)


def forecast(
    needs: JobNeeds,
    terms: Terms,
    belief: Belief,
    *,
    rng: np.random.Generator,
    paths: int = 100,
    tick_s: float = 600.0,
) -> Forecast:
    """Forecast every option.

    Args:
        belief: rates of the spot market and how it stands now.
        rng: the only source of chance; the same gives the same forecast.
        paths: futures to draw. tick_s: time from one decision to the next.
    """
    drawn = _drawn(needs, belief, rng, paths, tick_s)
    return Forecast(
        needs=needs,
        futures=paths,
        options=(
            _on_prem(needs, terms),
            _spot(needs, terms, drawn, belief, tick_s),
            _mixed(needs, terms, drawn, belief, tick_s),
            _on_demand(needs, terms),
        ),
    )


def _drawn(
    needs: JobNeeds, belief: Belief, rng: np.random.Generator, paths: int, tick_s: float
) -> Any:
    longest_s = max(_LONGEST * needs.work_s, needs.deadline_s or 0.0)
    ticks = math.ceil(longest_s / tick_s) + 1
    return futures(belief, ticks=ticks, tick_s=tick_s, paths=paths, rng=rng)


def _on_prem(needs: JobNeeds, terms: Terms) -> Option:
    if terms.own_nodes < needs.nodes:
        why = f"{needs.nodes} nodes are needed and {terms.own_nodes} owned"
        return Option(name="on-prem", why_not=why)
    return _certain("on-prem", needs, terms.on_prem_usd_per_hour)


def _on_demand(needs: JobNeeds, terms: Terms) -> Option:
    return _certain("on-demand", needs, terms.on_demand_usd_per_hour)


def _certain(name: str, needs: JobNeeds, usd_per_hour: float | None) -> Option:
    if usd_per_hour is None:
        return Option(name=name, why_not="its price is not known")
    hours = (needs.work_s + needs.changeover_s) / 3600
    ends, usd = np.array([hours]), np.array([hours * usd_per_hour * needs.nodes])
    return _option(name, needs, ends, usd)


def _spot(needs: JobNeeds, terms: Terms, up: Any, belief: Belief, tick_s: float) -> Option:
    if terms.spot_usd_per_hour is None:
        return Option(name="spot", why_not="its price is not known")
    lanes = play_each(
        spot_only, up, _rules(needs, 1.0, tick_s), allowed_s=math.inf, age_s=belief.age_s
    )
    return _played("spot", needs, lanes, terms.spot_usd_per_hour)


def _mixed(needs: JobNeeds, terms: Terms, up: Any, belief: Belief, tick_s: float) -> Option:
    if terms.spot_usd_per_hour is None or terms.on_demand_usd_per_hour is None:
        return Option(name="mixed", why_not="a price of spot or of on-demand is not known")
    if needs.deadline_s is None:
        return Option(name="mixed", why_not="without a deadline spot alone is as good")
    ratio = max(terms.on_demand_usd_per_hour / terms.spot_usd_per_hour, 1.0)
    policy = by_deadline(belief.hazards, DeadlinePolicy())
    rules = _rules(needs, ratio, tick_s)
    lanes = play_each(policy, up, rules, allowed_s=needs.deadline_s, age_s=belief.age_s)
    return _played("mixed", needs, lanes, terms.spot_usd_per_hour)


def _rules(needs: JobNeeds, ratio: float, tick_s: float) -> Rules:
    return Rules(
        work_s=needs.work_s, changeover_s=needs.changeover_s, price_ratio=ratio, tick_s=tick_s
    )


def _played(name: str, needs: JobNeeds, lanes: Lanes, spot_usd_per_hour: float) -> Option:
    usd = lanes.cost / 3600 * spot_usd_per_hour * needs.nodes
    return _option(name, needs, lanes.end_s / 3600, usd)


def _option(name: str, needs: JobNeeds, hours: Floats, usd: Floats) -> Option:
    latest = math.inf if needs.deadline_s is None else needs.deadline_s / 3600 + 1e-9
    most = math.inf if needs.budget_usd is None else needs.budget_usd + 1e-9
    return Option(
        name=name,
        hours=_span(hours),
        usd=_span(usd),
        on_time=float(np.mean(np.isfinite(hours) & (hours <= latest))),
        in_budget=float(np.mean(usd <= most)),
    )


def _span(values: Floats) -> Span:
    """Quantiles that are values which were drawn: between a time and never lies nothing."""
    edges = ((1 - COVERS) / 2, 0.5, (1 + COVERS) / 2)
    ways = ("lower", "nearest", "higher")
    low, middle, high = (
        float(np.quantile(values, q, method=way))  # type: ignore[call-overload]
        for q, way in zip(edges, ways, strict=True)
    )
    return Span(low=low, middle=middle, high=high)


def _row(option: Option) -> tuple[str, ...]:
    if option.hours is None or option.usd is None:
        return (option.name, option.why_not, "", "", "", "", "", "", "")
    hours, usd = option.hours, option.usd
    times = [_time(value) for value in (hours.middle, hours.low, hours.high)]
    money = [numbers.usd(value) for value in (usd.middle, usd.low, usd.high)]
    return (option.name, *times, *money, f"{option.on_time:.0%}", f"{option.in_budget:.0%}")


def _time(hours: float) -> str:
    return numbers.seconds(hours * 3600) if math.isfinite(hours) else "never"
