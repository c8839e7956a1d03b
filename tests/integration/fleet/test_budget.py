"""A budget is hard: hosts get notice in time, and the bill ends inside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import wait_for

from rayburst.dev.embedded import down, up
from rayburst.sdk import connect

WORK = Path(__file__).with_name("work.py")
SPEC = """
name: thrifty
object_store: {kind: embedded}
limits: {budget: 0.25 USD, drain: 3s}
pools:
  - {name: dear, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB},
     price: 30 USD/h, hosts: {max: 1}}
"""


@pytest.mark.timeout(300)
def test_work_stops_inside_the_budget_and_nothing_more_is_launched(tmp_path):
    (tmp_path / "fleet.yaml").write_text(SPEC)
    fleet = up(tmp_path / "fleet.yaml", root=tmp_path)
    try:
        platform = connect(root=tmp_path)
        words = f"python {WORK} {tmp_path / 'never'} 1"
        platform.submit(words, working_dir=None)

        def ended():
            events = platform.events()
            return events if any(e.kind == "gone" for e in events) else None

        events = wait_for(ended, what="the host to be sent away", timeout_s=120)
        notice = next(e for e in events if e.kind == "notice")
        assert "of a budget of 0.2500 USD" in notice.why
        wait_for(
            lambda: any("budget" in d for d in platform.fleet().decisions) or None,
            what="the refusal of more",
        )
        bill = platform.cost()
        assert len(bill.nodes) == 1
        assert 0.15 < bill.usd <= 0.25
    finally:
        assert down(fleet).clean
