"""Leased machines: real SSH servers, another fleet, an owner, cuts of power and cable."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import wait_for

from rayburst.dev.cloud.box import Box, BoxHost, why_not
from rayburst.errors import PoolCapacityError
from rayburst.fleet.pools.base import PoolSite
from rayburst.fleet.pools.ssh import SshPool
from rayburst.fleet.spec import FleetSpec

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
]
Open = Callable[..., SshPool]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_764_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with Box(tmp_path_factory.mktemp("box")) as box:
        yield box


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def machines(box: Box) -> Iterator[list[BoxHost]]:
    """Two fresh machines on-prem."""
    names = [f"m{len(box.hosts)}-a", f"m{len(box.hosts)}-b"]
    yield [box.start_host(name, network="onprem") for name in names]
    for name in names:
        if name in box.hosts:
            box.cut_power(name)


@pytest.fixture
def opened(box: Box, machines: list[BoxHost], tmp_path: Path, clock: Clock) -> Open:
    """Opens the pool as any process of a head would; `head` names its folder."""

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        return box.run(command, **{"check": False, **how})

    def open_pool(*, fleet: str = "lab", head: str = "head", **more: Any) -> SshPool:
        ssh = {"hosts": [m.address for m in machines], "user": "root", "key": f"{box.folder}/key"}
        ssh |= {"known_hosts": str(box.folder / "known_hosts"), **more.pop("ssh", {})}
        pool = {"name": "rack", "kind": "ssh", "market": "on-prem", "ssh": ssh, "max_hosts": 2}
        shape = {"cpus": 1, "memory_bytes": 2**30, **more}
        store = {"kind": "s3", "uri": "s3://bucket"}
        spec = FleetSpec(name=fleet, object_store=store, pools=[pool | {"shape": shape}])
        site = PoolSite(fleet=fleet, folder=tmp_path / head, subnet="127.9.9", clock=clock)
        return SshPool(spec.pool("rack"), site, run=run)

    return open_pool


def on(box: Box, machine: BoxHost, words: str) -> str:
    return box.run(machine.ssh(words)).stdout.strip()


def under(pool: SshPool, host: str, machines: list[BoxHost]) -> BoxHost:
    """The machine that a host is."""
    (address,) = [one.address for one in pool.hosts() if one.id == host]
    return next(machine for machine in machines if machine.address == address)


def test_another_fleets_machine_is_left_alone(opened: Open) -> None:
    (theirs,) = opened(fleet="theirs", head="other").launch(1, tags={}, why="x")
    (mine,) = opened().launch(1, tags={}, why="x")
    addresses = {host.address for host in (*opened().hosts(), *opened(head="other").hosts())}
    assert len(addresses) == 2
    with pytest.raises(PoolCapacityError, match="is leased to fleet 'theirs'"):
        opened().launch(1, tags={}, why="x")
    opened(fleet="theirs", head="other").terminate(theirs, why="done")
    opened().launch(1, tags={}, why="x")
    assert [host.lives for host in opened().hosts()] == [True, True]
    assert mine


def test_an_end_ends_its_own_processes_and_no_others(
    box: Box, machines: list[BoxHost], opened: Open
) -> None:
    first, _ = opened().launch(2, tags={}, why="x")
    machine = under(opened(), first, machines)
    on(box, machine, f"RAYBURST_HOST={first} nohup sleep 1001 >/dev/null 2>&1 &")
    on(box, machine, f"RAYBURST_HOST={first}0 nohup sleep 1002 >/dev/null 2>&1 &")
    opened().terminate(first, why="given back")
    assert on(box, machine, "ps -eo args | grep -c '[s]leep 1001' || true") == "0"
    assert on(box, machine, "ps -eo args | grep -c '[s]leep 1002' || true") == "1"
    assert on(box, machine, "ls ~/.rayburst") == ""


def test_a_new_head_ends_what_a_lost_one_left_and_takes_the_machine(
    box: Box, machines: list[BoxHost], opened: Open
) -> None:
    orphan, _ = opened(head="lost").launch(2, tags={}, why="x")
    machine = under(opened(head="lost"), orphan, machines)
    on(box, machine, f"RAYBURST_HOST={orphan} nohup sleep 1003 >/dev/null 2>&1 &")
    assert len(opened(head="new").launch(2, tags={}, why="x")) == 2
    assert on(box, machine, "ps -eo args | grep -c '[s]leep 1003' || true") == "0"
    assert orphan not in on(box, machine, "cat ~/.rayburst/lease.json")


def test_a_machine_without_power_is_lost_after_three_looks_and_kept_out(
    box: Box, machines: list[BoxHost], opened: Open, clock: Clock
) -> None:
    opened().launch(2, tags={}, why="x")
    dark = machines[0]
    box.cut_power(dark.name)
    states = []
    for _ in range(3):
        opened().look()
        states.append({h.address: h.lives for h in opened().hosts()}[dark.address])
    assert states == [True, True, False]
    (lost,) = [h for h in opened().hosts() if not h.lives]
    assert lost.gone_why.startswith(f"lost: {dark.address} over SSH")
    with pytest.raises(PoolCapacityError, match=f"{dark.address} is in quarantine"):
        opened().launch(1, tags={}, why="x")
    clock.now += 120
    with pytest.raises(PoolCapacityError, match=f"{dark.address} over SSH"):
        opened().launch(1, tags={}, why="x")
    clock.now += 119  # the second failure keeps it out for twice as long
    with pytest.raises(PoolCapacityError, match=f"{dark.address} is in quarantine"):
        opened().launch(1, tags={}, why="x")


def test_what_could_not_be_given_back_is_when_the_network_is_there_again(
    box: Box, machines: list[BoxHost], opened: Open
) -> None:
    first, _ = opened().launch(2, tags={}, why="x")
    machine = under(opened(), first, machines)
    on(box, machine, f"RAYBURST_HOST={first} nohup sleep 1004 >/dev/null 2>&1 &")
    box.cut_network(machine.name)
    opened().terminate(first, why="given back")
    opened().forget(first)
    assert first in [h.id for h in opened().hosts()], "its machine has not been given back"
    box.mend_network(machine.name)

    def released() -> bool | None:
        opened().look()
        return on(box, machine, "ls ~/.rayburst") == "" or None

    wait_for(released, what="the lease to be removed", timeout_s=30)
    assert on(box, machine, "ps -eo args | grep -c '[s]leep 1004' || true") == "0"
    opened().forget(first)
    assert first not in [h.id for h in opened().hosts()]


def test_an_owner_gets_a_machine_back_after_the_notice_they_gave(
    box: Box, machines: list[BoxHost], opened: Open, clock: Clock
) -> None:
    opened().launch(2, tags={}, why="x")
    wanted = machines[1]
    on(box, wanted, "echo 90 > ~/.rayburst/reclaim")
    opened().look()
    (host,) = [h for h in opened().hosts() if h.address == wanted.address]
    assert host.notice is not None and host.notice.reclaim
    assert host.notice.why == "its owner wants it back"
    assert host.notice.deadline == host.notice.given_at + 90
    assert clock.now - 60 < host.notice.given_at <= clock.now, (
        "when they wrote, not when it was seen"
    )
    opened().look()
    assert {h.address: h.lives for h in opened().hosts()}[wanted.address]
    clock.now += 90
    opened().look()
    (host,) = [h for h in opened().hosts() if h.address == wanted.address]
    assert host.gone_why == "taken: its owner wants it back"
    with pytest.raises(PoolCapacityError, match=f"{wanted.address} is wanted by its owner"):
        opened().launch(1, tags={}, why="x")
    on(box, wanted, "rm ~/.rayburst/reclaim")
    opened().launch(1, tags={}, why="x")


def test_hours_open_close_with_notice_and_open_again(opened: Open, clock: Clock) -> None:
    day = {"open": ["mon-sun 08:00-17:00"], "notice_s": 600.0}
    clock.now = 1_764_057_600.0 - 1  # 07:59:59 UTC
    with pytest.raises(PoolCapacityError, match=r"is closed; it opens .* 08:00 UTC"):
        opened(ssh=day).launch(1, tags={}, why="x")
    clock.now += 1
    opened(ssh=day).launch(1, tags={}, why="x")
    clock.now += 9 * 3600 - 601
    opened(ssh=day).look()
    assert opened(ssh=day).hosts()[0].notice is None
    clock.now += 1
    opened(ssh=day).look()
    notice = opened(ssh=day).hosts()[0].notice
    assert notice is not None and notice.deadline == clock.now + 600
    clock.now += 600
    opened(ssh=day).look()
    assert opened(ssh=day).hosts()[0].gone_why == "taken: its opening hours end"


def test_a_machine_with_less_than_it_should_have_is_kept_out(opened: Open) -> None:
    with pytest.raises(PoolCapacityError, match=r"has 0 of 8 GPUs"):
        opened(gpus=8).launch(1, tags={}, why="x")
    with pytest.raises(PoolCapacityError, match=r"in quarantine: has 0 of 8 GPUs"):
        opened(gpus=8).launch(1, tags={}, why="x")
    assert opened(gpus=8).hosts() == []
