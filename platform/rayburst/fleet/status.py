"""How a fleet stands, read from its folder: nodes, pending demand, what is dead and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayburst.errors import FleetNotFoundError
from rayburst.fleet import processes
from rayburst.fleet.files import read_json
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.observer import DRAINING_TAG
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.base import UP_TAG, Host
from rayburst.report.tables import Table

_AGENT_SILENT_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatus:
    """One living node."""

    node: str
    pool: str
    market: str
    state: str
    address: str
    age_s: float
    price_usd_per_hour: float | None
    notice_left_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetStatus:
    """A fleet at one moment. Prints as a table; `problems` says what is wrong and the next step."""

    name: str
    dashboard_url: str
    store_uri: str
    nodes: Sequence[NodeStatus]
    pending: Sequence[str]
    decisions: Sequence[str]
    problems: Sequence[str]

    def table(self) -> Table:
        rows = [
            (
                node.node,
                node.pool,
                node.market,
                node.state,
                node.address,
                _age(node.age_s),
                "unknown" if node.price_usd_per_hour is None else f"{node.price_usd_per_hour:.2f}",
                "" if node.notice_left_s is None else f"{max(0.0, node.notice_left_s):.0f} s",
            )
            for node in self.nodes
        ]
        columns = ("node", "pool", "market", "state", "address", "age", "USD/h", "taken in")
        note = "" if rows else "no nodes now; they come when work asks for them"
        return Table(f"fleet {self.name}", columns, rows, note)

    def __str__(self) -> str:
        parts = [str(self.table())]
        parts += [f"pending: {text}" for text in summarised(self.pending)]
        parts += self.decisions
        parts += [f"PROBLEM: {text}" for text in self.problems]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        from html import escape

        notes = [*(f"pending: {p}" for p in summarised(self.pending)), *self.problems]
        return self.table()._repr_html_() + "".join(f"<p>{escape(note)}</p>" for note in notes)


def summarised(pending: Sequence[str]) -> list[str]:
    """Pending requests, equal ones counted: "4 x {CPU: 1}"."""
    counts: dict[str, int] = {}
    for text in pending:
        counts[text] = counts.get(text, 0) + 1
    return [f"{count} x {text}" for text, count in counts.items()]


def read_status(fleet: FleetDir, *, now: float) -> FleetStatus:
    """The status of a fleet that is up, or half up.

    Raises:
        FleetNotFoundError: it is not up. FleetBrokenError: its state cannot be read.
    """
    state = fleet.read_state()
    running = processes.owned(fleet.path)
    if not running:
        raise FleetNotFoundError(
            f"fleet {fleet.name!r} is not running any more (the machine was restarted, or its "
            f"processes were killed); `rayburst up` clears what is left and starts it afresh"
        )
    spec = fleet.spec()
    agent = read_json(fleet.agent_file) or {}
    hosts = [host for pool in open_pools(fleet).values() for host in pool.hosts() if host.lives]
    return FleetStatus(
        name=fleet.name,
        dashboard_url=state.dashboard_url,
        store_uri=state.store_uri,
        nodes=[_node(host, str(spec.pool(host.pool).market), now) for host in hosts],
        pending=agent.get("pending", []),
        decisions=[f"{a['kind']} {a['subject']}: {a['why']}" for a in agent.get("actions", [])],
        problems=_problems(fleet, agent, now),
    )


def _node(host: Host, market: str, now: float) -> NodeStatus:
    if host.notice or DRAINING_TAG in host.tags:
        state = "draining"
    else:
        state = "up" if UP_TAG in host.tags else "starting"
    return NodeStatus(
        node=host.id,
        pool=host.pool,
        market=market,
        state=state,
        address=host.address,
        age_s=now - host.requested_at,
        price_usd_per_hour=host.price_usd_per_hour,
        notice_left_s=host.notice.deadline - now if host.notice else None,
    )


def _problems(fleet: FleetDir, agent: dict[str, object], now: float) -> list[str]:
    state = fleet.read_state()
    problems = []
    if not processes.listening(state.head_address, state.ports["gcs"]):
        problems.append(
            f"Ray's head is dead: jobs and nodes of this session are lost, checkpoints and events "
            f"are not; `rayburst down {fleet.name}` then `rayburst up`, and submit again with the "
            f"same --run to go on from the last checkpoint (its log: {fleet.logs / 'head.log'})"
        )
    elif state.store_is_embedded and not processes.listening(
        state.head_address, state.ports["store"]
    ):
        problems.append(
            f"the object store does not answer; it is being started again, its data is on disk "
            f"(its log: {fleet.logs / 'object-store.log'})"
        )
    at = agent.get("at")
    if isinstance(at, float) and now - at > _AGENT_SILENT_S:
        problems.append(
            f"the agent has been silent for {now - at:.0f} s, so no node comes or goes "
            f"(its log: {fleet.logs / 'agent.log'})"
        )
    waiting = len(list(fleet.spool.glob("[0-9]*.json"))) if fleet.spool.is_dir() else 0
    if waiting:
        problems.append(f"{waiting} event(s) wait on disk for the object store")
    return problems


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
