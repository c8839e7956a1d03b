"""Files of a fleet: whole or not at all."""

from __future__ import annotations

import stat

import pytest

from rayburst.errors import FleetBrokenError, FleetNotFoundError
from rayburst.fleet.files import create_once, read_json, write_atomically
from rayburst.fleet.layout import FleetDir, FleetState


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    write_atomically(file, '{"a": 1}', private=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, '{"a": 2}')
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_the_first_fact_stands(tmp_path):
    assert create_once(tmp_path / "gone.json", "first")
    assert not create_once(tmp_path / "gone.json", "second")
    assert (tmp_path / "gone.json").read_text() == "first"


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"name": "x"}', '{"version": 0}'])
def test_a_damaged_state_says_how_to_get_out(tmp_path, damage):
    fleet = FleetDir(tmp_path / "local")
    fleet.path.mkdir()
    fleet.state_file.write_text(damage)
    with pytest.raises(FleetBrokenError, match="rayburst down local"):
        fleet.read_state()


def test_state_round_trip_and_absence(tmp_path):
    fleet = FleetDir(tmp_path / "local")
    with pytest.raises(FleetNotFoundError, match="rayburst up"):
        fleet.read_state()
    state = FleetState(
        name="local",
        started_at=1.0,
        subnet="127.40.7",
        ports={"gcs": 1, "dashboard": 2, "serve": 3},
        ray_tmp="/tmp/rb-x",
        store_uri="s3://fleet",
        store_endpoint=None,
        store_is_embedded=True,
    )
    fleet.path.mkdir()
    fleet.write_state(state)
    assert fleet.read_state() == state
    assert fleet.read_state().gcs_address == "127.40.7.1:1"
