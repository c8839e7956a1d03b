"""`rayburst fleet check --live`: machines that are fit, and one fault after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rayburst.dev.cloud.box import Box, BoxHost, router_address, why_not
from rayburst.dev.cloud.wires import Relay
from rayburst.errors import SpecError
from rayburst.fleet.live_check import Find, check_live, summary
from rayburst.fleet.spec import FleetSpec

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
]
PYTHON = "/run/bin/py"
FLEET = """\
name: lab
object_store: {{uri: {store}/lab, endpoint: 'http://{router}:8333'}}
software: {{python: {python}}}
network: {{on_prem: [10.77.1.0/24], cloud: [10.77.128.0/17], route: vpn, encryption: wireguard}}
head: {{ssh: {{host: {head}, user: root, key: {keys}/key, known_hosts: {keys}/known_hosts}}}}
pools:
  - name: rack
    kind: ssh
    market: on-prem
    shape: {{cpus: 1, memory: 1GiB, gpus: {gpus}}}
    price: 0.40 USD/h
    hosts: {{max: 1}}
    ssh: {{hosts: [{rack}], user: root, key: {keys}/key, known_hosts: {keys}/known_hosts}}
  - name: burst
    kind: ssh
    market: spot
    shape: {{cpus: 1, memory: 1GiB}}
    price: 0.40 USD/h
    hosts: {{max: 1}}
    ssh: {{hosts: [{burst}], user: root, key: {keys}/key, known_hosts: {keys}/known_hosts}}
"""
Check = Callable[..., list[Find]]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with Box(tmp_path_factory.mktemp("box")) as box:
        for name, network in (("head", "onprem"), ("rack", "onprem"), ("burst", "cloud")):
            box.start_host(name, network=network)
        yield box


@pytest.fixture(scope="module")
def store(box: Box, s3_server: Any) -> Iterator[Any]:
    """The object store of this machine, as machines of the box reach it."""
    host, port = s3_server.env["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    relay = Relay(box, (router_address("onprem"), 8333), to=(host, int(port)))
    yield s3_server
    relay.close()


def on(box: Box, host: str, words: str) -> str:
    machine: BoxHost = box.hosts[host]
    return str(box.run(machine.ssh("sh -s"), input=words).stdout)


def install(box: Box, host: str, before: str = "") -> None:
    """The fleet's Python of one machine: the tests' own, with something done first."""
    on(box, host, f"printf '%s' '{before}' > /run/bin/sitecustomize.py")
    code = f'#!/bin/sh\nPYTHONPATH=/run/bin exec {sys.executable} "$@"\n'
    on(box, host, f"cat > {PYTHON} <<'END'\n{code}END\nchmod 755 {PYTHON}")


@pytest.fixture
def check(box: Box, store: Any) -> Check:
    for host in box.hosts:
        install(box, host)

    def run(*, gpus: int = 0) -> list[Find]:
        addresses = {name: host.address for name, host in box.hosts.items()}
        router = router_address("onprem")
        text = FLEET.format(
            store=store.uri, router=router, python=PYTHON, keys=box.folder, gpus=gpus, **addresses
        )
        return check_live(FleetSpec.parse(text), environment=store.env, wrap=box.inside)

    return run


def wrong(finds: list[Find]) -> list[tuple[str, str, str]]:
    return [(find.host.partition(" ")[0], find.probe, find.wrong) for find in finds if find.wrong]


def test_machines_that_are_fit_are_found_so(check: Check) -> None:
    finds = check()
    assert wrong(finds) == []
    ways = [find for find in finds if find.probe == "port"]
    assert len(ways) == 3 * 2 + 2, "each to each, and to the head's own port"
    probes = {find.probe for find in finds}
    assert probes == {"ssh", "clock", "versions", "shape", "store", "network", "port"}
    assert ("head", "ports", "2 of 2 ways open") in summary(finds)


def test_a_machine_that_is_off_is_told_and_the_others_are_tried(box: Box, check: Check) -> None:
    box.cut_network("rack")
    try:
        finds = check_wrong(check)
    finally:
        box.mend_network("rack")
    (told,) = finds
    assert told[:2] == ("rack", "ssh")


def check_wrong(check: Check, **how: int) -> list[tuple[str, str, str]]:
    return wrong(check(**how))


def test_a_way_that_is_shut_is_told_from_both_ends(box: Box, check: Check) -> None:
    burst = box.hosts["burst"].address
    on(box, "rack", f"ip route add blackhole {burst}")
    try:
        found = check_wrong(check)
    finally:
        on(box, "rack", f"ip route del blackhole {burst}")
    assert {(host, probe) for host, probe, _ in found} == {("rack", "port"), ("burst", "port")}
    assert all("Ray needs this way open" in why for *_, why in found)


def test_a_clock_that_is_off_is_told(box: Box, check: Check) -> None:
    install(box, "burst", "import time; real = time.time; time.time = lambda: real() + 90")
    (told,) = check_wrong(check)
    assert told[:2] == ("burst", "clock") and "+90." in told[2]


def test_another_version_of_ray_is_told(box: Box, check: Check) -> None:
    fault = (
        "import importlib.metadata as m; real = m.version; "
        'm.version = lambda name: "2.9.3" if name == "ray" else real(name)'
    )
    install(box, "rack", fault)
    (told,) = check_wrong(check)
    assert told[:2] == ("rack", "versions") and "Ray 2.9.3, here 2." in told[2]


def test_a_gpu_that_is_missing_is_told(box: Box, check: Check) -> None:
    smi = "#!/bin/sh\necho GPU 0: A100\n"
    on(box, "rack", f"cat > /run/bin/nvidia-smi <<'END'\n{smi}END\nchmod 755 /run/bin/nvidia-smi")
    try:
        assert check_wrong(check, gpus=1) == []
        (told,) = check_wrong(check, gpus=2)
    finally:
        on(box, "rack", "rm /run/bin/nvidia-smi")
    assert told == ("rack", "shape", "has 1 of 2 gpus that `shape` says")


def test_a_store_that_one_machine_cannot_reach_is_told(box: Box, check: Check) -> None:
    on(box, "burst", f"ip route add blackhole {router_address('onprem')}")
    try:
        found = check_wrong(check)
    finally:
        on(box, "burst", f"ip route del blackhole {router_address('onprem')}")
    assert [told[:2] for told in found] == [("burst", "store")]


def test_a_file_without_machines_is_refused() -> None:
    text = (
        "name: lab\nobject_store: {kind: embedded}\npools:\n  - {name: a, kind: process, "
        "market: spot, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1}}"
    )
    with pytest.raises(SpecError, match="names no machine that can be tried"):
        check_live(FleetSpec.parse(text), environment={})
