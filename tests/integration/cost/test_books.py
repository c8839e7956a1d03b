"""The books of a real fleet: who held a node is seen, and a killed bookkeeper loses nothing."""

from __future__ import annotations

import io
import subprocess
import time
from pathlib import Path

import pytest
import requests
from rich.console import Console
from support import wait_for, write_spec

from rayburst.cost.bookkeeper import Bookkeeper
from rayburst.cost.focus import to_focus
from rayburst.cost.ledger import GRACE_MS, PERIOD_MS, Ledger
from rayburst.cost.reader import FactReader
from rayburst.cost.usage import UsageLog
from rayburst.dev.embedded import down, up
from rayburst.fleet import processes
from rayburst.fleet.top_cli import look
from rayburst.report.top import draw
from rayburst.sdk import Platform, connect

REPO = Path(__file__).resolve().parents[3]
WORK = REPO / "tests/integration/fleet/work.py"
pytestmark = pytest.mark.timeout(300)


def bookkeeper(fleet):
    for process in processes.owned(fleet.path):
        if "rayburst.cost.bookkeeper" in process.cmdline():
            return process
    return None


def scraped(fleet) -> str:
    state = fleet.read_state()
    url = f"http://{state.head_address}:{state.ports['books']}/metrics"
    try:
        return requests.get(url, timeout=5).text
    except requests.RequestException:
        return ""


def living(platform: Platform) -> set[str]:
    """Nodes whose end is not on record yet: their dollars still grow."""
    events = platform.events()
    return {e.node for e in events} - {e.node for e in events if e.kind == "gone"}


def test_a_killed_bookkeeper_loses_nothing_and_dollars_add_up(tmp_path):
    fleet = up(write_spec(tmp_path, "books"), root=tmp_path)
    try:
        platform = connect(root=tmp_path)
        release = tmp_path / "release"
        words = f"python {WORK} {release} 1"
        job = platform.submit(words, working_dir=None, metadata={"tenant": "blue"})

        def paid():
            rows = {row.key: row for row in platform.cost(by="job").rows}
            mine = rows.get(job.id)
            return mine if mine and mine.usd_by_purpose.get("useful") else None

        before = wait_for(paid, what="the job to pay for its node")
        assert before.usd_by_purpose["restarting"], "the node was started for it"
        screen = Console(width=110, record=True, file=io.StringIO())
        screen.print(draw(look(platform, now=time.time())))
        assert job.id in screen.export_text(), "rayburst top shows the job"
        wait_for(
            lambda: "rayburst_job_usd{" in scraped(fleet) or None, what="the ledger in the metrics"
        )
        one_node = 'rayburst_nodes{market="on-prem",pool="rack",state="up"} 1.0'
        wait_for(lambda: one_node in scraped(fleet) or None, what="the node in the metrics")
        first = wait_for(lambda: bookkeeper(fleet), what="a bookkeeper")
        first.kill()
        second = wait_for(
            lambda: ((found := bookkeeper(fleet)) and found.pid != first.pid and found) or None,
            what="the next bookkeeper",
        )
        assert second.pid != first.pid
        # else the job may end, and its node go, before anybody looks again
        wait_for(lambda: one_node in scraped(fleet) or None, what="the next one's first look")
        release.touch()
        job.wait(timeout_s=120)
        wait_for(
            lambda: living(platform) == set() or None,
            what="its node to be given back",
        )
        usage = UsageLog(platform.store())
        wait_for(
            lambda: all(hold.end_ms for hold in usage.holds()) or None,
            what="what the job held to be written off",
        )
        assert {row.key for row in platform.cost(by="tenant").rows} == {"blue", "(nobody)"}
        entries = platform.ledger()
        bill = platform.cost()
        assert float(sum(e.nano_usd for e in entries)) / 1e9 == pytest.approx(bill.usd, abs=1e-6)
        assert sum(row.usd for row in platform.cost(by="job").rows) == platform.cost(by="job").usd

        # an hour later the period is closed, by whoever keeps the books then
        store = platform.store()
        later = round(time.time() * 1000) + PERIOD_MS + GRACE_MS
        assert Bookkeeper(fleet, store).settle(later) >= 1
        assert Bookkeeper(fleet, store).settle(later) == 0
        facts = FactReader(store, spool=fleet.spool).read()
        written = Ledger(store).entries(facts, now_ms=later)
        assert sum(e.nano_usd or 0 for e in written) == sum(e.nano_usd for e in entries)
        told, _ = to_focus(written, fleet="books")
        assert job.id in told
    finally:
        assert down(fleet).clean


def test_the_finops_foundations_validator_accepts_the_export(tmp_path):
    from cost_month import DAY_MS, START_MS, month

    from rayburst.cost.attribution import LaunchPrices, attribute, tell

    if subprocess.run([REPO / "scripts/newer-python"], capture_output=True).returncode:
        pytest.skip("the validator needs Python 3.12 or newer, and this machine has none")
    hours = range(START_MS - START_MS % PERIOD_MS, START_MS + 2 * DAY_MS, PERIOD_MS)
    story = tell(month(5, days=2, nodes=8))
    entries = [
        entry
        for start in hours
        for entry in attribute(
            story, prices=LaunchPrices(), period=(start, start + PERIOD_MS), now_ms=hours[-1]
        )
    ]
    text, left_out = to_focus(entries, fleet="lab", region="us-east-1")
    assert left_out > 0, "nodes of unknown price are left out, and counted"
    file = tmp_path / "focus.csv"
    file.write_text(text)
    done = subprocess.run(
        [REPO / "scripts/focus-validator", file], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert " 0 failed" in done.stdout
