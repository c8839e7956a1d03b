"""Ownership by mark: found after the parent is gone, and nobody else's is touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rayburst.errors import StartError
from rayburst.fleet import processes

SLEEP = [sys.executable, "-c", "import sys, time; print('up', flush=True); time.sleep(600)"]
# a child in a session of its own whose parent ends
ORPHAN = """
import os, time
if os.fork():
    os._exit(0)
os.setsid()
print('up', flush=True)
time.sleep(600)
"""


def marked(owner: Path, host: str = "") -> dict[str, str]:
    env = {**os.environ, processes.OWNER_VARIABLE: str(owner)}
    return {**env, processes.HOST_VARIABLE: host} if host else env


def spawn(command: list[str], env: dict[str, str], log: Path) -> None:
    """Start a process and wait for its word that it runs."""
    processes.spawn(command, env=env, log=log)
    deadline = time.monotonic() + 30
    while "up" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def bystander():
    process = subprocess.Popen(SLEEP, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_ends_its_own_and_nothing_else(tmp_path, bystander):
    spawn(SLEEP, marked(tmp_path), tmp_path / "a.log")
    spawn([sys.executable, "-c", ORPHAN], marked(tmp_path), tmp_path / "b.log")
    spawn(SLEEP, marked(tmp_path / "other"), tmp_path / "c.log")
    try:
        assert len(processes.owned(tmp_path)) == 2
        assert processes.end(processes.owned(tmp_path), grace_s=5) == []
        assert processes.owned(tmp_path) == []
        assert bystander.poll() is None
        assert len(processes.owned(tmp_path / "other")) == 1
    finally:
        processes.end(processes.owned(tmp_path / "other"), grace_s=0)


def test_a_power_cut_takes_one_host_only(tmp_path):
    for host in ("rack-1", "rack-2"):
        spawn(SLEEP, marked(tmp_path, host), tmp_path / f"{host}.log")
    try:
        assert processes.cut(tmp_path, "rack-1") == 1
        assert processes.owned(tmp_path, host="rack-1") == []
        assert len(processes.owned(tmp_path, host="rack-2")) == 1
        assert processes.cut(tmp_path, "rack-1") == 0
    finally:
        processes.end(processes.owned(tmp_path), grace_s=0)


def test_a_reused_pid_is_not_taken_for_the_old_process():
    me = psutil.Process()
    assert processes.alive_pid(me.pid, me.create_time())
    assert not processes.alive_pid(me.pid, me.create_time() - 100)


def test_free_ports_are_different_and_leave_room_for_their_twins():
    ports = processes.free_ports(20, "127.0.0.1")
    assert len(set(ports)) == 20
    assert all(port + 10_000 < 65_536 and not 10_002 <= port <= 19_999 for port in ports)


def test_a_held_port_is_the_servers_that_comes_for_it_and_nobody_elses():
    (port,) = processes.free_ports(1)
    endpoint = ("127.0.0.1", port)
    with processes.held([endpoint]):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(endpoint)
        server = socket.create_server(endpoint)  # sets SO_REUSEADDR
    with server:
        assert processes.listening(*endpoint), "and it goes on when nobody holds the port any more"
        with pytest.raises(StartError, match=f"port {port} "), processes.held([endpoint]):
            pass


def test_wait_until_closed_names_what_is_still_open():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = server.getsockname()
        assert processes.wait_until_closed([address], timeout_s=0.1) == [address]
    assert processes.wait_until_closed([address], timeout_s=5) == []
