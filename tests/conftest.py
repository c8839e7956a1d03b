"""Shared fixtures: a scrubbed environment, a real S3 server, a real fleet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from rayburst.fleet import processes

if TYPE_CHECKING:
    from rayburst.dev.cloud.imds import ImdsServer

# how fast inputs are made says something about the machine, nothing about the code
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# the same inputs each time: what fails was broken by the change; the soak looks for new ones
settings.register_profile("house", _PATIENT, max_examples=50, derandomize=True)
settings.register_profile("soak", _PATIENT, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

REPO = Path(__file__).resolve().parents[1]
_SCRUBBED = ("RAY_", "RAYBURST_", "AWS_")


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the fleet, the cluster or the cloud account of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(_SCRUBBED) and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)


@dataclass(frozen=True)
class RunningS3:
    """A real S3 server with one bucket; `env` opens it. Its processes are owned by `folder`."""

    uri: str
    env: dict[str, str]
    folder: Path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningS3]:
    from rayburst.dev.objectstore import PORTS, S3Server

    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder, address="127.0.0.1", ports=processes.free_ports(PORTS))
    server.write_config()
    log = folder / "weed.log"
    env = {**os.environ, processes.OWNER_VARIABLE: str(folder)}
    processes.spawn(server.command(), env=env, log=log)
    try:
        server.wait_until_ready(log.read_text, timeout_s=90)
        server.create_bucket("tests")
        yield RunningS3(uri="s3://tests", env=server.environment(), folder=folder)
    finally:
        processes.end(processes.owned(folder), grace_s=0.0)
        server.remove_sockets()


@pytest.fixture
def imds() -> Iterator[ImdsServer]:
    """A metadata service as an EC2 instance has it."""
    from rayburst.dev.cloud.imds import ImdsServer

    server = ImdsServer(address="127.0.0.1")
    server.start()
    yield server
    server.stop()
