"""From a teacher to a student to a cascade: distilled by the job, published, loaded, asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from published_models import save_run, some_text

from rayburst.models import ModelRegistry, ModelVersion

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
    save_run(trained.store_uri, "taught", step=10, text=some_text(folder))
    teacher = models.publish("taught", name="taught")
    done = subprocess.run(
        [
            sys.executable, str(REPO / "jobs" / "distill_lm.py"), "--teacher", teacher.ref,
            *SHAPE, "--steps", "20", "--global-batch", "8", "--threads", "1",
            "--run", f"student-{folder.name}",
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
