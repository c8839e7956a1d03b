"""A deployment whose floor stays off spot, on nodes of both markets that come and go.

The head carries no replica. A node of one market is a raylet with that label and with room ("slot")
for so many replicas; there is more room on each side than the deployment needs, so where a replica
lands was chosen.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from support import wait_for

from rayburst.errors import DeployError
from rayburst.serve.controller import CALLBACK
from rayburst.serve.deploy import deploy

from .conftest import Trained, started_head
from .test_serve_model import Load
from .test_serve_nodes import Nodes

NAME = "floored"
FLOOR = 2
DESK, SPOT = "on-demand", "spot"


class Markets(Nodes):
    """Nodes of both markets."""

    name = NAME  # of the application that is looked at

    def start(self, *markets: tuple[str, int]) -> list[str]:
        """A node of each, with so many slots; their addresses."""
        with ThreadPoolExecutor(len(markets)) as pool:
            made = list(pool.map(lambda one: self.add("slot", one[1], one[0]), markets))
        self.market = getattr(self, "market", {}) | {
            address: market for address, (market, _) in zip(made, markets, strict=True)
        }
        return made

    def replicas(self) -> list[dict[str, Any]]:
        listed = self.head.details()["applications"].get(self.name, {"deployments": {}})
        return [r for made in listed["deployments"].values() for r in made["replicas"]]

    def running(self, market: str) -> dict[int, str]:
        """Process and address of each replica there that runs."""
        return {
            replica["pid"]: replica["node_ip"]
            for replica in self.replicas()
            if replica["state"] == "RUNNING" and self.market.get(replica["node_ip"]) == market
        }

    def settled(self, without: set[Any] = frozenset(), **expected: int) -> Callable[[], Any]:
        """Whether just so many run on each market, none of them of a process or node `without`."""

        def probe() -> bool | None:
            found = self.replicas()
            where = Counter(self.market.get(replica.get("node_ip")) for replica in found)
            is_left = not without & {r.get(key) for r in found for key in ("pid", "node_ip")}
            runs = all(replica["state"] == "RUNNING" for replica in found)
            return (runs and is_left and where == Counter(expected)) or None

        return probe

    def put(self, *, timeout_s: float = 60, surge: int = 0, **args: str) -> str:
        """Deploys the model with its floor; up to three replicas, the third for load."""
        replicas = {
            "least": FLOOR, "most": FLOOR + 1, "floor": FLOOR, "cpus": 0,
            "resources": {"slot": 1}, "up_after_s": 1, "down_after_s": 2,
        }  # fmt: skip
        options = {"slo_ms": 2000, "max_batch": 1, "replicas": replicas}
        app = {
            "name": NAME,
            "route_prefix": f"/{NAME}",
            "import_path": "served_models:scaler",
            "args": {"options": json.dumps(options), "seconds": "0.2", **args},
        }
        if surge:
            app["deployments"] = [{"name": "Scaler", "max_surge_percent": surge}]
        http = {"host": "127.0.0.1", "port": self.head.serve_port}
        head = self.head
        return deploy(head.dashboard_url, head.token, app=app, http=http, timeout_s=timeout_s).url


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[Markets]:
    """A head whose controller knows floors, and no other node."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("floor")
        env = {
            "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": CALLBACK,
            "RAY_SERVE_SLOW_STARTUP_WARNING_S": "2",
            "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "1",
        }
        head = stack.enter_context(started_head(folder, trained.store_uri, env))
        made = Markets(head, folder)
        stack.callback(made.close)
        yield made


@pytest.mark.timeout(200)
def test_the_floor_stays_off_spot_whatever_comes_dies_and_goes(nodes: Markets) -> None:
    nodes.start((DESK, 4), (SPOT, 4))
    url = nodes.put()
    # Serve by itself spreads them over the nodes
    wait_for(nodes.settled(**{DESK: FLOOR}), what="the floor is off spot")
    with Load(url, clients=6):  # more than two replicas answer
        wait_for(nodes.settled(**{DESK: FLOOR, SPOT: 1}), what="the third is on spot")
        dead = next(iter(nodes.running(DESK)))
        os.kill(dead, signal.SIGKILL)
        again = nodes.settled({dead}, **{DESK: FLOOR, SPOT: 1})
        wait_for(again, what="one of the floor died, and one came off spot")
        floor = nodes.running(DESK)
    wait_for(nodes.settled(**{DESK: FLOOR}), what="the one on spot went first")
    assert nodes.running(DESK) == floor
    app = {
        "name": "lm",
        "route_prefix": "/lm",
        "import_path": "serve_apps.lm:app",
        "args": {"replicas": 2, "floor": 1, "cpus": 0},
    }
    head = nodes.head
    deploy(head.dashboard_url, head.token, app=app, timeout_s=90)
    nodes.name = "lm"
    wait_for(nodes.settled(**{DESK: 1, SPOT: 1}), what="a language model's floor is off spot")


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_floor_waits_visibly_moves_on_notice_and_outlives_updates(nodes: Markets) -> None:
    (spot,) = nodes.start((SPOT, 4))
    with pytest.raises(DeployError, match=r"label ray\.io/market-type=on-demand"):
        nodes.put(timeout_s=20)
    assert nodes.running(SPOT) == {}, "the floor is on spot"
    (desk,) = nodes.start((DESK, 4))
    wait_for(nodes.settled(**{DESK: FLOOR}), what="the floor is off spot")
    url = nodes.put()
    with Load(url, clients=6) as load:
        wait_for(nodes.settled(**{DESK: FLOOR, SPOT: 1}), what="the third is on spot")
        for number, surge in enumerate((0, 50)):
            before = {replica["pid"] for replica in nodes.replicas()}
            nodes.put(factor=f"{number + 3}", surge=surge)
            updated = nodes.settled(before, **{DESK: FLOOR, SPOT: 1})
            wait_for(updated, what=f"an update with a surge of {surge}%")
        (other,) = nodes.start((DESK, 4))
        nodes.notify(desk)
        moved = nodes.settled({desk}, **{DESK: FLOOR, SPOT: 1})
        wait_for(moved, what="the floor moved to the other node off spot")
        assert load.errors() == []
        nodes.kill(desk)
        (extra,) = nodes.start((SPOT, 1))
        nodes.kill(spot)
        elsewhere = nodes.settled({spot}, **{DESK: FLOOR, SPOT: 1})
        wait_for(elsewhere, what="a spot node was lost, and another one took over")
        nodes.kill(extra)
        wait_for(nodes.settled(**{DESK: FLOOR + 1}), what="without spot, any node will do")
        assert set(nodes.running(DESK).values()) == {other}
    wait_for(nodes.settled(**{DESK: FLOOR}), what="the floor alone is left")
