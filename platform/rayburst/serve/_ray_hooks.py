"""Every touch of Ray's private parts by serving, in one place. Tested against Ray 2.60.

Serve takes only remote addresses in a runtime environment, and Ray has a public call to upload
local folders for jobs but none for Serve applications. And Serve starts a replica's own HTTP server
(behind HAProxy) without a way to say which protocol it speaks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient
from ray.serve import context as serve_context
from ray.serve._private import constants, tracing_utils
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import RequestProtocol
from ray.serve._private.request_ingress_metrics import RequestIngressMetrics
from ray.serve.exceptions import RayServeException


def upload_local_folders(client: JobSubmissionClient, runtime_env: Mapping[str, Any]) -> Any:
    """`runtime_env` with its local folders uploaded to the cluster and named by gcs:// addresses.

    What is already uploaded is not sent again; addresses pass through unchanged.
    """
    # What JobSubmissionClient.submit_job calls before it sends a job: it zips a folder, names
    # it by its hash and PUTs it to /api/packages. Both change the dict they are given.
    uploaded = {**runtime_env}
    if "py_modules" in uploaded:
        uploaded["py_modules"] = list(uploaded["py_modules"])
    client._upload_working_dir_if_needed(uploaded)
    client._upload_py_modules_if_needed(uploaded)
    uploaded.pop("excludes", None)  # has done its work; Serve would keep it in every status
    return uploaded


@dataclass(frozen=True, kw_only=True)
class ReplicaServer:
    """What a lane needs to know of the replica that is about to serve HTTP.

    `count(+1 | -1)` moves Serve's number of ongoing requests, by which it scales and drains.
    `record(path, status, seconds)` feeds Serve's metrics: all that failed, all counts, and of what
    succeeded some 200 latencies a second. `log` (with a request id) is for its access log.
    """

    prefix: str
    host: str
    request_timeout_s: float | None
    has_middlewares: bool
    count: Callable[[int], None]
    record: Callable[[str, int, float], None]
    log: Callable[[str, int, float, str], None]


def has_own_server() -> bool:
    """Whether Serve gives replicas an HTTP server of their own."""
    # No public question tells; the constant is what the replica itself goes by.
    return bool(constants.RAY_SERVE_ENABLE_DIRECT_INGRESS)


def why_not_again(callback: str) -> str | None:
    """Why a dead replica's requests are not asked again; None when `callback` sees to it."""
    if not constants.RAY_SERVE_ENABLE_HA_PROXY:
        return "that takes Serve's HAProxy; start Ray with RAY_SERVE_ENABLE_HA_PROXY=1"
    return why_plain_controller(callback)


def why_plain_controller(callback: str) -> str | None:
    """Why Serve's controller is as Ray has it; None when it called `callback`."""
    # What the controller goes by; nodes are started alike, so this process has the same variables.
    if callback != constants.RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH:
        return f"start Ray with RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH={callback}"
    return None


def listening_host() -> str | None:
    """The host that Serve's proxies listen on; None where it cannot be known."""
    # No public question tells a replica; the controller answers the client that every replica has.
    try:
        client = serve_context._get_global_client()
        host = client.http_config.host if client is not None else None
    except (RayError, RayServeException, AttributeError):
        return None
    return None if host is None else str(host)


def is_tracing() -> bool:
    """Whether Serve makes a span for each request in this process."""
    return bool(tracing_utils.is_tracing_enabled())


def teach_own_server(protocol_of: Callable[[ReplicaServer], type | None]) -> None:
    """Lets `protocol_of` choose the protocol class of this process's HTTP server.

    Call it in the deployment's constructor: Serve starts the server right after it. A None
    leaves the server as Serve made it.
    """
    # Serve 2.60 looks the function up in this module when it starts the server and makes the
    # uvicorn.Config inside. The server's task has not run when the function returns, and uvicorn
    # reads `config.http` only then.
    start = serve_replica.start_asgi_http_server

    async def start_and_teach(app: Any, http_options: Any, **more: Any) -> Any:
        task, server = await start(app, http_options, **more)
        protocol = protocol_of(_replica_server(app.__self__, http_options))
        if protocol is not None:
            server.config.http = protocol
            # HAProxy closes its idle connections first, so none is closed under a request.
            server.config.timeout_keep_alive = 3600
        return task, server

    serve_replica.start_asgi_http_server = start_and_teach


def _replica_server(replica: Any, http_options: Any) -> ReplicaServer:
    """`replica` is Serve's own object behind a replica: the ASGI app is a method of it."""
    metrics = replica._metrics_manager
    books = _Books(metrics, replica._deployment_id)
    logger = logging.getLogger("ray.serve")

    def count(change: int) -> None:
        metrics._num_ongoing_requests += change

    def log(path: str, status: int, took_s: float, request_id: str) -> None:
        extra = {**replica._access_log_context, "route": path, "request_id": request_id}
        logger.info("POST %s %s %.1fms", path, status, 1000 * took_s, extra=extra)

    prefix = replica._route_prefix or ""
    root = http_options.root_path or ""
    return ReplicaServer(
        prefix=root + ("" if prefix == "/" else prefix),
        host=http_options.host,
        request_timeout_s=http_options.request_timeout_s,
        has_middlewares=bool(http_options.middlewares),
        count=count,
        record=books.record,
        log=log,
    )


class _Books:
    """Serve's metrics of one replica, fed by the lane.

    What Serve does for one request costs more than the rest of the lane: a call into Ray's metrics
    for each latency. So of requests that succeeded one in `_stride` is told whole, and the others
    are counted and told together.
    """

    _EVERY_S = 0.5
    _WHOLE = 100  # in that time

    def __init__(self, metrics: Any, deployment: Any) -> None:
        self._metrics, self._deployment = metrics, deployment
        self._counted: Counter[str] = Counter()  # of no more than their path is known
        self._seen, self._stride = 0, 1
        self._is_due = False

    def record(self, path: str, status: int, took_s: float) -> None:
        """Tells Serve of one response, now or with others a moment later."""
        if status < 400:
            self._seen += 1
            if not self._is_due:
                self._is_due = True
                asyncio.get_running_loop().call_later(self._EVERY_S, self._tell)
            if self._seen % self._stride:
                self._counted[path] += 1
                return
        # The two calls that Serve's own request path makes for each request when it ends.
        failed = "RequestFailed" if status >= 500 else None
        self._metrics.record_request_metrics(
            route=path, latency_ms=1000 * took_s, is_error=failed is not None, exception_type=failed
        )
        if self._is_ingress:
            self._metrics.record_ingress_request_metrics(
                protocol=RequestProtocol.HTTP,
                deployment_name=self._deployment.name,
                latency_ms=1000 * took_s,
                is_error=status >= 400,
                **self._request(path, str(status)),
            )

    def _tell(self) -> None:
        self._is_due = False
        self._stride = max(1, self._seen // self._WHOLE)
        self._seen = 0
        for path, count in self._counted.items():
            self._metrics._request_counter.inc(count, tags={"route": path})
            if self._is_ingress:
                asked = self._request(path, "200")
                tags = RequestIngressMetrics.request_tags(
                    application=asked.pop("app_name"), **asked
                )
                ingress = self._metrics._ingress_metrics[RequestProtocol.HTTP]
                ingress.request_counter.inc(count, tags=tags)
        self._counted.clear()

    @property
    def _is_ingress(self) -> bool:
        return bool(self._metrics._should_emit_request_ingress_metrics(RequestProtocol.HTTP))

    def _request(self, path: str, status: str) -> dict[str, str]:
        name = self._deployment.app_name
        return {"route": path, "method": "POST", "app_name": name, "status_code": status}
