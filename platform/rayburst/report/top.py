"""One screen of a fleet: pools, nodes, jobs, what was taken away, what an hour costs. Pure.

    screen = draw(Snapshot(...), height=40)     # a rich renderable; `rayburst top` shows it live

The screen is drawn from plain data, so that a test and a picture see what a user sees. It fits
itself to the height that it is given: nodes are cut first, and how many are hidden stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayburst.fleet.status import NodeStatus, summarised
from rayburst.report import numbers
from rayburst.report.style import MARKETS

# Colours of the terminal's own palette, so that light and dark both read well.
MARKET_STYLES = {"on-prem": "blue", "spot": "yellow", "on-demand": "magenta"}
_STATE_STYLES = {"up": "green", "starting": "cyan", "draining": "red"}
_FRAME = 22  # lines that are not nodes


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSeen:
    """A pool: living hosts of so many at the most."""

    name: str
    market: str
    living: int
    most: int
    price_usd_per_hour: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSeen:
    """A job and the last line it printed, which for training holds step, loss and ETA."""

    id: str
    status: str
    last_line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenSeen:
    """A node that got notice or went without one."""

    ago_s: float
    node: str
    market: str
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A fleet at one moment.

    Attributes:
        usd: spent since its event log began; usd_if_on_demand: the same time on-demand, if known.
        taken: newest first.
    """

    fleet: str
    clock: str
    pools: Sequence[PoolSeen]
    nodes: Sequence[NodeStatus]
    jobs: Sequence[JobSeen]
    pending: Sequence[str]
    taken: Sequence[TakenSeen]
    usd: float | None
    usd_if_on_demand: float | None
    problems: Sequence[str] = field(default_factory=tuple)

    @property
    def usd_per_hour(self) -> float | None:
        """What an hour costs as the fleet stands; None when a living node has no known price."""
        prices = [node.price_usd_per_hour for node in self.nodes]
        return None if None in prices else sum(price or 0.0 for price in prices)


def draw(seen: Snapshot, *, height: int = 40) -> RenderableType:
    """The whole screen."""
    room = max(3, height - _FRAME - len(seen.pools) - len(seen.jobs[:4]) - len(seen.taken[:4]))
    parts: list[RenderableType] = [_head(seen), _pools(seen), _nodes(seen.nodes, room)]
    parts += [_jobs(seen)] if seen.jobs or seen.pending else []
    parts += [_taken(seen)] if seen.taken else []
    parts += [Text(f"problem: {text}", style="bold red") for text in seen.problems]
    return Group(*parts)


def _head(seen: Snapshot) -> RenderableType:
    rate, usd = seen.usd_per_hour, seen.usd
    line = Text.assemble(
        (f"fleet {seen.fleet}", "bold"),
        ("   now ", "dim"),
        (numbers.usd(rate) + ("/h" if rate is not None else ""), "bold"),
        ("   spent ", "dim"),
        (numbers.usd(usd), "bold"),
    )
    if usd is not None and seen.usd_if_on_demand:
        saved = numbers.percent(seen.usd_if_on_demand - usd, seen.usd_if_on_demand)
        line.append("   all on-demand ", "dim")
        line.append(f"{numbers.usd(seen.usd_if_on_demand)} ({saved} saved)")
    line.append(f"   {seen.clock}", "dim")
    return Panel(line, box=box.HEAVY_HEAD, padding=(0, 1))


def _pools(seen: Snapshot) -> RenderableType:
    grid = _table("pool", "market", "hosts", "", "USD/h")
    for pool in sorted(seen.pools, key=lambda p: (_rank(p.market), p.name)):
        style = MARKET_STYLES.get(pool.market, "white")
        grid.add_row(
            pool.name,
            Text(pool.market, style),
            f"{pool.living} of {pool.most}",
            _squares(pool.living, pool.most, style),
            "unknown" if pool.price_usd_per_hour is None else f"{pool.price_usd_per_hour:.2f}",
        )
    return grid


def _squares(living: int, most: int, style: str) -> Text:
    """A square a host up to twenty, beyond that shares of twenty."""
    shown = min(most, 20)
    full = living if most <= 20 else round(20 * living / most)
    return Text.assemble(("■ " * full, style), ("□ " * (shown - full), "dim"))


def _nodes(nodes: Sequence[NodeStatus], room: int) -> RenderableType:
    grid = _table("node", "market", "state", "age", "USD/h", "taken in", "")
    ordered = sorted(nodes, key=lambda n: (n.notice_left_s is None, _rank(n.market), n.node))
    for node in ordered[:room]:
        left = "" if node.notice_left_s is None else f"{max(0.0, node.notice_left_s):.0f} s"
        price = node.price_usd_per_hour
        grid.add_row(
            node.node,
            Text(node.market, MARKET_STYLES.get(node.market, "white")),
            Text(node.state, _STATE_STYLES.get(node.state, "white")),
            numbers.seconds(node.age_s),
            "unknown" if price is None else f"{price:.2f}",
            Text(left, "bold red"),
            "",
        )
    if not nodes:
        grid.add_row(Text("none now; they come when work asks for them", "dim"), *[""] * 6)
    if len(nodes) > room:
        grid.add_row(Text(f"and {len(nodes) - room} more", "dim"), *[""] * 6)
    return grid


def _jobs(seen: Snapshot) -> RenderableType:
    grid = _table("job", "status", "last said", "ends in")
    styles = {"RUNNING": "green", "FAILED": "bold red", "PENDING": "cyan"}
    for job in seen.jobs[:4]:
        said, _, eta = job.last_line.partition(" ETA ")
        words = Text(" ".join(said.split()), overflow="ellipsis", no_wrap=True)
        grid.add_row(job.id, Text(job.status.lower(), styles.get(job.status, "dim")), words, eta)
    for text in summarised(seen.pending):
        grid.add_row(Text("pending", "cyan"), "", text, "")
    return grid


def _taken(seen: Snapshot) -> RenderableType:
    grid = _table("taken away", "market", "", "ago")
    for one in seen.taken[:4]:
        style = MARKET_STYLES.get(one.market, "white")
        grid.add_row(one.node, Text(one.market, style), one.words, numbers.seconds(one.ago_s))
    return grid


def _table(*columns: str) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), header_style="dim")
    for name in columns:
        right = name in ("USD/h", "age", "ago", "taken in", "ends in")
        wide = name in ("last said", "")
        grid.add_column(
            name,
            justify="right" if right else "left",
            ratio=5 if wide else None,
            min_width=None if wide else 9,
            no_wrap=True,
            overflow="ellipsis",
        )
    return grid


def _rank(market: str) -> int:
    return MARKETS.index(market) if market in MARKETS else len(MARKETS)
