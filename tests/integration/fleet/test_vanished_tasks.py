"""A plain Ray task on a machine that hangs without closing a connection runs again elsewhere.

The fleet's settings for silent connections, at a tenth of their times: at full length it takes a
minute and a half, and seven minutes by Ray's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import wait_for

from rayburst.dev.embedded import down, up
from rayburst.fleet import connections, processes
from rayburst.fleet.layout import FleetDir
from rayburst.sdk import Platform, connect

WORK = Path(__file__).with_name("work.py")
SPEC = """
name: silent
object_store: {kind: embedded}
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB}, price: 0.35 USD/h,
     hosts: {min: 2, max: 2}}
"""
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in connections.SYSTEM_CONFIG.items():
        monkeypatch.setitem(connections.SYSTEM_CONFIG, name, value // 10)


@pytest.fixture
def fleet(hasty: None, tmp_path: Path) -> Iterator[FleetDir]:
    (tmp_path / "fleet.yaml").write_text(SPEC)
    started = up(tmp_path / "fleet.yaml", root=tmp_path)
    try:
        yield started
    finally:
        assert down(started).clean


def hosts_with_a_task(folder: Path) -> set[str]:
    return {file.name.removeprefix("running-") for file in folder.glob("running-*")}


def hang(fleet: FleetDir, host: str) -> bool:
    """Stop all processes of a host; whether all are, those too that it was just starting."""
    is_stopped = True
    for process in processes.owned(fleet.path, host=host):
        with contextlib.suppress(psutil.NoSuchProcess):
            is_stopped &= process.status() == psutil.STATUS_STOPPED
            process.suspend()
    return is_stopped


def test_a_task_on_a_hung_machine_runs_again_on_another(fleet: FleetDir, tmp_path: Path) -> None:
    platform: Platform = connect(fleet.name, root=tmp_path)
    wait_for(
        lambda: len([n for n in platform.fleet().nodes if n.state == "up"]) == 2 or None,
        what="two hosts",
    )
    release = tmp_path / "release"
    job = platform.submit(f"python {WORK} {release} 1", working_dir=None)
    first = wait_for(lambda: hosts_with_a_task(tmp_path) or None, what="the task to run")
    host = min(first)
    assert any("raylet" in process.name() for process in processes.owned(fleet.path, host=host))
    wait_for(lambda: hang(fleet, host) or None, what=f"all of {host} to be stopped", timeout_s=20)
    try:
        both = wait_for(
            lambda: found if len(found := hosts_with_a_task(tmp_path)) == 2 else None,
            what="the task to run again",
            timeout_s=60,
        )
        release.touch()
        wait_for(lambda: job.status == "SUCCEEDED" or None, what="the job to end")
        assert f"ran on {sorted(both - first)}" in job.logs()
    finally:
        processes.cut(fleet.path, host)
