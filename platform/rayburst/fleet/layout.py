"""Where a fleet's files are, what is in its state, and the environment its processes get.

A fleet is a folder `.rayburst/NAME/` beside the place where `up` was called:

    fleet.yaml        the fleet file as it was when the fleet came up
    state.json        addresses and ports; written before anything is started
    token             Ray's token, 0600            store.json   object store credentials, 0600
    autoscaling.yaml  the caps that Ray's autoscaler reads; rewritten by the agent
    openings.json     how many more hosts of each pool the provider may launch
    agent.json        what the agent saw and decided last
    spent.json        what the ledger says was spent, for the agent
    hosts/ID/         one folder a host
    spool/            events that wait for the object store
    logs/  store/     logs, among them what the planner saw; data of the embedded object store
    ship/             of a fleet that `ray up` started: what came from the user's machine
    env               of such a fleet: the environment of its head, 0600
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rayburst.errors import FleetBrokenError, FleetNotFoundError
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.serving import serve_environment
from rayburst.fleet.spec import FleetSpec

STATE_VERSION = 1
TUNNEL = "http://127.0.0.1:8265"
"""Where `ray dashboard CLUSTER.yaml` shows a cluster's dashboard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetState:
    """What the other processes of a fleet, and its users, need to find it.

    Attributes:
        subnet: the fleet's own part of the loopback network, e.g. "127.40.7"; the head is `.1`.
        ports: every port by role, on the head's address.
        ray_tmp: Ray's temp folder, kept short because socket paths are limited to 107 bytes.
        store_endpoint: None where the client's own default is meant (AWS itself).
        store_is_embedded: whether the fleet runs the store itself.
        address: the head's address where hosts are other machines; "" on a loopback network.
    """

    name: str
    started_at: float
    subnet: str
    ports: Mapping[str, int]
    ray_tmp: str
    store_uri: str
    store_endpoint: str | None
    store_is_embedded: bool
    address: str = ""
    version: int = STATE_VERSION

    @property
    def head_address(self) -> str:
        return self.address or f"{self.subnet}.1"

    @property
    def gcs_address(self) -> str:
        return f"{self.head_address}:{self.ports['gcs']}"

    @property
    def dashboard_url(self) -> str:
        # to others a real head shows its dashboard through `ray dashboard` only
        host = "127.0.0.1" if self.address else self.head_address
        return f"http://{host}:{self.ports['dashboard']}"

    @property
    def serve_url(self) -> str:
        return f"http://{self.head_address}:{self.ports['serve']}"


@dataclass(frozen=True)
class FleetDir:
    """The folder of one fleet."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def autoscaling_file(self) -> Path:
        return self.path / "autoscaling.yaml"

    @property
    def openings_file(self) -> Path:
        return self.path / "openings.json"

    @property
    def agent_file(self) -> Path:
        return self.path / "agent.json"

    @property
    def spent_file(self) -> Path:
        return self.path / "spent.json"

    @property
    def head_started_file(self) -> Path:
        """There once Ray's head runs: agent and bookkeeper wait for it."""
        return self.path / "head-started"

    @property
    def ship_token_file(self) -> Path:
        """The token of a fleet that `ray up` started, where it was called."""
        return self.path / "ship" / "token"

    @property
    def was_launched_from_here(self) -> bool:
        """Whether `ray up` was called here, and the fleet lives on another machine."""
        return self.ship_token_file.exists() and not self.state_file.exists()

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def ticks_file(self) -> Path:
        return self.logs / "ticks.jsonl"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    def spec(self) -> FleetSpec:
        return FleetSpec.load(self.path / "fleet.yaml")

    def token(self) -> str:
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise FleetBrokenError(
                f"the token of fleet {self.name!r} cannot be read ({error}); {self._way_out}"
            ) from error

    def write_state(self, state: FleetState) -> None:
        write_atomically(self.state_file, json.dumps(asdict(state), indent=2))

    def read_state(self) -> FleetState:
        """The fleet's state.

        Raises:
            FleetNotFoundError: there is none: the fleet is not up.
            FleetBrokenError: the file is damaged or was written by another version.
        """
        raw = self._readable(self.state_file)
        if raw is None:
            raise FleetNotFoundError(
                f"fleet {self.name!r} is not up ({self.state_file} does not exist); "
                f"start it with `rayburst up`"
            )
        known = {f.name for f in fields(FleetState)}
        if raw.get("version") != STATE_VERSION or set(raw) != known:
            raise FleetBrokenError(
                f"{self.state_file} is damaged or of another version "
                f"(keys {sorted(raw)}); {self._way_out}"
            )
        return FleetState(**raw)

    def credentials(self) -> dict[str, str]:
        """Environment variables that open the fleet's object store."""
        raw = self._readable(self.path / "store.json") or {}
        return {str(key): str(value) for key, value in raw.items()}

    def _readable(self, file: Path) -> dict[str, Any] | None:
        try:
            return read_json(file)
        except FleetBrokenError as error:
            raise FleetBrokenError(f"{error}; {self._way_out}") from error

    @property
    def _way_out(self) -> str:
        return (
            f"`rayburst down {self.name}` ends what it started even so, "
            f"then `rayburst up` starts afresh with its stored checkpoints"
        )


def store_environment(fleet: FleetDir, state: FleetState) -> dict[str, str]:
    """What S3 clients (obstore, pyarrow, boto3) read to reach the fleet's object store."""
    env = {"RAYBURST_FLEET": state.name, "RAYBURST_STORE": state.store_uri, **fleet.credentials()}
    if state.store_endpoint:
        env |= {"AWS_ENDPOINT_URL": state.store_endpoint, "AWS_ALLOW_HTTP": "true"}
    return env


def ray_environment(fleet: FleetDir, state: FleetState) -> dict[str, str]:
    """Environment of every process of the fleet: Ray's authentication, Serve, the object store."""
    # what stands where `up` was called can be imported: `serve deploy serve_apps/lm.yaml`
    here = "" if state.address else str(fleet.path.parent.parent)
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(fleet.token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # a process that renames itself must not overwrite the fleet's mark in its environment
        "SPT_NOENV": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", "")))),
        # `python` in a job's entry point is the Python that rayburst runs on
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **store_environment(fleet, state),
        **serve_environment(fleet.spec(), state.ports, given=os.environ),
    }


def launched_environment(fleet: FleetDir) -> dict[str, str]:
    """What `rayburst env` prints where `ray up` was called, for use beside `ray dashboard`."""
    return {
        "RAY_API_SERVER_ADDRESS": TUNNEL,
        "RAY_DASHBOARD_ADDRESS": TUNNEL,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(fleet.ship_token_file),
    }


def user_environment(fleet: FleetDir, state: FleetState) -> dict[str, str]:
    """What `rayburst env` prints: Ray's own commands and S3 clients then reach this fleet."""
    return {
        "RAY_ADDRESS": state.gcs_address,
        "RAY_API_SERVER_ADDRESS": state.dashboard_url,
        "RAY_DASHBOARD_ADDRESS": state.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(fleet.token_file),
        **store_environment(fleet, state),
    }
