"""A month's budget is obeyed: told before, then a clean stop at a checkpoint, inside it.

What was spent is put into the ledger (as a charge for storage), so nothing here waits for money to
be burnt, and the stop proves that the planner goes by the ledger and not by a count of its own.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest
from support import wait_for

from rayburst.cost.bookkeeper import Bookkeeper
from rayburst.cost.entries import NANO, Owner
from rayburst.cost.facts import Charge
from rayburst.cost.reader import CHARGES
from rayburst.dev.embedded import down, up
from rayburst.sdk import connect
from rayburst.train import runlog

SPEC = """
name: frugal
object_store: {kind: embedded}
limits: {idle_timeout: 5s, drain: 30s}
tenants:
  - {name: blue, monthly_budget: 100 USD}
pools:
  - {name: spot-a, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, price: 1 USD/h,
     hosts: {max: 1}}
"""


def learn(config: dict) -> None:
    import time

    import torch
    from torch.utils.data import TensorDataset

    from rayburst.train.run import start_run

    run = start_run(storage=config.get("storage"))
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model = run.prepare(model, optimizer)
    data = TensorDataset(torch.randn(512, 4))
    for (x,) in run.batches(data, global_batch=8, epochs=1000):
        run.backward(model(x).square().mean())
        run.step()
        time.sleep(0.1)


def spend(fleet, store, usd: float) -> None:
    """A charge for the tenant, and the bookkeeper's word on it."""
    now_ms = round(time.time() * 1000)
    charge = Charge(
        id=f"{CHARGES}{now_ms:015d}-storage-test.json",
        t_ms=now_ms,
        owner=Owner(job="archive", tenant="blue"),
        purpose="storage",
        quantity=1,
        unit="byte-seconds",
        nano_usd=round(usd * NANO),
    )
    store.put(charge.id, json.dumps(asdict(charge)).encode(), if_absent=True)
    Bookkeeper(fleet, store).settle(round(time.time() * 1000))


@pytest.mark.timeout(600)
def test_a_month_that_is_spent_stops_training_at_a_checkpoint_after_a_warning(tmp_path):
    (tmp_path / "fleet.yaml").write_text(SPEC)
    fleet = up(tmp_path / "fleet.yaml", root=tmp_path)
    try:
        platform = connect(root=tmp_path)
        store = platform.store()
        job = platform.train(learn, run="lean", workers=1, tenant="blue")

        def steps():
            assert job.status in ("PENDING", "RUNNING"), job.logs()[-3000:]
            return [r["step"] for r in runlog.read(store, "lean") if r["kind"] == "step"] or None

        def said(kind: str, subject: str):
            found = [d for d in platform.decisions() if (d.kind, d.subject) == (kind, subject)]
            return found or None

        wait_for(steps, what="training to begin", timeout_s=240)
        spend(fleet, store, 85.0)
        (told,) = wait_for(lambda: said("budget", "tenant blue"), what="the warning", timeout_s=60)
        assert "85% of its budget for 2" in told.why
        seen = max(steps())
        wait_for(lambda: max(steps()) > seen or None, what="training to go on", timeout_s=120)
        assert not [e for e in platform.events() if e.kind == "notice"]

        # what is left pays for some ten seconds more than the drain that is kept back
        so_far = next(row.usd for row in platform.cost(by="tenant").rows if row.key == "blue")
        spend(fleet, store, 100 - float(so_far) - 0.0125)
        gone = wait_for(
            lambda: [e for e in platform.events() if e.kind == "gone"] or None,
            what="its host to go",
            timeout_s=120,
        )
        (notice,) = [e for e in platform.events() if e.kind == "notice"]
        assert "its budget is spent" in notice.why

        log = runlog.read(store, "lean")
        saved = [r["step"] for r in log if r["kind"] == "committed"]
        assert saved and saved[-1] == max(r["step"] for r in log if r["kind"] == "step")
        assert len(gone) == 1, "and no other host came"
        blue = next(row for row in platform.cost(by="tenant").rows if row.key == "blue")
        assert 99.9 < sum(blue.usd_by_purpose.values()) < 100, "rounded to the cent it is 100"
        job.stop()
    finally:
        assert down(fleet).clean
