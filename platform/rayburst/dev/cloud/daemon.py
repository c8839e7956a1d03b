"""A cloud in a box that stays: what `rayburst dev cloud up` starts, and `down` ends.

    up(folder, Options(trace=Path("zones-2023-02"), speed=600.0, hosts=2))
    status(folder)
    down(folder)

One process, `python -m rayburst.dev.cloud.daemon FOLDER`, holds the box and the endpoint; they end
with it, however it ends. In the folder: `options.json` is what was asked for, `status.json` what
there is (renewed twice a second), `key` opens every host, and each host has a log.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.box_store import BoxStore, start_store
from rayburst.dev.cloud.cloud import Cloud
from rayburst.dev.cloud.player import Player
from rayburst.dev.cloud.script import NOTICE_S, Step, from_traces, parse_script
from rayburst.dev.objectstore import S3Server
from rayburst.errors import (
    FleetExistsError,
    FleetNotFoundError,
    SpecError,
    StartError,
)
from rayburst.fleet import processes
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.replay.memberships import read_membership
from rayburst.fleet.replay.traces import ZoneTrace, read_traces
from rayburst.fleet.ship import STORE_KEYS

_UP_S, _DOWN_S, _STATUS_S = 120.0, 60.0, 0.5
_MODULE = "rayburst.dev.cloud.daemon"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a cloud is made of.

    Attributes:
        hosts: machines on-prem, `rack-1` and on.
        trace: a recorded market: a file or folder as `rayburst simulate` reads it, or a CSV of
            memberships; one zone each, in the order of their names.
        per_zone: how many instances a zone has while a trace of one node says that it is there.
        script: a file of steps, see `script.py`; its times count from the start too.
        speed: how many seconds of trace and script pass in one.
        notice_s: warning of instances that the trace takes, in real seconds.
        store: whether there is an object store inside.
    """

    zones: int = 3
    hosts: int = 0
    trace: str = ""
    per_zone: int = 4
    script: str = ""
    speed: float = 1.0
    notice_s: float = NOTICE_S
    store: bool = True

    def steps(self, zones: tuple[str, ...]) -> list[Step]:
        """All that will happen. Raises SpecError or DataError."""
        steps: list[Step] = []
        if self.trace:
            steps += from_traces(
                _traces(Path(self.trace)), zones=zones, hosts=self.per_zone, notice_s=self.notice_s
            )
        if self.script:
            try:
                text = Path(self.script).read_text()
            except OSError as error:
                raise SpecError(f"{self.script} cannot be read: {error.strerror}") from None
            steps += parse_script(text, source=self.script)
        return sorted(steps, key=lambda step: step.at_s)

    def played(self, zones: tuple[str, ...]) -> dict[str, str]:
        """Which trace each zone plays."""
        traces = _traces(Path(self.trace)) if self.trace else []
        return {zone: trace.name for zone, trace in zip(zones, traces, strict=False)}


def _traces(path: Path) -> list[ZoneTrace]:
    return [read_membership(path)] if path.suffix == ".csv" else read_traces(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What `down` ended, and what it could not."""

    ended: int
    left: tuple[str, ...]


def up(folder: Path, options: Options) -> dict[str, Any]:
    """Start a cloud in `folder`; returns its status.

    Raises:
        StartError: this machine cannot hold one, or it did not start.
        FleetExistsError: one is up there.
        SpecError, DataError: the trace or the script cannot be used.
    """
    if (reason := why_not()) is not None:
        raise StartError(reason)
    folder = folder.resolve()
    if processes.owned(folder):
        raise FleetExistsError(
            f"a cloud is up in {folder}; see it with `rayburst dev cloud status`, end it with "
            f"`rayburst dev cloud down`, or start another with `--folder OTHER`"
        )
    options.steps(tuple(f"us-east-1{letter}" for letter in "abcdef"[: options.zones]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").unlink(missing_ok=True)
    write_atomically(folder / "options.json", json.dumps(asdict(options)))
    log = folder / "daemon.log"
    process = processes.spawn(
        [sys.executable, "-m", _MODULE, str(folder)],
        env={**os.environ, processes.OWNER_VARIABLE: str(folder)},
        log=log,
    )
    deadline = time.monotonic() + _UP_S
    while process.poll() is None and time.monotonic() < deadline:
        if told := read_json(folder / "status.json"):
            return told
        time.sleep(0.1)
    down(folder)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise StartError(f"the cloud in {folder} did not come up; the end of {log}:\n{tail}")


def status(folder: Path) -> dict[str, Any]:
    """What there is. Raises FleetNotFoundError."""
    folder = folder.resolve()
    told = read_json(folder / "status.json")
    if told is None or _daemon(folder) is None:
        raise FleetNotFoundError(f"no cloud is up in {folder}; start one: `rayburst dev cloud up`")
    return told


def down(folder: Path) -> Left:
    """End a cloud and all in it. Raises FleetNotFoundError."""
    folder = folder.resolve()
    found = processes.owned(folder)
    if not found and not (folder / "options.json").exists():
        raise FleetNotFoundError(f"no cloud is up in {folder}, and none was")
    if (daemon := _daemon(folder)) is not None:
        processes.end([daemon], grace_s=_DOWN_S)
    left = processes.end(processes.owned(folder), grace_s=0.0)
    for file in ("status.json", "options.json"):
        (folder / file).unlink(missing_ok=True)
    return Left(ended=len(found), left=tuple(f"{p.pid} {p.name()}" for p in left))


def _daemon(folder: Path) -> psutil.Process | None:
    return next((p for p in processes.owned(folder) if _MODULE in p.cmdline()), None)


def _fixed(cloud: Cloud, store: BoxStore | None) -> dict[str, Any]:
    """What does not change, as plain data."""
    return {
        "pid": os.getpid(),
        "endpoint": cloud.endpoint,
        "endpoint_here": cloud.ec2.url,
        "region": cloud.ec2.region,
        "image": cloud.ami,
        "subnets": cloud.subnets,
        "router_pid": cloud.box.pid(),
        "key": str(cloud.box.folder / "key"),
        "known_hosts": str(cloud.box.folder / "known_hosts"),
        "store": {"uri": store.uri, "endpoint": store.server.endpoint} if store else None,
        "hosts": [
            {"name": host.name, "address": host.address, "pid": cloud.box.pid(host.name)}
            for host in cloud.box.hosts.values()
        ],
    }


def _moving(cloud: Cloud, player: Player, now: float) -> dict[str, Any]:
    capacity = sorted(cloud.ec2.market.capacity.items())
    return {
        "script_s": player.at_s(now),
        "script_done": player.done,
        "capacity": {" ".join(place): most for place, most in capacity},
        "instances": [asdict(one) for one in cloud.instances()],
        "calls": len(cloud.ec2.calls),
    }


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    options = Options(**(read_json(folder / "options.json") or {}))
    ended = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: ended.set())
    with Cloud(folder, zones=options.zones) as cloud:
        store = start_store(cloud.box) if options.store else None
        if store is not None:
            # what an instance's profile would give it
            cloud.image.update(_keys(store.server.environment()))
        for number in range(1, options.hosts + 1):
            cloud.box.start_host(f"rack-{number}", network="onprem")
        fixed = _fixed(cloud, store) | {"traces": options.played(cloud.zones)}
        player = cloud.play(options.steps(cloud.zones), speed=options.speed)
        while not ended.wait(_STATUS_S):
            told = fixed | _moving(cloud, player, time.time())
            write_atomically(folder / "status.json", json.dumps(told))


def store_environment(folder: Path) -> dict[str, str]:
    """The keys of the store inside, as S3 clients read them; empty where there is none."""
    keys = read_json(folder.resolve() / "store" / "keys.json")
    if keys is None:
        return {}
    server = S3Server(folder.resolve() / "store", address="", ports=(0, 0, 0, 0))
    return _keys(server.environment())


def _keys(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key in STORE_KEYS}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
