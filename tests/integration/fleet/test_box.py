"""Hosts in a box: SSH, two networks, cuts of power and cable, and nothing left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import wait_for

from rayburst.dev.cloud.box import Box, why_not
from rayburst.dev.cloud.box_store import start_store
from rayburst.errors import StartError
from rayburst.fleet import processes

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
]

numbers = itertools.count(1)
"""In names of hosts: a test that runs again finds the box with the hosts it started before."""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with Box(tmp_path_factory.mktemp("box")) as box:
        yield box
    assert processes.owned(box.folder) == []


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout


def running(*words: str) -> bool:
    """Whether a process of this command runs anywhere on this machine, boxes included."""
    found = psutil.process_iter(["cmdline"])
    return any(process.info["cmdline"] == list(words) for process in found)


def reaches(box: Box, host: str, address: str) -> bool:
    """Whether a host gets an answer of another's sshd."""
    code = f"import socket; socket.create_connection(('{address}', 22), timeout=3).recv(3)"
    command = box.inside([sys.executable, "-c", code], host=host)
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_hosts_of_both_networks_answer_ssh_and_reach_each_other(box: Box) -> None:
    before = links()
    rack = box.start_host(f"rack-{next(numbers)}", network="onprem")
    spot = box.start_host(f"spot-{next(numbers)}", network="cloud")
    assert rack.address.rpartition(".")[0] != spot.address.rpartition(".")[0]
    for host in (rack, spot):
        assert box.run(host.ssh("hostname")).stdout.strip() == host.name
    assert reaches(box, rack.name, spot.address)
    assert reaches(box, spot.name, rack.address)
    assert links() == before, "this machine's own network is untouched"


def test_a_host_has_files_and_processes_of_its_own(box: Box) -> None:
    first, second = (box.start_host(f"own-{next(numbers)}", network="onprem") for _ in range(2))
    box.run(first.ssh("touch /tmp/mine ~/mine /dev/shm/mine"))
    seen = box.run(second.ssh("ls /tmp ~ /dev/shm; ls -d /proc/[0-9]* | wc -l")).stdout
    assert "mine" not in seen
    assert int(seen.split()[-1]) < 15, "its processes are its own"
    assert not Path("/tmp/mine").exists()


def test_the_same_python_runs_on_a_host(box: Box) -> None:
    host = box.start_host(f"python-{next(numbers)}", network="cloud")
    said = box.run(host.ssh("bash --login -c 'python -c \"import rayburst; print(1)\"'")).stdout
    assert said.strip() == "1"


def test_a_power_cut_takes_every_process_at_once(box: Box) -> None:
    name = f"cut-{next(numbers)}"
    host = box.start_host(name, network="cloud")
    box.run(host.ssh("nohup sleep 4711 >/dev/null 2>&1 &"))
    wait_for(lambda: running("sleep", "4711") or None, what="it to run before the cut")
    box.cut_power(name)
    wait_for(lambda: not running("sleep", "4711") or None, what="its end")
    lost = subprocess.run(
        box.inside(host.ssh("true")), capture_output=True, text=True, timeout=60, check=False
    )
    assert lost.returncode == 255, lost.stderr
    with pytest.raises(StartError, match=f"the box has no host '{name}'"):
        box.cut_network(name)


def test_a_network_cut_leaves_the_host_running_alone(box: Box) -> None:
    near, far = (
        box.start_host(f"{name}-{next(numbers)}", network="onprem") for name in ("near", "far")
    )
    box.cut_network(far.name)
    assert not reaches(box, near.name, far.address)
    alone = subprocess.run(box.inside(["hostname"], host=far.name), capture_output=True, text=True)
    assert alone.stdout.strip() == far.name, "it lives"
    box.mend_network(far.name)
    wait_for(lambda: reaches(box, near.name, far.address) or None, what="the way to be back")
    assert near.address != far.address


def test_what_it_cannot_do_is_said(box: Box, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no network 'moon' in the box; it has onprem, cloud"):
        box.start_host("moon-1", network="moon")
    with pytest.raises(StartError, match="use it as `with Box"):
        Box(tmp_path).start_host("a", network="cloud")


STARTER = """
import sys, time
from pathlib import Path
from rayburst.dev.cloud.box import Box
with Box(Path(sys.argv[1])) as box:
    host = box.start_host("rack-1", network="onprem")
    box.run(host.ssh("nohup sleep 4712 >/dev/null 2>&1 &"))
    print("up", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_when_the_starter_is_killed(tmp_path: Path) -> None:
    before = links()
    folder = tmp_path / "box"
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    assert starter.stdout.readline().strip() == "up"
    found = processes.owned(folder)
    assert len(found) >= 4, "box and host run"
    wait_for(lambda: running("sleep", "4712") or None, what="the sleep to run")
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    wait_for(lambda: not processes.owned(folder) or None, what="the end of all processes")
    assert not [process for process in found if processes.alive(process)]
    assert not running("sleep", "4712")
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert links() == before


def test_a_store_that_cannot_start_says_why_and_leaves_no_socket(tmp_path: Path) -> None:
    with Box(tmp_path / "box") as box:
        data = box.folder / "store" / "data"
        data.mkdir(parents=True)
        (data / "filerldb2").write_text("not its database")
        with pytest.raises(StartError, match=r"did not start; the end of .*store\.log"):
            start_store(box)
    with Box(tmp_path / "other") as box:
        port = start_store(box).server.s3_port
        assert list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock")), "a store keeps sockets there"
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
