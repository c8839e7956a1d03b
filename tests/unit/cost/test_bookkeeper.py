"""Books are kept while Ray's head, or a pool, cannot be asked who holds what."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.bookkeeper import Bookkeeper
from rayburst.fleet.events import EventLog, NodeEvent
from rayburst.fleet.layout import FleetDir, FleetState
from rayburst.fleet.processes import free_ports

HEAD = """
name: lab
region: us-east-1
object_store: {uri: s3://bucket}
pools:
  - {name: rack, price: 3600 USD/h, hosts: {max: 1},
     shape: {cpus: 1, memory: 1GiB}, market: """
PROCESS = "on-prem, kind: process}\n"
EC2 = """spot, region: us-east-1, kind: ec2, ec2: {types: [m6i.large], image: ami-0123456789abcdef0,
     subnets: [subnet-0123456789abcdef0], endpoint: "http://127.0.0.1:9"}}
"""


@pytest.mark.parametrize(
    ("rest", "why"), [(EC2, "EC2 cannot be asked"), (PROCESS, "/api/v0/nodes")], ids=["pool", "ray"]
)
def test_dollars_are_counted_while_nobody_can_say_who_holds_what(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    rest: str,
    why: str,
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no credentials anywhere
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    fleet = FleetDir(tmp_path / "lab")
    for folder in ("hosts", "logs", "spool"):
        (fleet.path / folder).mkdir(parents=True)
    (fleet.path / "fleet.yaml").write_text(HEAD + rest)
    (fleet.path / "token").write_text("secret")
    now = time.time()
    (dashboard,) = free_ports(1)  # where nobody listens
    state = FleetState(
        name="lab",
        started_at=now - 60,
        subnet="127.0.0",
        ports={"dashboard": dashboard},
        ray_tmp="",
        store_uri="s3://bucket",
        store_endpoint=None,
        store_is_embedded=False,
    )
    fleet.write_state(state)
    store = ObjectStore.open(str(tmp_path / "bucket"))
    for t, said in ((now - 20, "requested"), (now - 10, "gone")):
        event = NodeEvent(
            t=t,
            kind=said,
            node="rack-1",
            pool="rack",
            market="spot",
            price_usd_per_hour=3600.0,
            why="",
        )
        EventLog(store, spool=fleet.spool).append(event)
    with caplog.at_level(logging.WARNING):
        Bookkeeper(fleet, store).tick()
    (said,) = [r.getMessage() for r in caplog.records if r.name == "rayburst.bookkeeper"]
    assert why in said
    spent = json.loads(fleet.spent_file.read_text())
    assert spent["usd"]["fleet"] == pytest.approx(10.0), "ten seconds at a dollar each"
