"""A published version on a real Ray Serve: it answers, says what it is, moves with its alias."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from rayburst.errors import DeployError
from rayburst.models import ModelRegistry
from rayburst.serve.deploy import DeployStatus, delete, deploy

from .conftest import Head, Trained

pytestmark = pytest.mark.timeout(240)
ASKED = {"prompt": "a", "max_new_tokens": 2, "temperature": 0}


def put(head: Head, **args: object) -> DeployStatus:
    app = {
        "name": "versioned",
        "route_prefix": "/versioned",
        "import_path": "rayburst.serve.lm_app:app",
        "args": {"cpus": 0.5, **args},
    }
    http = {"host": "127.0.0.1", "port": head.serve_port}
    return deploy(head.dashboard_url, head.token, app=app, http=http, timeout_s=150)


def test_a_version_answers_by_its_alias_and_a_damaged_one_takes_nothing_down(
    head: Head, trained: Trained
) -> None:
    models = ModelRegistry.open(trained.store_uri)
    older = models.publish(trained.older, name="gpt")
    newer = models.publish(trained.newer, name="gpt")
    models.promote(newer.ref)
    models.promote(older.ref)
    status = put(head, version="gpt")
    first = requests.post(f"{status.url}/generate", json=ASKED, timeout=60)
    assert first.headers["x-rayburst-model"] == first.json()["model"] == older.ref
    assert first.headers["x-rayburst-variant"] == "fp32"
    told = requests.get(f"{status.url}/v1/model", timeout=30).json()
    assert (told["uri"], told["step"]) == (trained.older, 10)  # from the answer to the checkpoint
    assert told["data"]["position"] == {"step": 10, "samples": 0}  # and to the data

    models.rollback("gpt", why="the test wants the newer one back")
    status = put(head, version=models.get("gpt").ref)  # as p.deploy does: Serve compares words
    again = requests.post(f"{status.url}/generate", json=ASKED, timeout=60)
    assert again.headers["x-rayburst-model"] == newer.ref

    root = Path(urlsplit(trained.store_uri).path) / "models"
    bad = models.publish(trained.newer, name="damaged")
    (root / "damaged" / next(iter(bad.files))).write_bytes(b"other bytes")
    with pytest.raises(DeployError, match="holds other bytes than were published"):
        deploy(
            head.dashboard_url,
            head.token,
            app={
                "name": "damaged",
                "route_prefix": "/damaged",
                "import_path": "serve_apps.lm:app",
                "args": {"version": bad.ref, "cpus": 0.5},
            },
            timeout_s=150,
        )
    still = requests.post(f"{status.url}/generate", json=ASKED, timeout=60)
    assert still.json() == again.json() | {"seed": still.json()["seed"]}
    delete(head.dashboard_url, head.token, name="damaged")
    delete(head.dashboard_url, head.token, name="versioned")
    models.folder("damaged").delete("versions/000000000001.json")  # the next run publishes it anew
