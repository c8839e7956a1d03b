"""Serve's own state machine of a deployment with a floor; Ray's part (nodes, actors) is scripted.

And what of Serve the floor builds on: fails loudly when Ray changes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.serve._private import default_impl, deployment_state
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.deployment_scheduler import (
    DeploymentScheduler,
    SpreadDeploymentSchedulingPolicy,
)
from ray.serve._private.deployment_state import DeploymentReplica, DeploymentState

from rayburst.serve.floor import MARKET, selector
from rayburst.serve.floor._ray_hooks import FloorScheduler, FloorState

WHAT_TO_DO = (
    "{what} changed, which floors build on. Read the new code, adapt serve/floor/_ray_hooks.py, "
    "run tests/integration/serve/test_serve_floor.py, then set the new digest here and "
    "rayburst.train.versions.TESTED_RAY."
)
TOUCHED = {
    "DeploymentState._add_upscale_replicas": (
        DeploymentState._add_upscale_replicas,
        "49d70d8379954e15",
    ),
    "DeploymentState.scale_deployment_replicas": (
        DeploymentState.scale_deployment_replicas,
        "bdb12ed120ccee2e",
    ),
    "DeploymentState._surge_rollout_in_progress": (
        DeploymentState._surge_rollout_in_progress,
        "5e6b7297e57530e2",
    ),
    "DeploymentState._stop_replica": (DeploymentState._stop_replica, "b9b5c82eb3c4a952"),
    "DeploymentReplica.start": (DeploymentReplica.start, "dcbc90b1040ae187"),
    "DeploymentReplica.resource_requirements": (
        DeploymentReplica.resource_requirements,
        "b7657b8615c09f9a",
    ),
    "DeploymentScheduler._get_replicas_to_stop": (
        DeploymentScheduler._get_replicas_to_stop,
        "e8aa1f5ec00ddd7d",
    ),
    "DeploymentScheduler._schedule_replica": (
        DeploymentScheduler._schedule_replica,
        "77bd39cefc864f79",
    ),
    "create_deployment_scheduler": (
        default_impl.create_deployment_scheduler,
        "694c62b47f281dfe",
    ),
    "DeploymentStateManager._create_deployment_state": (
        deployment_state.DeploymentStateManager._create_deployment_state,
        "a6f1d5e3b89c1a32",
    ),
}


@pytest.mark.parametrize("what", TOUCHED)
def test_what_floors_build_on_is_unchanged(what: str) -> None:
    touched, expected = TOUCHED[what]
    digest = hashlib.sha256(inspect.getsource(touched).encode()).hexdigest()[:16]
    assert digest == expected, WHAT_TO_DO.format(what=what)


class World:
    """Two markets with so much room each, and one deployment on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, floor: int, desk: int, spot: int):
        monkeypatch.setattr(DeploymentReplica, "stop", lambda self, graceful=True: None)
        self.room = {"desk": desk, "spot": spot}
        nodes = MagicMock()
        nodes.get_node_labels = lambda node: {MARKET: "spot" if node == "spot" else "on-demand"}
        nodes.get_active_node_ids = lambda: {name for name, room in self.room.items() if room}
        self.floor, self.id = floor, DeploymentID("model", "app")
        self.scheduler = FloorScheduler(nodes, "head", create_placement_group_fn=None)
        self.scheduler.on_deployment_created(self.id, SpreadDeploymentSchedulingPolicy())
        self.state = FloorState(self.id, MagicMock(), self.scheduler, nodes, MagicMock())
        self.asked: dict[Any, dict[str, Any]] = {}  # those without a node, by replica

    def deploy(self, count: int, *, version: str = "1", surge: int = 0) -> None:
        config = ReplicaConfig.create(
            lambda: None, ray_actor_options={"label_selector": selector(self.floor)}
        )
        info = DeploymentInfo(
            actor_name="replica",
            deployment_config=DeploymentConfig(num_replicas=count, max_surge_percent=surge),
            replica_config=config,
            start_time_ms=0,
            deployer_job_id="",
            version=version,
        )
        self.scheduler.on_deployment_deployed(self.id, config)
        self.state.deploy(info)

    def where(self) -> Counter[str]:
        """How many replicas are on each node, and how many wait for which market."""
        found = Counter(r.actor_node_id for r in self.replicas() if r.actor_node_id)
        for options in self.asked.values():
            found["for " + options["label_selector"][MARKET]] += 1
        return found

    def replicas(self) -> list[Any]:
        return list(self.state._replicas.get([ReplicaState.STARTING, ReplicaState.RUNNING]))

    def tick(self) -> Counter[str]:
        """One turn of Serve's loop, after which Ray places what it can."""
        requests, smaller = self.state.scale_deployment_replicas()
        for request in requests:
            self.asked[request.replica_id] = request.actor_options
            self.scheduler._on_replica_launching(request.replica_id)
        if smaller is not None:
            self.state.stop_replicas(
                self.scheduler._get_replicas_to_stop(self.id, smaller.num_to_stop)
            )
        self.state._replicas.pop(states=[ReplicaState.STOPPING])
        living = {replica.replica_id for replica in self.replicas()}
        self.asked = {one: options for one, options in self.asked.items() if one in living}
        self.place()
        return self.where()

    def place(self) -> None:
        free = Counter(self.room) - Counter(r.actor_node_id for r in self.replicas())
        for replica in self.replicas():
            options = self.asked.get(replica.replica_id)
            if options is None:
                continue
            wants = "spot" if options["label_selector"][MARKET] == "spot" else "desk"
            fitting = [wants, *(("desk",) if "fallback_strategy" in options else ())]
            node = next((name for name in fitting if free[name]), None)
            if node is not None:
                free[node] -= 1
                self.run(replica, node)

    def run(self, replica: Any, node: str) -> None:
        del self.asked[replica.replica_id]
        replica._actor._node_id = node
        self.state._replicas.remove([replica.replica_id])
        self.state._replicas.add(ReplicaState.RUNNING, replica)
        self.scheduler.on_replica_running(replica.replica_id, node)

    def lose(self, node: str, count: int = 1) -> None:
        lost = [r.replica_id for r in self.replicas() if r.actor_node_id == node][:count]
        assert len(lost) == count
        self.state.stop_replicas(lost)
        self.state._in_transition = True


def test_the_floor_is_off_spot_what_is_above_it_on_spot_whatever_dies(monkeypatch) -> None:
    world = World(monkeypatch, floor=2, desk=4, spot=4)
    world.deploy(1)
    assert world.tick() == {"desk": 1}
    world.state._rescale_to(5)
    assert world.tick() == {"desk": 2, "spot": 3}
    world.lose("spot", 3)
    world.lose("desk")
    assert world.tick() == {"desk": 2, "spot": 3}


def test_without_spot_any_node_will_do_and_the_floor_waits_for_one_off_spot(monkeypatch) -> None:
    world = World(monkeypatch, floor=2, desk=4, spot=0)
    world.deploy(3)
    assert world.tick() == {"desk": 3}
    world = World(monkeypatch, floor=2, desk=1, spot=4)
    world.deploy(4)
    assert world.tick() == {"desk": 1, "for on-demand": 1, "spot": 2}
    (waiting,) = (world.state._replicas.get_by_id(replica) for replica in world.asked)
    waiting._actor._actor_resources = {"CPU": 1}
    monkeypatch.setattr(type(waiting._actor), "available_resources", {"CPU": 4})
    assert f"label {MARKET}=on-demand" in waiting.resource_requirements()[0]


def test_a_smaller_deployment_gives_up_its_floor_last(monkeypatch) -> None:
    world = World(monkeypatch, floor=2, desk=2, spot=4)
    world.deploy(5)
    assert world.tick() == {"desk": 2, "spot": 3}
    world.room["desk"] = 1
    world.lose("desk")
    assert world.tick() == {"desk": 1, "for on-demand": 1, "spot": 3}
    world.state._rescale_to(3)  # Serve by itself stops what does not run yet
    assert world.tick() == {"desk": 1, "for on-demand": 1, "spot": 1}
    world.state._rescale_to(1)
    assert world.tick() == {"desk": 1}, "below the floor, one that runs is kept"


def test_one_that_waits_off_spot_in_vain_is_let_go(monkeypatch) -> None:
    world = World(monkeypatch, floor=1, desk=1, spot=0)
    world.deploy(2)
    assert world.tick() == {"desk": 1, "for spot": 1}
    world.lose("desk")
    world.tick()  # the one that wanted spot took the room, so the floor's successor has none
    assert world.where() == {"desk": 1, "for on-demand": 1}
    world.room["spot"] = 1
    assert world.tick() == {"desk": 1, "spot": 1}, "the floor stands, so spot will do"


@pytest.mark.parametrize("surge", [0, 50])
def test_an_update_leaves_the_floor_off_spot(monkeypatch, surge: int) -> None:
    world = World(monkeypatch, floor=2, desk=2 if not surge else 4, spot=3)
    world.deploy(4)
    world.tick()
    world.lose("desk", 2)
    assert world.tick() == {"desk": 2, "spot": 2}  # an update begins with the oldest, on spot
    before = {replica.replica_id for replica in world.replicas()}
    world.deploy(4, version="2", surge=surge)
    for _ in range(12):
        here = world.tick()
        assert here["desk"] >= (2 if surge else 1)
    assert here == {"desk": 2, "spot": 2}
    assert not before & {replica.replica_id for replica in world.replicas()}
