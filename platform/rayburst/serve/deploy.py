"""Deploys Serve applications over Ray's REST API and waits until they are healthy.

    status = deploy("http://127.0.0.1:8265", token, app={"name": "lm", "import_path": "..."})
    delete("http://127.0.0.1:8265", token, name="lm")

Serve's API is declarative: a PUT replaces all applications. So others that run are read first
and put again as they were. Folders in a runtime environment must be uploaded by the caller;
this module only talks HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from rayburst.errors import DeployError

__all__ = ["DeployStatus", "delete", "deploy", "statuses"]

_PATH = "/api/serve/applications/"
_POLL_S = 0.5
_CALL_S = 120.0  # the first PUT starts Serve's controller and proxy
_REDACTED = "<redacted>"  # Ray writes this for secrets when it takes us for a browser
_HTTP = {"host": "127.0.0.1", "port": 8000}  # never off loopback unless told
_SERVICER = "rayburst.serve.model_pb2_grpc.add_ModelServicer_to_server"
_OTHER_LISTENERS = ("0.0.0.0", "::")

Details = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployStatus:
    """An application as Serve reports it. `url` is where the head answers for it."""

    name: str
    status: str
    message: str
    url: str
    deployments: Mapping[str, str]
    deployed_s: float

    @property
    def is_healthy(self) -> bool:
        """Running, and each of its deployments healthy."""
        return self.status == "RUNNING" and all(s == "HEALTHY" for s in self.deployments.values())


def deploy(
    dashboard_url: str,
    token: str | None,
    *,
    app: Mapping[str, Any],
    http: Mapping[str, Any] | None = None,
    grpc_port: int | None = None,
    timeout_s: float = 180.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    session: requests.Session | None = None,
) -> DeployStatus:
    """Adds or replaces one application and waits until it is healthy.

    `app` is an entry of `applications` in a Serve config; without a name it is "default".
    `http` are Serve's HTTP options; None keeps those that are in force, or 127.0.0.1:8000.
    `grpc_port` has Serve answer rayburst's model.proto there, where this call starts Serve.

    DeployError with Serve's own message when the application fails, when Serve refuses it,
    when it is not healthy after `timeout_s`, or when `http` differs from what is in force.
    """
    api = _Api(dashboard_url, token, session or requests.Session())
    app = {"name": "default", **app}
    give_up = clock() + timeout_s
    before = api.read()
    while not api.put(merged(before, app, http, grpc_port=grpc_port), may_fail=clock() < give_up):
        sleep(_POLL_S)  # a busy head may fail to start Serve; the same PUT again does no harm
    known = _deployed_s(before, app["name"])
    while True:
        status = _status(api.try_read(), app["name"])
        if status is not None and status.deployed_s > known:
            if status.is_healthy:
                return status
            if status.status == "DEPLOY_FAILED":
                raise DeployError(f"application {status.name!r} failed to deploy: {_why(status)}")
        if clock() >= give_up:
            raise DeployError(
                f"application {app['name']!r} is not healthy after {timeout_s:g} s: "
                f"{_why(status)}. It goes on deploying: `serve status` shows it"
            )
        sleep(_POLL_S)


def delete(
    dashboard_url: str,
    token: str | None,
    *,
    name: str,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    session: requests.Session | None = None,
) -> None:
    """Takes one application away and waits until it is gone; the others stay.

    DeployError when there is none of that name, or it is still there after `timeout_s`.
    """
    api = _Api(dashboard_url, token, session or requests.Session())
    details = api.read()
    if name not in details.get("applications", {}):
        known = ", ".join(sorted(details.get("applications", {}))) or "none"
        raise DeployError(f"no application {name!r} is deployed; there are: {known}")
    if not details["applications"][name].get("deployed_app_config"):
        raise DeployError(
            f"application {name!r} was started by `serve run`, not deployed: end that command, "
            f"or call serve.delete({name!r}) in Python"
        )
    api.put(merged(details, None, None, without=name))
    give_up = clock() + timeout_s
    while name in api.try_read().get("applications", {name: None}):
        if clock() >= give_up:
            raise DeployError(f"application {name!r} is still there after {timeout_s:g} s")
        sleep(_POLL_S)


def statuses(
    dashboard_url: str, token: str | None, *, session: requests.Session | None = None
) -> list[DeployStatus]:
    """All applications, by name."""
    details = _Api(dashboard_url, token, session or requests.Session()).read()
    found = [_status(details, name) for name in sorted(details.get("applications", {}))]
    return [status for status in found if status is not None]


def merged(
    details: Details,
    app: Mapping[str, Any] | None,
    http: Mapping[str, Any] | None,
    *,
    without: str | None = None,
    grpc_port: int | None = None,
) -> dict[str, Any]:
    """The config to PUT: what runs as it runs, less `without`, with `app` added or replaced.

    Applications started by `serve.run` are not part of the declarative config; Serve leaves
    them alone, and so does this.
    """
    replaced = {without} | ({app["name"]} if app else set())
    kept = [
        running["deployed_app_config"]
        for name, running in details.get("applications", {}).items()
        if name not in replaced and running.get("deployed_app_config")
    ]
    if _REDACTED in _strings(kept):
        raise DeployError(
            "Serve hides the environment variables of applications that run, so putting them "
            "back would overwrite them: start the head with RAY_DASHBOARD_REDACT_RUNTIME_ENV=0"
        )
    config: dict[str, Any] = {"applications": kept + ([dict(app)] if app else [])}
    config["http_options"] = _http_options(details, http)
    grpc = details.get("grpc_options")
    if not grpc and grpc_port is not None:
        grpc = {"port": grpc_port, "grpc_servicer_functions": [_SERVICER]}
    if grpc:
        config["grpc_options"] = dict(grpc)
    config["proxy_location"] = details.get("proxy_location") or "HeadOnly"
    if not details.get("http_options"):
        # This PUT starts Serve. A line for each request costs more than a small model does.
        config["logging_config"] = {"enable_access_log": False}
    if details.get("target_capacity") is not None:
        config["target_capacity"] = details["target_capacity"]
    return config


def _http_options(details: Details, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Serve cannot change its listener once it runs, and says nothing when asked to."""
    in_force = details.get("http_options")
    if not in_force:
        return {**_HTTP, **(wanted or {})}
    for key in ("host", "port"):
        if wanted and key in wanted and wanted[key] != in_force.get(key, wanted[key]):
            raise DeployError(
                f"Serve already listens on {in_force.get('host')}:{in_force.get('port')} and "
                f"cannot change to {key} {wanted[key]!r} while it runs: leave http out, or "
                f"`serve shutdown` first"
            )
    return dict(in_force)


def _strings(value: Any) -> set[str]:
    """Every string within nested lists and dicts."""
    if isinstance(value, str):
        return {value}
    held = value.values() if isinstance(value, Mapping) else value
    if isinstance(held, str | int | float | bool) or held is None:
        return set()
    return {text for item in held for text in _strings(item)}


def _status(details: Details, name: str) -> DeployStatus | None:
    running = details.get("applications", {}).get(name)
    if running is None:
        return None
    options = details.get("http_options") or _HTTP
    host = "127.0.0.1" if options.get("host") in _OTHER_LISTENERS else options.get("host")
    deployments = running.get("deployments") or {}
    return DeployStatus(
        name=name,
        status=str(running["status"]),
        message=_messages(running, deployments),
        url=f"http://{host}:{options.get('port')}{running.get('route_prefix') or '/'}",
        deployments={key: str(value["status"]) for key, value in deployments.items()},
        deployed_s=float(running.get("last_deployed_time_s") or 0.0),
    )


def _messages(running: Details, deployments: Mapping[str, Any]) -> str:
    """What Serve says about the application and about each deployment, once each."""
    said = [running.get("message"), *(d.get("message") for d in deployments.values())]
    return "\n".join(dict.fromkeys(text.strip() for text in said if text and text.strip()))


def _deployed_s(details: Details, name: str) -> float:
    status = _status(details, name)
    return 0.0 if status is None else status.deployed_s


def _why(status: DeployStatus | None) -> str:
    if status is None:
        return "Serve does not list it, or the head does not answer"
    return f"{status.status}: {status.message or 'Serve gives no reason'}"


class _Api:
    """The calls of Serve's REST API that are used here."""

    def __init__(self, dashboard_url: str, token: str | None, session: requests.Session) -> None:
        parts = urlsplit(dashboard_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise DeployError(
                f"{dashboard_url!r} is not the address of a Ray dashboard: "
                f"give one like http://127.0.0.1:8265"
            )
        self._url = dashboard_url.rstrip("/") + _PATH
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session

    def read(self) -> dict[str, Any]:
        """Serve's state, empty where Serve does not run yet."""
        details: dict[str, Any] = self._call("GET").json()
        return details

    def try_read(self) -> dict[str, Any]:
        """Serve's state; empty while the head does not answer or is too busy to."""
        try:
            answer = self._send("GET", None)
            details: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        except requests.RequestException:
            return {}
        return details

    def put(self, config: Mapping[str, Any], *, may_fail: bool = False) -> bool:
        """Replaces all declared applications. False for a fault of the head, if one `may_fail`."""
        return self._call("PUT", config, may_fail=may_fail).status_code == 200

    def _call(
        self, method: str, body: Mapping[str, Any] | None = None, *, may_fail: bool = False
    ) -> requests.Response:
        try:
            answer = self._send(method, body)
        except requests.RequestException as error:
            raise DeployError(
                f"the Ray dashboard at {self._url} does not answer ({type(error).__name__}): "
                f"is the fleet up? `rayburst status` says"
            ) from error
        if answer.status_code == 401:
            raise DeployError(
                f'the Ray dashboard at {self._url} wants its token: eval "$(rayburst env NAME)" '
                f"or pass token="
            )
        if answer.status_code != 200 and not (may_fail and answer.status_code >= 500):
            raise DeployError(f"Serve refused ({answer.status_code}): {answer.text.strip()}")
        return answer

    def _send(self, method: str, body: Mapping[str, Any] | None) -> requests.Response:
        return self._session.request(
            method, self._url, json=body, headers=self._headers, timeout=_CALL_S
        )
