"""What EC2 instances are given to join: no secret in user data, all of it in the store."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet.layout import FleetDir, FleetState
from rayburst.fleet.pickup import unpack
from rayburst.fleet.pools.ec2_instances import template_data
from rayburst.fleet.pools.ec2_join import forget_luggage, user_data

FILE = """\
name: burst
object_store: {uri: s3://bucket}
software: {python: /opt/py/bin/python}
pools:
  - {name: spot-a, kind: ec2, market: spot, region: us-east-1, price: 0.1 USD/h,
     shape: {cpus: 2, memory: 8GiB}, hosts: {max: 2},
     ec2: {types: [m6i.large], image: ami-1, subnets: [subnet-1], rebalance: 15m}}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDir:
    fleet = FleetDir(tmp_path / "burst")
    fleet.path.mkdir()
    (fleet.path / "fleet.yaml").write_text(FILE)
    (fleet.path / "token").write_text("the-secret-token")
    (fleet.path / "store.json").write_text(json.dumps({"AWS_SECRET_ACCESS_KEY": "the-key"}))
    state = FleetState(
        name="burst",
        started_at=0.0,
        subnet="",
        ports={"gcs": 6379},
        ray_tmp="",
        store_uri=str(tmp_path / "store"),
        store_endpoint=None,
        store_is_embedded=False,
        address="10.0.0.6",
    )
    fleet.write_state(state)
    return fleet


def luggage(fleet: FleetDir) -> tuple[str, bytes]:
    store = ObjectStore.open(fleet.read_state().store_uri)
    (found,) = store.list("luggage/burst/")
    return found.key, store.get(found.key)


def test_user_data_holds_no_secret_and_names_the_luggage(fleet: FleetDir) -> None:
    text = user_data(fleet, fleet.spec().pool("spot-a"))
    key, content = luggage(fleet)
    assert key in text and text.startswith("#!/bin/bash\n")
    assert "/opt/py/bin/python -m rayburst.fleet.pickup spot-a" in text
    assert text.rstrip().endswith("shutdown -h now")
    for secret in ("the-secret-token", "the-key"):
        assert secret not in text
        assert secret.encode() in content


def test_the_same_content_is_put_once_and_makes_the_same_user_data(fleet: FleetDir) -> None:
    pool = fleet.spec().pool("spot-a")
    first = user_data(fleet, pool)
    assert user_data(fleet, pool) == first
    luggage(fleet)
    (fleet.path / "token").write_text("another")
    assert user_data(fleet, pool) != first, "an instance of a new head gets the new head's token"


def test_luggage_goes_when_the_fleet_does(fleet: FleetDir) -> None:
    user_data(fleet, fleet.spec().pool("spot-a"))
    store = ObjectStore.open(fleet.read_state().store_uri)
    store.put("luggage/burst-2/other.tar", b"of another fleet")
    forget_luggage(store, "burst")
    assert [one.key for one in store.list("")] == ["luggage/burst-2/other.tar"]


def test_an_instance_unpacks_its_luggage_for_itself_alone(fleet: FleetDir, tmp_path: Path) -> None:
    user_data(fleet, fleet.spec().pool("spot-a"))
    folder = tmp_path / "hosts" / "spot-a-1"
    unpack(luggage(fleet)[1], folder, host="spot-a-1", address="10.1.0.9", zone="us-east-1b")
    orders = json.loads((folder / "node.json").read_text())
    assert (orders["host"], orders["address"]) == ("spot-a-1", "10.1.0.9")
    assert orders["gcs_address"] == "10.0.0.6:6379"
    assert orders["labels"]["ray.io/availability-zone"] == "us-east-1b"
    assert orders["labels"]["rayburst.io/host"] == "spot-a-1"
    assert orders["labels"]["ray.io/market-type"] == "spot"
    assert orders["rebalance_s"] == 900.0
    assert (folder / "token").read_text() == "the-secret-token"
    for file in ("node.json", "token"):
        assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_launch_template_without_a_cluster_has_no_user_data(fleet: FleetDir) -> None:
    ec2 = fleet.spec().pool("spot-a").ec2
    assert ec2 is not None
    assert "UserData" not in template_data(ec2)
    assert template_data(ec2, "#!/bin/sh")["UserData"] == "IyEvYmluL3No"
