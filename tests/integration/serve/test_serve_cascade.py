"""From a teacher to a student to a cascade: distilled by the job, published, loaded, asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from published_models import save_run, some_text

from rayburst.models import ModelRegistry, ModelVersion
from rayburst.serve.decode import likeliest
from rayburst.serve.deploy import delete, deploy
from rayburst.train.gpt import GPT

from .conftest import REPO, Head, Trained

pytestmark = pytest.mark.timeout(240)
SHAPE = ["--layers", "1", "--heads", "1", "--width", "16"]


@pytest.fixture(scope="module")
def distilled(
    head: Head, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> ModelVersion:
    """A version with a student that `jobs/distill_lm.py` made in 20 steps on the head."""
    folder = tmp_path_factory.mktemp("distilled")
    models = ModelRegistry.open(trained.store_uri)
    # elsewhere: others serve the newest run of the store
    taught = save_run(f"file://{folder}", "taught", step=10, text=some_text(folder))
    teacher = models.publish(taught, name="taught")
    done = subprocess.run(
        [
            sys.executable, str(REPO / "jobs" / "distill_lm.py"), "--teacher", teacher.ref,
            *SHAPE, "--steps", "20", "--global-batch", "8", "--threads", "1",
            "--run", f"student-{folder.name}", "--storage", f"file://{folder}/runs",
        ],
        env={**os.environ, **head.env, "RAYBURST_STORE": trained.store_uri},
        cwd=REPO, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["steps"] == 20 and 0 < result["agreement"] <= 1
    assert list(result["variants"]) == ["fp32", "student"]
    return models.get(result["version"])


def test_the_job_distils_a_student_that_loads_beside_its_teacher(
    distilled: ModelVersion, trained: Trained
) -> None:
    models = ModelRegistry.open(trained.store_uri)
    student = distilled.variant("student")
    assert student.checkpoint is not None and student.checkpoint.step == 20
    assert student.measured is not None and student.measured.escalation
    small, _ = models.load(distilled.ref, "student")
    large, _ = models.load(distilled.ref)
    assert small.parameter_count < large.parameter_count
    assert Path(student.checkpoint.uri.partition("@")[0]).name.startswith("student-")


@pytest.fixture
def cleared(head: Head) -> Iterator[None]:
    """The head has room for others afterwards."""
    yield
    if "cascade" in head.details()["applications"]:
        delete(head.dashboard_url, head.token, name="cascade")


@pytest.mark.usefixtures("cleared")
def test_a_cascade_answers_escalates_and_outlives_its_teacher(
    distilled: ModelVersion, head: Head, trained: Trained
) -> None:
    models = ModelRegistry.open(trained.store_uri)
    (student, _), (teacher, _) = models.load(distilled.ref, "student"), models.load(distilled.ref)
    texts = sorted((f"def f{n}(x)" * (n + 1) for n in range(8)), key=lambda t: top(student, t)[1])
    least, most = texts[0], texts[-1]
    between = (top(student, least)[1] + top(student, most)[1]) / 2
    status = deploy(
        head.dashboard_url,
        head.token,
        app={
            "name": "cascade",
            "route_prefix": "/cascade",
            "import_path": "serve_apps.cascade:app",
            "args": {
                "version": distilled.ref, "threshold": between, "cpus": 0.5, "slo_ms": 20_000,
            },
        },
        http={"host": "127.0.0.1", "port": head.serve_port},
        timeout_s=150,
    )  # fmt: skip

    def ask(text: str, **headers: str) -> requests.Response:
        return requests.post(f"{status.url}/predict", json=text, headers=headers, timeout=60)

    sure, unsure = ask(most), ask(least)
    assert told(sure) == ("student", "sure")
    assert sure.json()["bytes"][0] == top(student, most)[0]
    assert told(unsure) == ("teacher", "escalated")
    assert unsure.json()["bytes"][0] == top(teacher, least)[0]
    assert float(unsure.headers["x-rayburst-confidence"]) < between
    refused = ask("")
    assert refused.status_code == 422 and "the text is empty" in refused.json()["error"]
    assert ask(most, **{"x-rayburst-deadline-ms": "soon"}).status_code == 422

    deployment = head.details()["applications"]["cascade"]["deployments"]["Teacher"]
    os.kill(deployment["replicas"][0]["pid"], signal.SIGKILL)
    alone = ask(least, **{"x-rayburst-deadline-ms": "3000"})
    assert alone.status_code == 200
    assert alone.headers["x-rayburst-answered-by"] == "student"
    assert alone.headers["x-rayburst-cascade"] in ("teacher-gone", "teacher-late")
    assert alone.json()["bytes"][0] == top(student, least)[0]
    give_up = time.monotonic() + 120  # Serve starts another teacher
    while told(ask(least, **{"x-rayburst-deadline-ms": "5000"})) != ("teacher", "escalated"):
        assert time.monotonic() < give_up
        time.sleep(0.5)
    counts = requests.get(f"{status.url}/cascade", timeout=30).json()["answers"]
    assert counts["sure"] >= 1 and counts["escalated"] >= 2
    assert counts.get("teacher-gone", 0) + counts.get("teacher-late", 0) >= 1
    page = requests.get(f"{status.url}/metrics", timeout=30).text
    assert 'rayburst_cascade_answers_total{by="teacher",why="escalated"}' in page


def top(model: GPT, text: str) -> tuple[int, float]:
    return likeliest(model, [text.encode()], 1)[0][0]


def told(answer: requests.Response) -> tuple[str, str]:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-rayburst-answered-by"], answer.headers["x-rayburst-cascade"]
