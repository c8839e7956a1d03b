"""`gs://` and `az://` through the same client: the same checkpoints, committed by one winner."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Iterator

import pytest
import torch

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.checkpoint.verify import verify
from rayburst.errors import CheckpointExistsError, ObjectExistsError, StoreError

from .clouds import Cloud

SECRET = base64.b64encode(b"hunter2hunter2").decode()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    made = Cloud()
    account = {"gcs_base_url": made.endpoint, "disable_oauth": True, "client_email": "a@b"}
    account |= {"private_key": SECRET, "private_key_id": "1"}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", SECRET)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", made.endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("uri", "condition"),
    [("gs://bucket/run", "x-goog-if-generation-match"), ("az://container/run", "If-None-Match")],
)
def test_checkpoints_live_on_it(cloud: Cloud, uri: str, condition: str) -> None:
    state = {"w": torch.arange(600_000) * 0.5, "n": {"x": [1, 2]}}
    with Checkpointer(uri) as checkpoints:
        for step in (1, 2, 3):
            state["w"][step] = -1.0
            checkpoints.save(state, step=step)
        assert cloud.seen == {condition}
        with pytest.raises(CheckpointExistsError):
            checkpoints.save(state, step=3)
        with pytest.raises(ObjectExistsError):
            checkpoints.store.put("manifests/000000000003.json", b"{}", if_absent=True)
        found = checkpoints.load()
        assert torch.equal(found.state["w"], state["w"])
        assert found.state["n"] == {"x": [1, 2]}
        done = checkpoints.collect(Retention(newest=1), grace_s=0)
        assert done.dropped_steps == (1, 2)
        assert verify(checkpoints.store, 3).whole
        tag = checkpoints.store.put("x", b"1")
        checkpoints.store.replace("x", b"2", tag)
        with pytest.raises(ObjectExistsError):
            checkpoints.store.replace("x", b"3", tag)
    assert any(path.endswith("run/manifests/000000000003.json") for path in cloud.objects)


@pytest.mark.parametrize("uri", ["gs://bucket/run", "az://container/run"])
def test_no_secret_of_it_is_told(cloud: Cloud, uri: str) -> None:
    cloud.refuse = True
    store = ObjectStore.open(uri, StoreOptions(retries=0))
    with pytest.raises(StoreError) as caught:
        store.get("key")
    told = "".join(traceback.format_exception(caught.value))
    assert f"{uri}/key: the store refused these credentials" in told
    assert SECRET not in told
