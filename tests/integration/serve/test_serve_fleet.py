"""A model on a fleet of `rayburst up` whose file asks for HAProxy, over hosts of two markets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from support import SPEC, wait_for

from rayburst.dev.embedded import down, up
from rayburst.sdk import connect

from .conftest import APPS
from .test_serve_model import BODY, is_fast


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_fleets_file_gives_the_fast_lane_and_its_pools_a_floor(tmp_path: Path) -> None:
    """The floor takes the machine that is owned, the other replica spot; on-demand stays closed."""
    file = tmp_path / "fleet.yaml"
    file.write_text(SPEC.format(name="served") + "serve: {haproxy: true}\n")
    fleet = up(file, root=tmp_path)
    try:
        p = connect("served", root=tmp_path)
        options = {"keys": "off", "replicas": {"least": 2, "floor": 1, "cpus": 1}}
        made = p.deploy(
            "served_models:scaler", working_dir=APPS, args={"options": json.dumps(options)}
        )
        assert {host.pool for host in p.fleet().nodes} == {"rack", "spot-a"}
        pids = set()

        def both() -> bool | None:
            answer = requests.post(f"{made.url}predict", data=BODY, timeout=60)
            assert is_fast(answer), answer.text
            pids.add(answer.json()["pid"])
            return len(pids) == 2 or None

        wait_for(both, what="both replicas answered on the fast lane")
    finally:
        assert down(fleet).clean
