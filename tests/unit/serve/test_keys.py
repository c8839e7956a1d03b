"""API keys: who may ask, how long, and that no secret is kept."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import KeyRefusedError, RayburstError, StoreError
from rayburst.serve.keys import KeyGate, KeyRing, KeyStore
from rayburst.serve.keys_cli import app


@pytest.fixture
def keys(tmp_path):
    return KeyStore(ObjectStore.open(str(tmp_path)))


def test_a_key_lets_its_tenant_ask_its_models_until_it_ends(keys):
    _, secret = keys.create("ads", models=("A",), now_s=0, expires_s=100)
    ring = KeyRing(keys.all())
    assert ring.tenant(secret, model="A", now_s=50) == "ads"
    for model, now_s, given, status in [
        ("B", 50, secret, 403),
        ("A", 100, secret, 401),
        ("A", 50, secret[:-1], 401),
        ("A", 50, "", 401),
    ]:
        with pytest.raises(KeyRefusedError) as refused:
            ring.tenant(given, model=model, now_s=now_s)
        assert refused.value.status == status
        assert secret not in str(refused.value)


def test_the_store_never_sees_a_secret(keys, tmp_path):
    key, secret = keys.create("ads", now_s=0)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key.id.encode() in stored
    assert secret.encode() not in stored
    assert secret.rsplit("_", 1)[-1].encode() not in stored


def test_rotation_overlaps_and_revocation_does_not(keys):
    old, secret = keys.create("ads", models=("A",), now_s=0)
    new, fresh = keys.rotate(old.id, now_s=100, overlap_s=60)
    ring = KeyRing(keys.all())
    assert ring.tenant(secret, model="A", now_s=159) == "ads"
    assert ring.tenant(fresh, model="A", now_s=159) == "ads"
    with pytest.raises(KeyRefusedError):
        ring.tenant(secret, model="A", now_s=160)
    keys.revoke(new.id)
    with pytest.raises(KeyRefusedError):
        KeyRing(keys.all()).tenant(fresh, model="A", now_s=159)
    with pytest.raises(RayburstError, match=old.id):
        keys.revoke("0" * 12)


def test_an_object_that_is_no_key_is_an_error(keys, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(StoreError, match=r"x\.json is no key"):
        keys.all()


def test_the_gate_reads_both_headers(keys):
    _, secret = keys.create("ads", now_s=0)
    gate = KeyGate(keys, model="A", clock=lambda: 1.0)
    try:
        for headers in (
            {b"authorization": b"Bearer " + secret.encode()},
            {b"authorization": b"bearer  " + secret.encode()},
            {b"x-api-key": secret.encode()},
        ):
            assert gate.tenant(headers, 0.0) == "ads"
        for headers in ({}, {b"authorization": b"Basic abc"}, {b"x-api-key": b"\xff\xfe"}):
            with pytest.raises(KeyRefusedError):
                gate.tenant(headers, 0.0)
    finally:
        gate.close()


def test_the_command_line_makes_lists_rotates_and_revokes(tmp_path):
    def run(*words):
        done = CliRunner().invoke(
            app, [*words, "--store", str(tmp_path)], env={"COLUMNS": "200", "NO_COLOR": "1"}
        )
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    made = run("create", "ads", "--model", "A", "--days", "1")
    secret = made.split()[-1]
    name = secret.split("_")[1]
    listed = run("ls")
    assert name in listed
    assert "works until" in listed
    assert secret not in listed
    fresh = run("rotate", name, "--overlap", "0").split()[-1]
    assert "ended" in run("ls")
    run("revoke", fresh.split("_")[1])
    assert "revoked" in run("ls")
