"""A Ray Train function that knows nothing of rayburst, under `ElasticTrainer`.

.venv/bin/python -m pytest tests/integration/train/test_ordinary.py -m soak
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import wait_for
from training_cluster import Job, Nodes

pytestmark = [pytest.mark.timeout(600), pytest.mark.soak]
STEPS = 60

ORDINARY = """
import json, sys, tempfile, time
from pathlib import Path

import ray, ray.train, ray.train.torch
import torch

from rayburst.train.trainer import ElasticTrainer, Workers

def train(config):
    context, folder = ray.train.get_context(), Path(config["folder"])
    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 1))
    step = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            step = torch.load(Path(kept) / "state.pt")["step"]
    rank = context.get_world_rank()
    told = {"rank": rank, "world": context.get_world_size(), "step": step}
    told["node"] = ray.get_runtime_context().get_node_id()
    with (folder / "starts").open("a") as log:
        log.write(json.dumps(told) + "\\n")
    while step < config["steps"]:
        model(torch.ones(2, 4)).sum().backward()
        step += 1
        if not (folder / "hurry").exists():
            time.sleep(0.3)
        with tempfile.TemporaryDirectory() as kept:
            if rank == 0:
                torch.save({"step": step}, Path(kept) / "state.pt")
                made = ray.train.Checkpoint.from_directory(kept)
            ray.train.report({"step": step}, checkpoint=made if rank == 0 else None)

result = ElasticTrainer(
    train, config={"folder": sys.argv[1], "steps": int(sys.argv[2])}, run="ordinary",
    storage=sys.argv[1], workers=Workers(least=1, most=2),
).fit()
print("RESULT " + json.dumps(result.metrics))
"""


def test_it_goes_on_from_its_own_checkpoint_after_a_power_cut(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(2)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(ORDINARY))
    job = start(str(script), str(tmp_path), str(STEPS))

    def starts(**fields: Any) -> list[dict[str, Any]] | None:
        assert job.process.poll() is None, job.output
        file = tmp_path / "starts"
        lines = file.read_text().splitlines() if file.exists() else []
        told = [json.loads(line) for line in lines]
        return [one for one in told if fields.items() <= one.items()] or None

    (victim,) = wait_for(lambda: starts(rank=1, world=2), what="two workers", timeout_s=200)
    kept = (tmp_path / "ordinary").glob
    wait_for(lambda: list(kept("checkpoint_*/state.pt")) or None, what="a checkpoint")
    nodes.kill(victim["node"])
    (alone,) = wait_for(lambda: starts(world=1), what="a start without it", timeout_s=200)
    assert 0 < alone["step"] < STEPS
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert job.result()["step"] == STEPS
