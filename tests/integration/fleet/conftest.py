"""One real fleet, and one EC2 endpoint, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import write_spec

from rayburst.dev.cloud.ec2_server import Ec2Server
from rayburst.dev.embedded import down, up
from rayburst.fleet.layout import FleetDir
from rayburst.sdk import Platform, connect


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetDir]:
    root = tmp_path_factory.mktemp("fleet")
    started = up(write_spec(root, "it"), root=root)
    try:
        yield started
    finally:
        assert down(started).clean


@pytest.fixture
def platform(fleet: FleetDir) -> Platform:
    return connect(fleet.name, root=fleet.path.parents[1])


@pytest.fixture(scope="session")
def ec2_endpoint() -> Iterator[Ec2Server]:
    server = Ec2Server(address="127.0.0.1")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ec2_server(ec2_endpoint: Ec2Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Server]:
    """The endpoint with nothing in it, and credentials that it takes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    ec2_endpoint.reset()
    yield ec2_endpoint
    ec2_endpoint.reset()


@pytest.fixture
def ec2_block(ec2_server: Ec2Server) -> str:
    """The block `ec2` of a pool with two types and two zones."""
    subnets = list(ec2_server.subnets().values())[:2]
    image = next(iter(ec2_server.backend().amis))
    return (
        f"{{types: [m6i.large, m6a.large], image: {image}, subnets: [{', '.join(subnets)}], "
        f"endpoint: '{ec2_server.url}'}}"
    )
