"""Every touch of Ray's private parts by the fleet, in one place. Tested against Ray 2.60.

What Ray gives no public call for: who is in the cluster with which labels and what is pending (the
autoscaler's own view), draining a node, starting a node from this process, and the key-value store
in which submitted jobs, asks and grants are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psutil

from rayburst.errors import StartError
from rayburst.fleet.book import SubmittedJob
from rayburst.fleet.packing import LabelRule, Request, RequestKind
from rayburst.fleet.pools.base import Notice
from rayburst.fleet.spec import Shape
from rayburst.train.grants import NAMESPACE

_RPC_TIMEOUT_S = 5.0
_PACKAGE_S = 60.0
_JOB_PREFIX, _JOB_NAMESPACE = b"_ray_internal_job_info_", b"job"
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_OBJECT_STORE_SHARE = 0.2
_OBJECT_STORE_LEAST_BYTES = 80 * 1024**2  # Ray refuses less than 75 MiB
_OBJECT_STORE_MOST_BYTES = 1024**3


class RayNodeStatus(StrEnum):
    """Ray's NodeStatus; RUNNING means busy."""

    RUNNING = "RUNNING"
    IDLE = "IDLE"
    DRAINING = "DRAINING"
    DEAD = "DEAD"


@dataclass(frozen=True, kw_only=True, slots=True)
class RayNode:
    """One node as Ray's control store (GCS) sees it."""

    node_id: str
    host: str
    status: RayNodeStatus
    address: str
    total: Mapping[str, float]
    available: Mapping[str, float]
    idle_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RayView:
    """Nodes and pending requests at one moment."""

    nodes: tuple[RayNode, ...]
    requests: tuple[Request, ...]


class Gcs:
    """A connection to one cluster's control store; made again after every failure."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ended: set[bytes] = set()

    def jobs(self) -> list[SubmittedJob]:
        """Submitted jobs that have not ended. Raises RpcError when the control store is away."""
        # The Jobs API answers through the dashboard, which may be busy for seconds; this is the
        # record that it reads (dashboard/modules/job/common.py, JobInfoStorageClient).
        client = self._client()
        keys = client.internal_kv_keys(_JOB_PREFIX, _JOB_NAMESPACE, _RPC_TIMEOUT_S)
        new = [key for key in keys if key not in self._ended]
        found = client.internal_kv_multi_get(new, _JOB_NAMESPACE, _RPC_TIMEOUT_S) if new else {}
        jobs = []
        for key, body in sorted(found.items()):
            raw = json.loads(body)
            if raw["status"] in _ENDED:
                self._ended.add(key)
                continue
            jobs.append(
                SubmittedJob(
                    id=key.removeprefix(_JOB_PREFIX).decode(),
                    submitted_at=(raw.get("start_time") or 0) / 1000,
                    metadata=raw.get("metadata") or {},
                    entrypoint=raw.get("entrypoint") or "",
                )
            )
        return jobs

    def ended(self) -> set[str]:
        """Jobs of this head that were seen to have ended, by `jobs`."""
        return {key.removeprefix(_JOB_PREFIX).decode() for key in self._ended}

    def submission(self, job: str) -> dict[str, Any] | None:
        """The whole record of a submitted job; None when there is none."""
        key = _JOB_PREFIX + job.encode()
        body = self._client().internal_kv_get(key, _JOB_NAMESPACE, _RPC_TIMEOUT_S)
        return json.loads(body) if body is not None else None

    def package(self, uri: str) -> bytes | None:
        """A package of a job, which Ray keeps under its URI; None when it has gone."""
        body: bytes | None = self._client().internal_kv_get(uri.encode(), None, _PACKAGE_S)
        return body

    def restore_package(self, uri: str, data: bytes) -> None:
        """Put a package where Ray looks for it."""
        self._client().internal_kv_put(uri.encode(), data, True, None, _PACKAGE_S)

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        """What trainers and planner left for each other; keys that are not there are left out."""
        wanted = [key.encode() for key in keys]
        if not wanted:
            return {}
        found = self._client().internal_kv_multi_get(wanted, NAMESPACE, _RPC_TIMEOUT_S)
        return {key.decode(): body for key, body in found.items() if body is not None}

    def write(self, key: str, value: bytes) -> None:
        """Leave something for the trainers."""
        self._client().internal_kv_put(key.encode(), value, True, NAMESPACE, _RPC_TIMEOUT_S)

    def delete(self, key: str) -> None:
        """Take a key away; one that is not there is fine."""
        self._client().internal_kv_del(key.encode(), False, NAMESPACE, _RPC_TIMEOUT_S)

    def _client(self) -> Any:
        # GcsClient is private; ray.util.state has neither labels nor pending demand.
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        return GcsClient(address=self._address)

    def observe(self) -> RayView:
        """What the autoscaler sees. Raises Ray's RpcError when the control store is away."""
        # The protobuf is what the autoscaler v2 itself reads; the public status drops selectors.
        from ray.core.generated import autoscaler_pb2

        reply = autoscaler_pb2.GetClusterResourceStateReply()
        reply.ParseFromString(self._client().get_cluster_resource_state(timeout_s=_RPC_TIMEOUT_S))
        state = reply.cluster_resource_state
        return RayView(
            nodes=tuple(_node(node, autoscaler_pb2) for node in state.node_states),
            requests=tuple(_requests(state)),
        )

    def drain(self, node_id: str, *, why: str, deadline: float, idle: bool) -> bool:
        """Drain a node until `deadline` (unix seconds); with `idle`, only if nothing runs on it."""
        from ray.core.generated import autoscaler_pb2

        kind = "IDLE_TERMINATION" if idle else "PREEMPTION"
        reason = autoscaler_pb2.DrainNodeReason.Value(f"DRAIN_NODE_REASON_{kind}")
        accepted, _ = self._client().drain_node(node_id, reason, why, int(deadline * 1000))
        return bool(accepted)

    def unregister(self, node_id: str, *, why: str) -> None:
        """Tell that a node is gone for good, as its raylet does when it ends.

        A machine that vanished refuses no connection, and Ray's own health checks take a minute to
        believe it. Raises RpcError.
        """
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import common_pb2, gcs_service_pb2, gcs_service_pb2_grpc
        from ray.exceptions import RpcError

        # GcsClient has no call for it; this is the one that a raylet makes when it ends.
        reason = common_pb2.NodeDeathInfo.Reason.Value("UNEXPECTED_TERMINATION")
        request = gcs_service_pb2.UnregisterNodeRequest(
            node_id=bytes.fromhex(node_id),
            node_death_info=common_pb2.NodeDeathInfo(reason=reason, reason_message=why),
        )
        with init_grpc_channel(self._address) as channel:
            service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            try:
                service.UnregisterNode(request, timeout=_RPC_TIMEOUT_S)
            except grpc.RpcError as error:
                raise RpcError(f"UnregisterNode: {error}") from error


def drain_host(gcs: Gcs, host: str, notice: Notice, *, address: str = "") -> bool:
    """Drain the Ray node that runs on `host`, or else at `address`.

    False when Ray does not know it, refused or does not answer.
    """
    from ray.exceptions import RpcError

    try:
        for node in gcs.observe().nodes:
            mine = node.host == host if host else node.address == address
            if mine and node.status is not RayNodeStatus.DEAD:
                return gcs.drain(node.node_id, why=notice.why, deadline=notice.deadline, idle=False)
    except RpcError:
        return False
    return False


def _node(raw: Any, autoscaler_pb2: Any) -> RayNode:
    return RayNode(
        node_id=raw.node_id.hex(),
        host=raw.instance_id,
        status=RayNodeStatus(autoscaler_pb2.NodeStatus.Name(raw.status)),
        address=raw.node_ip_address,
        total=dict(raw.total_resources),
        available=dict(raw.available_resources),
        idle_s=raw.idle_duration_ms / 1000,
    )


def _requests(state: Any) -> Iterator[Request]:
    for constraint in state.cluster_resource_constraints:
        for counted in constraint.resource_requests:
            request = _request(counted.request, RequestKind.FLOOR)
            yield from [request] * counted.count
    for number, gang in enumerate(state.pending_gang_resource_requests):
        for raw in gang.requests:
            yield _request(raw, RequestKind.TASK, gang=str(number))
    for counted in state.pending_resource_requests:
        request = _request(counted.request, RequestKind.TASK)
        yield from [request] * counted.count


def _request(raw: Any, kind: RequestKind, gang: str = "") -> Request:
    # A gang's bundles that must be on different nodes carry the group's own anti-affinity label.
    apart = any(c.HasField("anti_affinity") for c in raw.placement_constraints)
    # Several selectors are alternatives in order of preference: the first is what was asked for.
    selectors = [tuple(map(_rule, one.label_constraints)) for one in raw.label_selectors]
    return Request(
        resources={k: v for k, v in raw.resources_bundle.items() if not k.startswith("node:")},
        kind=kind,
        selector=selectors[0] if selectors else (),
        or_else=tuple(selectors[1:]),
        apart=gang if apart else "",
        in_gang=bool(gang),
    )


def _rule(raw: Any) -> LabelRule:
    return LabelRule(
        key=raw.label_key,
        values=frozenset(raw.label_values),
        negated=raw.operator == 2,  # LABEL_OPERATOR_NOT_IN
    )


def _on_a_shared_machine(temp_dir: str) -> tuple[str, ...]:
    return (
        # its own, as on a machine of its own: nodes that share one race for socket names
        f"--temp-dir={temp_dir}",
        # zero: the system chooses; Ray's fixed defaults collide on one machine
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
    )


def start_worker_node(
    *, gcs_address: str, address: str, shape: Shape, labels: Mapping[str, str], temp_dir: str = ""
) -> psutil.Process:
    """Join this process's machine to the cluster; returns the raylet, a child of this process.

    With a `temp_dir` the machine is shared with other nodes: ports are free ones. Without one the
    machine is the node's own, and Ray's own ports are used, which a firewall can name.

    `ray start` is called in this process rather than as a command: one Python start less per node,
    and the raylet stays a child whose end can be seen. Ray must not have been imported with another
    environment before.
    """
    from ray.scripts.scripts import start

    store_bytes = min(
        max(int(shape.memory_bytes * _OBJECT_STORE_SHARE), _OBJECT_STORE_LEAST_BYTES),
        _OBJECT_STORE_MOST_BYTES,
    )
    start.main(
        args=[
            f"--address={gcs_address}",
            f"--node-ip-address={address}",
            f"--num-cpus={shape.cpus}",
            f"--num-gpus={shape.gpus}",
            f"--memory={shape.memory_bytes}",
            f"--object-store-memory={store_bytes}",
            f"--labels={','.join(f'{k}={v}' for k, v in labels.items())}",
            "--disable-usage-stats",
            *(_on_a_shared_machine(temp_dir) if temp_dir else ()),
        ],
        standalone_mode=False,
    )
    for child in psutil.Process().children(recursive=True):
        if child.name() == "raylet":
            return child
    raise StartError(f"`ray start` for {address} returned but no raylet runs; see the host's log")
