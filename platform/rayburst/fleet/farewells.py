"""Notices of hosts on other machines: heard by the agent, and carried out where nobody else does.

A host's own watcher leaves its notice in Ray's key-value store, drains its node and leaves when Ray
took that (`node`). This puts both on the host's record, and drains and ends hosts that the planner
sends away: those machines do not know of it. A machine that does not join in time is ended too: a
failed launch. Process hosts do all of that for themselves and are left alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from rayburst.fleet._ray_hooks import Gcs, RayNodeStatus, RayView
from rayburst.fleet.observer import DRAINING_TAG
from rayburst.fleet.pools.base import GIVEN_BACK, UP_TAG, Host, Notice, Pool
from rayburst.fleet.pools.luggage import drained_key, notice_key
from rayburst.fleet.spec import FleetSpec

_LAST_WORDS_S = 5.0
"""How long a raylet whose machine was ended has to tell Ray so itself."""
_LOG = logging.getLogger("rayburst.agent")


class Farewells:
    """The notices of one fleet's far hosts. All methods may be called at every tick."""

    def __init__(
        self,
        spec: FleetSpec,
        pools: Mapping[str, Pool],
        gcs: Gcs,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._far = {pool.name for pool in spec.pools if pool.kind != "process"}
        self._join_s = spec.limits.join_s
        self._pools = pools
        self._gcs = gcs
        self._clock = clock

    def hear(self, hosts: Sequence[Host]) -> bool:
        """Put on record what hosts' watchers told; whether there was any. Raises RpcError."""
        far = [host for host in hosts if host.pool in self._far and host.lives]
        waiting = {notice_key(host.id): host for host in far if host.notice is None}
        serving = {drained_key(host.id): host for host in far if DRAINING_TAG not in host.tags}
        found = self._gcs.read([*waiting, *serving])
        for key in waiting.keys() & found.keys():
            host, body = waiting[key], found[key].decode()
            _LOG.info("%s has notice: %s", host.id, body)
            self._pools[host.pool].notify(host.id, Notice(**json.loads(body)))
        for key in serving.keys() & found.keys():
            host = serving[key]
            self._pools[host.pool].tag(host.id, {DRAINING_TAG: found[key].decode()})
        return bool(found)

    def carry_out(self, hosts: Sequence[Host], ray: RayView, now: float) -> None:
        """Drain what has notice and is not drained, end what was sent away and is due.

        And end what did not join in time, and tell Ray of machines that vanished.
        """
        nodes = {node.host: node for node in ray.nodes if node.status is not RayNodeStatus.DEAD}
        for host in hosts:
            notice, node = host.notice, nodes.get(host.id)
            if host.pool not in self._far:
                continue
            if host.gone_at is not None:
                if node is not None and now - host.gone_at > _LAST_WORDS_S:
                    self._bury(node.node_id, host)
                continue
            if UP_TAG not in host.tags and now - host.requested_at > self._join_s:
                why = f"it did not join within {self._join_s:.0f} s"
                self._pools[host.pool].terminate(host.id, why=why)
                continue
            if notice is None:
                continue
            if (notice.planned or not notice.reclaim) and now >= notice.deadline:
                self._pools[host.pool].terminate(host.id, why=f"{GIVEN_BACK}: {notice.why}")
                continue
            if node is not None and node.status is not RayNodeStatus.DRAINING:
                self._drain(node.node_id, host, notice)

    def _drain(self, node_id: str, host: Host, notice: Notice) -> None:
        """Drain a node whose watcher has not done so since this round began; put on record when."""
        key, is_new = drained_key(host.id), DRAINING_TAG not in host.tags
        if is_new and (told := self._gcs.read([key])):
            self._pools[host.pool].tag(host.id, {DRAINING_TAG: told[key].decode()})
            return
        done = self._gcs.drain(node_id, why=notice.why, deadline=notice.deadline, idle=False)
        if done and is_new:
            self._pools[host.pool].tag(host.id, {DRAINING_TAG: str(self._clock())})

    def _bury(self, node_id: str, host: Host) -> None:
        """Tell Ray that a machine is gone; Ray finds out by itself where it does not take it."""
        from ray.exceptions import RpcError

        try:
            self._gcs.unregister(node_id, why=host.gone_why)
        except RpcError as error:
            _LOG.warning("Ray does not take the end of %s: %s", host.id, error)

    def forget(self, host: Host) -> None:
        """Take what a host's watcher told out of the store. Raises RpcError."""
        if host.pool in self._far:
            for key in (notice_key(host.id), drained_key(host.id)):
                self._gcs.delete(key)
