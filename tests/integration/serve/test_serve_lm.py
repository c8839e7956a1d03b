"""The language model on a real Ray Serve: deployed by Ray's command, asked, hurt, replaced."""

from __future__ import annotations

import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import torch
import yaml
from generation_client import beside_each_other, leaves_in_the_middle, whole_texts
from ray.job_submission import JobSubmissionClient

from rayburst.errors import DeployError
from rayburst.fleet import processes
from rayburst.serve._ray_hooks import upload_local_folders
from rayburst.serve.decode import Generation, generate, score
from rayburst.serve.deploy import DeployStatus, delete, deploy, statuses

from .conftest import BIN, REPO, Head, Trained, run_cli

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def served(head: Head, tmp_path_factory: pytest.TempPathFactory) -> DeployStatus:
    """serve_apps/lm.yaml, sent by `serve deploy`, on a port of the tests' own."""
    config = yaml.safe_load((REPO / "serve_apps" / "lm.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"
    config["http_options"]["port"] = head.serve_port
    file = tmp_path_factory.mktemp("yaml") / "lm.yaml"
    file.write_text(yaml.safe_dump(config))
    run_cli(head, "serve", "deploy", str(file))
    return _until(lambda: _healthy(head, "lm"), "lm is healthy", timeout_s=150)


def _healthy(head: Head, name: str) -> DeployStatus | None:
    found = [s for s in statuses(head.dashboard_url, head.token) if s.name == name]
    assert not any(s.status == "DEPLOY_FAILED" for s in found), found
    return next((s for s in found if s.is_healthy), None)


def _until(probe: Any, what: str, *, timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def test_fifty_concurrent_requests_get_the_answers_each_gets_alone(
    served: DeployStatus, trained: Trained
) -> None:
    torch.set_num_threads(1)  # as the replica has it
    model = trained.model
    prompts = [f"def f{n}(x):" + " " * (n % 40) for n in range(25)]
    texts = ["import os\n" * (n + 1) for n in range(25)]
    session = requests.Session()

    def ask(n: int) -> tuple[Any, Any]:
        asked = {"prompt": prompts[n], "max_new_tokens": 5 + n, "seed": n, "top_k": 50}
        made = session.post(f"{served.url}generate", json=asked, timeout=60)
        rated = session.post(f"{served.url}score", json={"text": texts[n]}, timeout=60)
        assert (made.status_code, rated.status_code) == (200, 200), (made.text, rated.text)
        return made.json(), rated.json()

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(ask, range(25)))
    for n, (made, rated) in enumerate(answers):
        alone = Generation(
            prompt=prompts[n].encode(), max_new_tokens=5 + n, temperature=1.0, top_k=50, seed=n
        )
        assert made["text"] == generate(model, [alone])[0].decode(errors="replace")
        assert made["new_tokens"] == 5 + n
        assert made["model"] == rated["model"] == "demo@20"  # the newest checkpoint
        (own,) = score(model, [texts[n].encode()], rows_at_once=1)
        assert rated["bits_per_byte"] == pytest.approx(own.bits_per_byte, rel=1e-4)


def test_bad_bodies_get_a_422_with_one_that_works(served: DeployStatus) -> None:
    answer = requests.post(f"{served.url}generate", json={"prompt": "", "max_new": 3}, timeout=30)
    assert answer.status_code == 422
    fields = {problem["field"] for problem in answer.json()["detail"]}
    assert fields == {"prompt", "max_new"}
    again = requests.post(f"{served.url}generate", json=answer.json()["example"], timeout=60)
    assert again.status_code == 200


def test_health_model_and_openapi(served: DeployStatus, trained: Trained) -> None:
    assert requests.get(f"{served.url}healthz", timeout=30).json()["status"] == "ok"
    model = requests.get(f"{served.url}v1/model", timeout=30).json()
    assert (model["run"], model["step"], model["bits_per_byte"]) == ("demo", 20, 3.5)
    assert model["uri"] == trained.newer
    paths = requests.get(f"{served.url}openapi.json", timeout=30).json()["paths"]
    assert {"/generate", "/score", "/healthz", "/v1/model"} <= set(paths)
    assert "swagger" in requests.get(f"{served.url}docs", timeout=30).text.lower()


def test_serve_listens_on_loopback_only(served: DeployStatus, head: Head) -> None:
    listening = {
        connection.laddr.ip
        for process in processes.owned(head.folder)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == head.serve_port
    }
    assert listening == {"127.0.0.1"}


def test_no_line_is_logged_for_a_request(served: DeployStatus, head: Head) -> None:
    assert requests.get(f"{served.url}v1/model", timeout=30).status_code == 200
    logs = list(head.ray_folder.glob("session_latest/logs/serve/*.log"))
    assert {log.name.split("_")[0] for log in logs} >= {"proxy", "replica"}
    assert not [log.name for log in logs if "GET /v1/model" in log.read_text()]


def test_a_killed_replica_is_replaced(served: DeployStatus, head: Head) -> None:
    killed = _replica_pid(head)
    assert killed in {process.pid for process in processes.owned(head.folder)}
    psutil.Process(killed).kill()

    def answered() -> requests.Response | None:
        try:
            answer = requests.post(f"{served.url}score", json={"text": "abc"}, timeout=30)
        except requests.Timeout:
            return None  # the request waits for the replica that is starting
        assert answer.status_code in (200, 500, 503), answer.text
        return answer if answer.status_code == 200 and _replica_pid(head) != killed else None

    answer = _until(answered, "a new replica answers", timeout_s=180)
    assert answer.json()["model"] == "demo@20"


def _replica_pid(head: Head) -> int | None:
    (deployment,) = head.details()["applications"]["lm"]["deployments"].values()
    running = [r["pid"] for r in deployment["replicas"] if r["state"] == "RUNNING"]
    return running[0] if running else None


_SHIPPED = """
from rayburst.serve.lm import LMArgs, build

def app(args: LMArgs):
    return build(args)
"""


def test_an_uploaded_application_joins_and_leaves_without_touching_the_first(
    served: DeployStatus, head: Head, trained: Trained, tmp_path: Path
) -> None:
    before = _until(lambda: _replica_pid(head), "a running replica", timeout_s=90)
    (tmp_path / "shipped_app.py").write_text(_SHIPPED)
    client = JobSubmissionClient(
        head.dashboard_url, headers={"Authorization": f"Bearer {head.token}"}
    )
    local = {"working_dir": str(tmp_path), "excludes": ["*.pyc"]}
    uploaded = upload_local_folders(client, local)
    assert uploaded["working_dir"].startswith("gcs://")
    assert local == {"working_dir": str(tmp_path), "excludes": ["*.pyc"]}
    second = {
        "name": "older",
        "route_prefix": "/older",
        "import_path": "shipped_app:app",
        "args": {"checkpoint": trained.older},
        "runtime_env": uploaded,
    }
    status = deploy(head.dashboard_url, head.token, app=second, timeout_s=120)
    assert status.url == f"http://127.0.0.1:{head.serve_port}/older"
    body = {"prompt": "a", "max_new_tokens": 2}
    older = requests.post(f"{status.url}/generate", json=body, timeout=60)
    assert older.json()["model"] == "demo@10"
    first = requests.post(f"{served.url}generate", json=body, timeout=60)
    assert first.json()["model"] == "demo@20"

    delete(head.dashboard_url, head.token, name="older")
    assert [s.name for s in statuses(head.dashboard_url, head.token)] == ["lm"]
    assert _replica_pid(head) == before


def test_generated_text_streams_and_ends_with_its_client_by_serves_own_proxy_too(
    served: DeployStatus, head: Head, trained: Trained
) -> None:
    app = {
        "name": "llm",
        "route_prefix": "/llm",
        "import_path": "serve_apps.llm:app",
        "args": {"checkpoint": trained.newer, "name": "demo", "cpus": 0.1},
    }
    url = deploy(head.dashboard_url, head.token, app=app, timeout_s=120).url
    assert [beside_each_other(url, n) for n in range(4)] == whole_texts(trained.model, 4)
    for stream in (True, False):
        leaves_in_the_middle(url, stream=stream)
    delete(head.dashboard_url, head.token, name="llm")


def test_what_cannot_be_served_fails_with_the_reason_and_leaves_the_rest(
    served: DeployStatus, head: Head
) -> None:
    broken = {
        "name": "broken",
        "route_prefix": "/b",
        "import_path": "serve_apps.lm:app",
        "args": {"checkpoint": "file:///nowhere/runs/x"},
    }
    with pytest.raises(DeployError, match="CheckpointError: no whole checkpoint"):
        deploy(head.dashboard_url, head.token, app=broken, timeout_s=150)
    assert requests.get(f"{served.url}healthz", timeout=30).status_code == 200
    delete(head.dashboard_url, head.token, name="broken")


def test_without_the_token_nothing_is_deployed(served: DeployStatus, head: Head) -> None:
    with pytest.raises(DeployError, match="wants its token"):
        deploy(head.dashboard_url, None, app={"import_path": "serve_apps.lm:app"})
    with pytest.raises(DeployError, match=r"refused|wants its token"):
        deploy(head.dashboard_url, "wrong", app={"import_path": "serve_apps.lm:app"})


def test_serve_run_serves_until_it_is_interrupted(
    served: DeployStatus, head: Head, tmp_path: Path
) -> None:
    """The last test of all: the interrupt ends Serve with every application, as Ray has it."""
    words = ("run", "--name", "run", "--route-prefix", "/run", "serve_apps.lm:app")
    with (tmp_path / "out").open("w") as out:
        command = [str(BIN / "serve"), *words]
        run = subprocess.Popen(command, env=head.env, cwd=REPO, stdout=out, stderr=out)
    try:
        status = _until(lambda: _healthy(head, "run"), "run is healthy", timeout_s=90)
        body = {"prompt": "a", "max_new_tokens": 2}
        answer = requests.post(f"{status.url}/generate", json=body, timeout=60)
        assert answer.json()["model"] == "demo@20"
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(timeout=60)
    _until(lambda: not statuses(head.dashboard_url, head.token), "Serve is gone", timeout_s=60)
