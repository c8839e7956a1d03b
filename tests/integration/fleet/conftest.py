"""One real fleet for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import write_spec

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
