"""The agent on the head: observe, plan, write caps, give back, journal. Once a second, for ever.

Run by the fleet's supervisor as `python -m rayburst.fleet.agent FLEET_FOLDER`. It holds no state
of its own: hosts carry theirs, the event log is written idempotently, the caps follow from what is
there. Killed at any point and started again it goes on where it was.

A tick, in this order: hosts are observed and their new states journalled; the planner decides; the
caps are written (only when they changed); idle hosts are drained and given back; hosts that are
gone and journalled are forgotten; a dead autoscaler is started again (Ray does not).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.bill import make_bill
from rayburst.errors import StoreError
from rayburst.fleet import processes
from rayburst.fleet._ray_hooks import Gcs, RayNodeStatus, RayView
from rayburst.fleet.events import IMPATIENT, EventLog, NodeEvent
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.observer import Failure, events_of, fleet_view, new_tags
from rayburst.fleet.packing import RequestKind
from rayburst.fleet.planner import Action, ActionKind, Demand, Plan, plan_fleet
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.base import Host, Notice
from rayburst.fleet.promises import Promises
from rayburst.fleet.render import ray_config, to_yaml

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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._spec = fleet.spec()
        self._pools = open_pools(fleet)
        self._gcs = gcs
        self._log = log
        self._clock = clock
        self._journalled: dict[str, NodeEvent] = {}
        self._past: list[NodeEvent] | None = None
        self._promises = Promises()
        self._said: set[tuple[str, str]] = set()

    def tick(self) -> Plan | None:
        """One round; None when Ray's head could not be asked (caps then stay as they are)."""
        now = self._clock()
        ray = self._observe()
        hosts = self._hosts()
        if ray is not None and self._tag(hosts, ray, now):
            hosts = self._hosts()
        self._journal(hosts)
        plan = self._plan(hosts, ray, now) if ray is not None else None
        if plan is not None and ray is not None:
            self._write_caps(plan)
            self._release(plan, ray, now)
            self._dismiss(plan, now)
        self._log.flush()
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

    def _tag(self, hosts: list[Host], ray: RayView, now: float) -> bool:
        nodes = {n.host: n for n in ray.nodes if n.status is not RayNodeStatus.DEAD}
        changed = False
        for host in hosts:
            if host.lives and (tags := new_tags(host, nodes.get(host.id), now)):
                self._pools[host.pool].tag(host.id, tags)
                changed = True
        return changed

    def _journal(self, hosts: list[Host]) -> None:
        for host in hosts:
            market = self._spec.pool(host.pool).market
            for event in events_of(host, market):
                if event.key not in self._journalled:
                    self._log.append(event)
                    self._journalled[event.key] = event
                    _LOG.info("%s %s: %s", event.kind, event.node, event.why)
            if not host.lives:
                # a host whose first process died alone may have left others behind
                self._pools[host.pool].terminate(host.id, why=host.gone_why)

    def _plan(self, hosts: list[Host], ray: RayView, now: float) -> Plan | None:
        try:
            spent = self._spent(now)
        except StoreError as error:
            _LOG.warning("no plan while it is unknown what was spent: %s", error)
            return None
        failures = self._failures()
        failed_at = {pool: failure.at for pool, failure in failures.items()}
        promised = self._promises.count(hosts, failed_at, now)
        view = fleet_view(self._spec, hosts, ray, failures, now, spent_usd=spent, promised=promised)
        plan = plan_fleet(view, Demand(requests=ray.requests))
        for action in plan.actions:
            if action.kind is ActionKind.OPEN:
                self._promises.add(action.subject, action.count, now)
        for action in plan.actions:
            if (action.kind, action.subject) not in self._said:
                _LOG.info("%s %s x%d: %s", action.kind, action.subject, action.count, action.why)
        self._said = {(action.kind, action.subject) for action in plan.actions}
        return plan

    def _spent(self, now: float) -> float:
        """Dollars since the event log began; read only where there is a budget to keep."""
        if self._spec.limits.budget_usd is None:
            return 0.0
        if self._past is None:
            self._past = self._log.read()
        events = {event.key: event for event in self._past} | self._journalled
        return make_bill(events.values(), now=now, on_demand_usd_per_hour=None).usd

    def _failures(self) -> dict[str, Failure]:
        found = {}
        for pool in self._pools:
            if raw := read_json(self._fleet.path / "failures" / f"{pool}.json"):
                found[pool] = Failure(**raw)
        return found

    def _write_caps(self, plan: Plan) -> None:
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
                pool = self._pools[_pool_of(plan, action)]
                pool.terminate(action.subject, why=f"given back: {action.why}")

    def _dismiss(self, plan: Plan, now: float) -> None:
        deadline = now + self._spec.limits.drain_s
        for action in plan.actions:
            if action.kind is ActionKind.DISMISS:
                notice = Notice(given_at=now, deadline=deadline, why=action.why)
                self._pools[_pool_of(plan, action)].notify(action.subject, notice)

    def _forget(self, hosts: list[Host], now: float) -> None:
        for host in hosts:
            if host.gone_at is not None and now - host.gone_at > _REMEMBER_GONE_S:
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
            ],
        }
        write_atomically(self._fleet.agent_file, json.dumps(status))


def _pool_of(plan: Plan, action: Action) -> str:
    return next(name for name in plan.caps if action.subject.startswith(f"{name}-"))


def monitor_process(fleet: FleetDir) -> psutil.Process | None:
    """Ray's autoscaler process of this fleet."""
    for process in processes.owned(fleet.path):
        if any(part.endswith("autoscaler/v2/monitor.py") for part in process.cmdline()):
            return process
    return None


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    fleet = FleetDir(folder)
    state = fleet.read_state()
    agent = Agent(
        fleet,
        gcs=Gcs(state.gcs_address),
        log=EventLog(ObjectStore.open(state.store_uri, IMPATIENT), spool=fleet.spool),
    )
    monitor = MonitorKeeper(fleet)
    while True:
        started = time.monotonic()
        plan = agent.tick()
        if plan is not None:
            monitor.keep()
        time.sleep(max(0.0, _TICK_S - (time.monotonic() - started)))


class MonitorKeeper:
    """Starts Ray's autoscaler again after it died, with the command and environment it had."""

    def __init__(self, fleet: FleetDir) -> None:
        self._fleet = fleet
        self._process: psutil.Process | None = None
        self._command: list[str] = []

    def keep(self) -> None:
        if self._process is not None and processes.alive(self._process):
            return
        if found := monitor_process(self._fleet):
            self._process, self._command = found, found.cmdline()
        elif self._command:
            _LOG.warning("the autoscaler is dead; starting it again")
            started = processes.spawn(
                self._command, env=os.environ, log=self._fleet.logs / "monitor-restarted.log"
            )
            self._process = psutil.Process(started.pid)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
