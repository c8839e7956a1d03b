"""A fleet ends: its processes and ports, nobody else's, and the files that name them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayburst.fleet import processes
from rayburst.fleet.layout import FleetDir, FleetState
from rayburst.fleet.teardown import end_fleet

FILE = """\
name: lab
object_store: {uri: s3://bucket}
pools:
  - {name: rack, kind: process, market: on-prem, price: 1 USD/h, hosts: {max: 1},
     shape: {cpus: 1, memory: 1GiB}}
"""
LISTENS = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
GONE = ("state.json", "token", "agent.json", "head-started", "openings.json", "hosts")
KEPT = ("fleet.yaml", "logs")


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    """A fleet on disk with one process that listens."""
    fleet = FleetDir(tmp_path / "lab")
    for folder in ("hosts", "logs"):
        (fleet.path / folder).mkdir(parents=True)
    (fleet.path / "fleet.yaml").write_text(FILE)
    for name in ("token", "agent.json", "head-started", "openings.json"):
        (fleet.path / name).write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = FleetState(
        name="lab",
        started_at=0.0,
        subnet="127.0.0",
        ports={"gcs": port},
        ray_tmp="",
        store_uri="s3://bucket",
        store_endpoint="http://127.0.0.1:1",
        store_is_embedded=False,
    )
    fleet.write_state(state)
    env = {**os.environ, processes.OWNER_VARIABLE: str(fleet.path)}
    command = [sys.executable, "-c", LISTENS.format(port=port)]
    processes.spawn(command, env=env, log=fleet.logs / "part.log")
    deadline = time.monotonic() + 30
    while not processes.listening("127.0.0.1", port):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return fleet


@pytest.mark.parametrize("damage", [None, "not json"])
def test_processes_and_ports_end_and_so_do_the_files_that_name_them(
    fleet: FleetDir, damage: str | None
) -> None:
    if damage is not None:
        fleet.state_file.write_text(damage)
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        report = end_fleet(fleet, supervisor="rayburst.fleet.supervisor")
        assert report.clean and report.left == ()
        assert (report.processes_ended, report.ports_closed) == (1, 1)
        assert processes.owned(fleet.path) == []
        assert bystander.poll() is None, "nobody else's"
    finally:
        bystander.kill()
        bystander.wait()
    assert not [name for name in GONE if (fleet.path / name).exists()]
    assert all((fleet.path / name).exists() for name in KEPT)
    assert end_fleet(fleet, supervisor="rayburst.fleet.supervisor").processes_ended == 0
