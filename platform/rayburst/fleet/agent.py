"""The agent on the head: observe, plan, write caps, give back, journal. Once a second, for ever.

Run by the fleet's supervisor as `python -m rayburst.fleet.agent FLEET_FOLDER`. It holds no state
of its own: hosts carry theirs, the event log is written idempotently, the caps follow from what is
there. Killed at any point and started again it goes on where it was.

A tick, in this order: hosts are observed, what their watchers told is put on record, and their new
states are journalled; asks are read, the
planner decides, grants and decisions are published; the caps are written (only when they changed);
idle hosts are drained and given back, others get notice; hosts that are gone and journalled are
forgotten; a dead autoscaler is started again (Ray does not).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.balance import Balance
from rayburst.errors import PoolError, StoreError
from rayburst.fleet._ray_hooks import Gcs, RayNodeStatus, RayView
from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.decisions import DecisionLog
from rayburst.fleet.desk import Desk
from rayburst.fleet.events import IMPATIENT, EventLog, NodeEvent
from rayburst.fleet.failures import Failures, read_failures, record_failure, recovered
from rayburst.fleet.farewells import Farewells
from rayburst.fleet.files import write_atomically
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.monitor import MonitorKeeper
from rayburst.fleet.observer import (
    events_of,
    fleet_view,
    new_tags,
    served_at,
    stillborn,
)
from rayburst.fleet.openings import Opening, newest, write_openings
from rayburst.fleet.outlook import Outlook
from rayburst.fleet.packing import RequestKind
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.base import GIVEN_BACK, UP_TAG, Host, Notice, pool_of
from rayburst.fleet.promises import Promises
from rayburst.fleet.recorder import Recorder, Tick
from rayburst.fleet.render import ray_config, to_yaml
from rayburst.fleet.spec import Market
from rayburst.fleet.stock import is_down
from rayburst.fleet.submissions import SubmissionJournal
from rayburst.fleet.view import ActionKind, FleetView, NodeState, Plan

_TICK_S = 1.0
_REMEMBER_GONE_S = 120.0  # the planner still wants to know which pools lost hosts lately
_LOG = logging.getLogger("rayburst.agent")


class Agent:
    """One fleet's agent. `tick` does one round; the clock is the caller's."""

    def __init__(
        self,
        fleet: FleetDir,
        *,
        gcs: Gcs,
        log: EventLog,
        decisions: DecisionLog,
        balance: Balance,
        journal: SubmissionJournal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._spec = fleet.spec()
        self._pools = open_pools(fleet)
        self._gcs = gcs
        self._log = log
        self._submissions = journal
        self._clock = clock
        self._journalled: dict[str, NodeEvent] = {}
        self._openings: dict[str, Opening] = {}
        self._promises = Promises()
        self._farewells = Farewells(self._spec, self._pools, gcs, clock=clock)
        self._desk = Desk(gcs, decisions, self._spec, balance)
        self._policy = DeadlinePolicy()
        self._recorder = Recorder(fleet.ticks_file)
        spot = [pool.name for pool in self._spec.pools if pool.market is Market.SPOT]
        self._outlook = Outlook(spot)

    def tick(self) -> Plan | None:
        """One round; None when head or pools could not be asked (caps then stay as they are)."""
        try:
            return self._round()
        except PoolError as error:  # an API that throttles or is away; the next round tries again
            _LOG.warning("a pool does not answer: %s", error)
            return None

    def _round(self) -> Plan | None:
        now = self._clock()
        ray = self._observe()
        hosts = self._hosts()
        if ray is not None and self._hear(hosts):
            hosts = self._hosts()
        if ray is not None and self._tag(hosts, ray, now):
            hosts = self._hosts()
        self._journal(hosts)
        failures = read_failures(self._fleet)
        plan = self._plan(hosts, ray, failures, now) if ray is not None else None
        if plan is not None and ray is not None:
            self._write_caps(plan, hosts, failures)
            self._release(plan, ray, now)
            self._drain(plan, now)
            self._carry_out(hosts, ray, now)
        self._keep_submissions()
        self._log.flush()
        self._desk.flush()
        self._forget(hosts, now)
        self._publish(now, ray, plan)
        return plan

    def _hosts(self) -> list[Host]:
        return [host for pool in self._pools.values() for host in pool.hosts()]

    def _observe(self) -> RayView | None:
        from ray.exceptions import RpcError

        try:
            return self._gcs.observe()
        except RpcError as error:
            _LOG.warning("Ray's head does not answer: %s", error)
            return None

    def _hear(self, hosts: list[Host]) -> bool:
        from ray.exceptions import RpcError

        try:
            return self._farewells.hear(hosts)
        except RpcError as error:
            _LOG.warning("Ray's head does not say which hosts have notice: %s", error)
            return False

    def _carry_out(self, hosts: list[Host], ray: RayView, now: float) -> None:
        from ray.exceptions import RpcError

        try:
            self._farewells.carry_out(hosts, ray, now)
        except RpcError as error:
            _LOG.warning("Ray's head does not drain: %s", error)

    def _keep_submissions(self) -> None:
        from ray.exceptions import RpcError

        if self._submissions is not None:
            try:
                self._submissions.keep()
            except RpcError as error:
                _LOG.warning("Ray's head does not say what was submitted: %s", error)

    def _tag(self, hosts: list[Host], ray: RayView, now: float) -> bool:
        nodes = {n.host: n for n in ray.nodes if n.status is not RayNodeStatus.DEAD}
        changed = False
        for host in hosts:
            if host.lives and (tags := new_tags(host, nodes.get(host.id), now)):
                if UP_TAG in tags:
                    recovered(self._fleet, host.pool, at=host.requested_at)
                self._pools[host.pool].tag(host.id, tags)
                changed = True
        return changed

    def _journal(self, hosts: list[Host]) -> None:
        for host in hosts:
            for event in events_of(host, self._spec.pool(host.pool)):
                if event.key not in self._journalled:
                    self._log.append(event)
                    self._journalled[event.key] = event
                    _LOG.info("%s %s: %s", event.kind, event.node, event.why)
            if not host.lives:
                # a host whose first process died alone may have left others behind
                self._terminate(host.id, host.gone_why)

    def _plan(
        self, hosts: list[Host], ray: RayView, failures: Mapping[str, Failures], now: float
    ) -> Plan | None:
        from ray.exceptions import RpcError

        prices = {host.id: host.price_usd_per_hour for host in hosts if host.lives}
        try:
            demand = self._desk.demand(ray, prices, now)
        except StoreError as error:
            _LOG.warning("no plan while it is unknown what was spent: %s", error)
            return None
        except RpcError as error:
            _LOG.warning("Ray's head does not say which jobs there are: %s", error)
            return None
        view = self._view(hosts, ray, failures, now)
        span_any = self._spec.span == "any"
        plan = plan_fleet(view, demand, policy=self._policy, span_any=span_any)
        self._recorder.note(Tick(view=view, demand=demand, plan=plan, span_any=span_any))
        for action in plan.actions:
            if action.kind is ActionKind.LAUNCH:
                self._promises.add(action.subject, action.count, now)
        try:
            self._desk.publish(plan, prices, now)
        except RpcError as error:
            _LOG.warning("grants could not be published: %s", error)
            return None
        return plan

    def _view(
        self, hosts: list[Host], ray: RayView, failures: Mapping[str, Failures], now: float
    ) -> FleetView:
        failed_at = {pool: failed.at[-1] for pool, failed in failures.items()}
        view = fleet_view(
            self._spec,
            hosts,
            ray,
            failures,
            now,
            limit=self._desk.limit(now),
            promised=self._promises.count(hosts, failed_at, now),
            outlook=self._outlook,
        )
        staying = (node.pool for node in view.nodes if node.state is not NodeState.DRAINING)
        down = {pool.name for pool in view.pools if is_down(pool, now)}
        has = Counter(staying)
        self._outlook.observe(now, down, {pool.name: has[pool.name] for pool in view.pools})
        return view

    def _write_caps(self, plan: Plan, hosts: list[Host], failures: Mapping[str, Failures]) -> None:
        seen: dict[str, list[str]] = {name: [] for name in plan.caps}
        for host in hosts:
            seen[host.pool].append(host.id)
        openings = {
            name: Opening(more=caps.more, seen=tuple(seen[name]), failed_at=newest(failures, name))
            for name, caps in plan.caps.items()
        }
        if openings != self._openings:
            write_openings(self._fleet, openings)
            self._openings = openings
        text = to_yaml(ray_config(self._spec, caps=plan.caps, fleet_dir=self._fleet.path))
        file = self._fleet.autoscaling_file
        if not file.exists() or file.read_text() != text:
            write_atomically(file, text)
            _LOG.info("caps: %s", {name: caps.max for name, caps in plan.caps.items()})

    def _release(self, plan: Plan, ray: RayView, now: float) -> None:
        nodes = {node.host: node for node in ray.nodes}
        for action in plan.actions:
            if action.kind is not ActionKind.RELEASE:
                continue
            node = nodes[action.subject]
            # Ray refuses when work has come in since: then the host stays
            if self._gcs.drain(
                node.node_id, why=action.why, deadline=now + self._spec.limits.drain_s, idle=True
            ):
                self._terminate(action.subject, f"{GIVEN_BACK}: {action.why}")

    def _terminate(self, host: str, why: str) -> None:
        """End a host; one whose pool does not answer is on record as gone, and ended again."""
        try:
            self._pools[pool_of(host)].terminate(host, why=why)
        except PoolError as error:
            _LOG.warning("%s is to be ended again: %s", host, error)

    def _drain(self, plan: Plan, now: float) -> None:
        deadline = now + self._spec.limits.drain_s
        for action in plan.actions:
            if action.kind is ActionKind.DRAIN:
                notice = Notice(given_at=now, deadline=deadline, why=action.why, planned=True)
                self._pools[pool_of(action.subject)].notify(action.subject, notice)

    def _forget(self, hosts: list[Host], now: float) -> None:
        for host in hosts:
            if host.gone_at is not None and now - host.gone_at > _REMEMBER_GONE_S:
                failed = stillborn(host)  # its record goes, the failure stays
                if failed is not None and failed[0] > served_at(hosts, host.pool):
                    record_failure(self._fleet, host.pool, at=failed[0], why=failed[1])
                self._pools[host.pool].forget(host.id)

    def _publish(self, now: float, ray: RayView | None, plan: Plan | None) -> None:
        """Leave what was seen and decided for `rayburst status`."""
        status = {
            "at": now,
            "head_answers": ray is not None,
            # a standing request stays when it is served: only what waits is pending
            "pending": [
                str(request)
                for request in (ray.requests if ray else ())
                if request.kind is RequestKind.TASK
            ],
            "actions": [
                {"kind": a.kind, "subject": a.subject, "count": a.count, "why": a.why}
                for a in (plan.actions if plan else ())
                if a.kind is not ActionKind.HOLD
            ],
            "jobs": self._desk.lines(),
        }
        write_atomically(self._fleet.agent_file, json.dumps(status))


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    fleet = FleetDir(folder)
    state = fleet.read_state()
    store = ObjectStore.open(state.store_uri, IMPATIENT)
    gcs = Gcs(state.gcs_address)
    agent = Agent(
        fleet,
        gcs=gcs,
        log=EventLog(store, spool=fleet.spool),
        decisions=DecisionLog(store, spool=fleet.spool),
        balance=Balance(fleet, store),
        journal=SubmissionJournal(store, gcs) if state.address else None,
    )
    monitor = MonitorKeeper(fleet)
    while True:
        started = time.monotonic()
        plan = agent.tick()
        if plan is not None:
            monitor.keep()
        time.sleep(max(0.0, _TICK_S - (time.monotonic() - started)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
