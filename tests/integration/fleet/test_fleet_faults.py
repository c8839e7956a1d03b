"""Parts of a fleet die: what can go on goes on, what cannot says so, and `down` always ends clean.

The tests share one fleet and run in the order of the file: the last ones end it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import wait_for, write_spec

from rayburst.dev.embedded import down, fleet_dir, up
from rayburst.errors import FleetBrokenError, FleetNotFoundError, StartError, StoreError
from rayburst.fleet import processes
from rayburst.fleet.events import EventLog, NodeEvent
from rayburst.fleet.files import read_json
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.monitor import monitor_process
from rayburst.sdk import connect

pytestmark = pytest.mark.timeout(300)


def part(fleet: FleetDir, word: str) -> psutil.Process | None:
    """The fleet's process whose command holds `word`."""
    for process in processes.owned(fleet.path):
        if any(word in argument for argument in process.cmdline()):
            return process
    return None


def kill(fleet: FleetDir, word: str) -> int:
    process = part(fleet, word)
    assert process is not None, f"no {word} to kill"
    os.kill(process.pid, signal.SIGKILL)
    return process.pid


def restarted(fleet: FleetDir, word: str, old: int) -> psutil.Process:
    def probe():
        process = part(fleet, word)
        return process if process is not None and process.pid != old else None

    return wait_for(probe, what=f"another {word}")


def fetched(platform, key: str) -> bytes | None:
    """The object, or None while the store is still coming up."""
    try:
        return platform.store().get(key)
    except StoreError:
        return None


def test_a_killed_agent_is_started_again_and_decides(fleet, platform):
    old = kill(fleet, "rayburst.fleet.agent")
    restarted(fleet, "rayburst.fleet.agent", old)
    before = read_json(fleet.agent_file)["at"]
    wait_for(lambda: read_json(fleet.agent_file)["at"] > before or None, what="a tick")
    assert not platform.fleet().problems


def test_a_killed_autoscaler_is_started_again_by_the_agent(fleet):
    monitor = monitor_process(fleet)
    os.kill(monitor.pid, signal.SIGKILL)
    wait_for(
        lambda: ((m := monitor_process(fleet)) is not None and m.pid != monitor.pid) or None,
        what="another autoscaler",
    )


def test_a_killed_object_store_comes_back_with_its_data_and_loses_no_event(fleet, platform):
    platform.store().put("precious", b"checkpoint")
    old = kill(fleet, "weed")
    event = NodeEvent(
        t=1.0,
        kind="up",
        node="rack-test",
        pool="rack",
        market="on-prem",
        price_usd_per_hour=None,
        why="written while the store was away",
    )
    from rayburst.fleet.events import IMPATIENT
    from rayburst.fleet.store import open_store

    EventLog(open_store(fleet, IMPATIENT), spool=fleet.spool).append(event)
    restarted(fleet, "weed", old)
    wait_for(
        lambda: (
            processes.listening(fleet.read_state().head_address, fleet.read_state().ports["store"])
            or None
        ),
        what="the store to answer",
    )
    assert wait_for(lambda: fetched(platform, "precious"), what="the object") == b"checkpoint"
    wait_for(
        lambda: event.key in {i.key for i in platform.store().list("events/")} or None,
        what="the spooled event to arrive",
    )
    assert event in platform.events()


def test_two_fleets_side_by_side_and_a_damaged_state_file(fleet, platform, tmp_path):
    root = fleet.path.parents[1]
    other = up(write_spec(tmp_path, "other"), root=root)
    try:
        with pytest.raises(FleetNotFoundError, match="it, other"):
            connect(root=root)
        assert not connect("other", root=root).fleet().problems
        other.state_file.write_text('{"name": "oth')
        with pytest.raises(FleetBrokenError, match="rayburst down other"):
            connect("other", root=root)
    finally:
        report = down(other)
    assert report.clean
    assert report.processes_ended > 5
    assert processes.owned(other.path) == []
    assert not other.state_file.exists()
    assert platform.fleet().name == "it", "the neighbour is untouched"


def test_a_killed_head_is_reported_and_down_then_up_brings_the_data_back(fleet, tmp_path):
    root = fleet.path.parents[1]
    head = part(fleet, "gcs_server")
    assert head is not None
    os.kill(head.pid, signal.SIGKILL)
    wait_for(
        lambda: any("head is dead" in p for p in connect("it", root=root).fleet().problems) or None,
        what="the status to say so",
    )
    problem = connect("it", root=root).fleet().problems[0]
    assert "rayburst down it" in problem
    assert "rayburst up" in problem

    assert down(fleet).clean
    assert processes.owned(fleet.path) == []
    up(write_spec(tmp_path, "it"), root=root)
    assert connect("it", root=root).store().get("precious") == b"checkpoint"


def test_up_that_is_killed_half_way_can_be_brought_down(tmp_path):
    file = write_spec(tmp_path, "half")
    starting = subprocess.Popen(
        [sys.executable, "-m", "rayburst", "up", str(file)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    fleet = fleet_dir(tmp_path, "half")
    wait_for(lambda: (fleet.logs / "head.log").exists() or None, what="the head to be starting")
    starting.kill()
    starting.wait()
    assert processes.owned(fleet.path), "something must be left behind to end"
    assert down(fleet).clean
    assert processes.owned(fleet.path) == []


def test_a_taken_port_is_named_and_nothing_stays(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} for dashboard is taken.*leave"):
            up(write_spec(tmp_path, "port"), root=tmp_path, ports={"dashboard": port})
    assert processes.owned(fleet_dir(tmp_path, "port").path) == []
    assert not fleet_dir(tmp_path, "port").state_file.exists()


@pytest.fixture
def full_disk(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("a disk of its own needs root to mount one")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounts")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_before_anything_starts(full_disk, tmp_path):
    assert shutil.disk_usage(full_disk).free < 2**25
    with pytest.raises(StartError, match=r"MiB free.*another disk"):
        up(write_spec(tmp_path, "disk"), root=full_disk)
    assert processes.owned(fleet_dir(full_disk, "disk").path) == []


def test_down_of_nothing_says_so(tmp_path):
    with pytest.raises(FleetNotFoundError, match="no fleet 'ghost'"):
        down(fleet_dir(tmp_path, "ghost"))
