"""Deploying over Serve's REST API, against a scripted head."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from rayburst.errors import DeployError
from rayburst.serve.deploy import delete, deploy, merged, statuses

URL = "http://127.0.0.1:8265"
HTTP = {"host": "127.0.0.1", "port": 8123}
APP = {"name": "lm", "import_path": "serve_apps.lm:app", "route_prefix": "/"}


def _app(
    status: str, *, at: float = 1.0, config: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    healthy = "HEALTHY" if status == "RUNNING" else "UPDATING"
    return {
        "status": status,
        "message": "",
        "route_prefix": "/",
        "last_deployed_time_s": at,
        "deployed_app_config": config,
        "deployments": {"LanguageModel": {"status": healthy, "message": ""}},
        **more,
    }


def _details(**apps: dict[str, Any]) -> dict[str, Any]:
    return {"applications": apps, "http_options": HTTP, "proxy_location": "HeadOnly"}


class Head(requests.Session):
    """Answers each GET with the next state, the last one for ever; keeps what was PUT."""

    def __init__(
        self,
        *states: dict[str, Any] | int | Exception,
        put: tuple[int, str] = (200, ""),
        faults: int = 0,
    ):
        super().__init__()
        self.states = list(states)
        self.put_answer = put
        self.faults = faults
        self.puts: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []

    def request(self, method: str, url: str, **kw: Any) -> requests.Response:  # type: ignore[override]
        assert url == URL + "/api/serve/applications/"
        assert kw["timeout"] > 0
        self.headers_seen.append(kw["headers"])
        answer = requests.Response()
        if method == "PUT":
            self.puts.append(kw["json"])
            answer.status_code, text = self.put_answer
            if self.faults:
                self.faults -= 1
                answer.status_code, text = 500, "the proxy died"
            answer._content = text.encode()
            return answer
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        answer.status_code = state if isinstance(state, int) else 200
        answer._content = json.dumps(state).encode()
        return answer


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def timed() -> dict[str, Callable[..., Any]]:
    clock = Clock()
    return {"clock": clock, "sleep": clock.sleep}


def test_first_deploy_waits_until_healthy(timed: Any) -> None:
    running = _app("RUNNING", at=9)
    half = _app("RUNNING", at=9, deployments={"LanguageModel": {"status": "UPDATING"}})
    head = Head(
        {"applications": {}}, _details(lm=_app("DEPLOYING", at=9)), _details(lm=half),
        _details(lm=running),
    )  # fmt: skip
    status = deploy(URL + "/", "secret", app=APP, http=HTTP, session=head, **timed)
    assert status.is_healthy
    assert status.url == "http://127.0.0.1:8123/"
    assert timed["clock"].now == 1.0  # two polls that were not yet it
    assert head.puts == [
        {
            "applications": [APP],
            "http_options": HTTP,
            "proxy_location": "HeadOnly",
            "logging_config": {"enable_access_log": False},
        }
    ]
    assert all(h == {"Authorization": "Bearer secret"} for h in head.headers_seen)


def test_without_options_serve_stays_on_loopback(timed: Any) -> None:
    head = Head({"applications": {}}, _details(lm=_app("RUNNING", at=9)))
    deploy(URL, None, app=APP, session=head, **timed)
    assert head.puts[0]["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert head.headers_seen[0] == {}


def test_the_health_of_the_replaced_application_does_not_count(timed: Any) -> None:
    old = _details(lm=_app("RUNNING", at=5, config=APP))
    new = _details(lm=_app("RUNNING", at=6, config=APP))
    head = Head(old, old, old, new)
    assert deploy(URL, None, app=APP, session=head, **timed).deployed_s == 6
    assert timed["clock"].now == 1.0


def test_failure_carries_the_words_of_serve(timed: Any) -> None:
    failed = _app("DEPLOY_FAILED", at=9, message="ModuleNotFoundError: no module named 'lmm'")
    head = Head({"applications": {}}, _details(lm=failed))
    with pytest.raises(DeployError, match=r"'lm' failed to deploy.*no module named 'lmm'"):
        deploy(URL, None, app=APP, session=head, **timed)


def test_time_out_says_what_is_missing(timed: Any) -> None:
    waiting = _app("DEPLOYING", at=9)
    waiting["deployments"]["LanguageModel"]["message"] = "cannot be scheduled: needs 64 CPUs"
    head = Head({"applications": {}}, _details(lm=waiting))
    with pytest.raises(DeployError, match=r"after 3 s: DEPLOYING: .*needs 64 CPUs"):
        deploy(URL, None, app=APP, timeout_s=3, session=head, **timed)


def test_a_head_that_hesitates_is_waited_for(timed: Any) -> None:
    head = Head(
        {"applications": {}}, requests.ConnectionError(), 503, _details(lm=_app("RUNNING", at=9))
    )
    assert deploy(URL, None, app=APP, session=head, **timed).is_healthy


def test_other_applications_are_put_again_as_they_were(timed: Any) -> None:
    other = {"name": "other", "import_path": "a.b:c", "args": {"x": 1}, "route_prefix": "/other"}
    before = _details(
        other=_app("RUNNING", config=other),
        lm=_app("RUNNING", config={**APP, "args": {"old": True}}),
        by_hand=_app("RUNNING", config=None),
    )
    before["target_capacity"] = 50.0
    after = _details(lm=_app("RUNNING", at=9))
    head = Head(before, after)
    deploy(URL, None, app=APP, session=head, **timed)
    assert head.puts[0]["applications"] == [other, APP]
    assert head.puts[0]["target_capacity"] == 50.0
    assert head.puts[0]["http_options"] == HTTP
    assert "logging_config" not in head.puts[0]  # it would change the other applications


def test_hidden_secrets_are_never_put_back() -> None:
    other = {"name": "other", "runtime_env": {"env_vars": {"KEY": "<redacted>"}}}
    with pytest.raises(DeployError, match="RAY_DASHBOARD_REDACT_RUNTIME_ENV=0"):
        merged(_details(other=_app("RUNNING", config=other)), APP, None)


def test_a_listener_cannot_move_while_serve_runs() -> None:
    with pytest.raises(DeployError, match=r"listens on 127.0.0.1:8123 and cannot change to port"):
        merged(_details(), APP, {"port": 9000})
    assert merged(_details(), APP, {"port": 8123})["http_options"] == HTTP


def test_serve_refusing_is_quoted(timed: Any) -> None:
    head = Head({"applications": {}}, put=(400, "import_path: Got invalid import path"))
    with pytest.raises(DeployError, match=r"refused \(400\): import_path: Got invalid"):
        deploy(URL, None, app=APP, session=head, **timed)


def test_a_head_too_busy_to_start_serve_is_asked_again(timed: Any) -> None:
    head = Head({"applications": {}}, _details(lm=_app("RUNNING", at=9)), faults=3)
    assert deploy(URL, None, app=APP, session=head, **timed).is_healthy
    assert head.faults == 0
    assert len(head.puts) == 4
    head = Head({"applications": {}}, faults=999)
    with pytest.raises(DeployError, match=r"refused \(500\): the proxy died"):
        deploy(URL, None, app=APP, timeout_s=5, session=head, **timed)
    assert len(head.puts) == 11


def test_a_missing_token_says_where_to_get_it(timed: Any) -> None:
    with pytest.raises(DeployError, match="rayburst env NAME"):
        deploy(URL, None, app=APP, session=Head(401), **timed)


def test_no_head_is_a_clear_error_without_the_token(timed: Any) -> None:
    head = Head(requests.ConnectionError("Bearer secret"))
    with pytest.raises(DeployError, match="does not answer") as caught:
        deploy(URL, "secret", app=APP, session=head, **timed)
    assert "secret" not in str(caught.value)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(DeployError, match="'localhost:8265' is not the address"):
        statuses("localhost:8265", None)


def test_delete_takes_one_away_and_waits(timed: Any) -> None:
    other = {"name": "other", "import_path": "a.b:c"}
    both = _details(other=_app("RUNNING", config=other), lm=_app("RUNNING", config=APP))
    going = _details(other=_app("RUNNING", config=other), lm=_app("DELETING", config=APP))
    head = Head(both, going, 503, _details(other=_app("RUNNING", config=other)))
    delete(URL, None, name="lm", session=head, **timed)
    assert [a["name"] for a in head.puts[0]["applications"]] == ["other"]
    assert timed["clock"].now == 1.0


def test_delete_of_none_lists_what_there_is(timed: Any) -> None:
    head = Head(_details(other=_app("RUNNING", config={"name": "other"})))
    with pytest.raises(DeployError, match=r"no application 'lm' is deployed; there are: other"):
        delete(URL, None, name="lm", session=head, **timed)
    assert head.puts == []


def test_delete_of_a_foreground_run_points_to_it(timed: Any) -> None:
    with pytest.raises(DeployError, match="started by `serve run`"):
        delete(URL, None, name="lm", session=Head(_details(lm=_app("RUNNING"))), **timed)


def test_statuses_lists_all() -> None:
    found = statuses(URL, None, session=Head(_details(b=_app("DEPLOYING"), a=_app("RUNNING"))))
    assert [(s.name, s.is_healthy) for s in found] == [("a", True), ("b", False)]
