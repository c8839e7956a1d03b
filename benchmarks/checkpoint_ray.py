"""Ray Train's own way, for benchmarks/checkpoint.py: torch.save to a folder, then `report`.

Starts a Ray of its own on this machine and ends it. Rank 0 of two workers saves; both load.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

sys.path.insert(0, str(Path(__file__).parent))


def loop(job: dict[str, Any]) -> None:
    import torch.distributed as dist
    from checkpoint_rank import change_a_tenth, make_state, timed

    torch.set_num_threads(1)
    state = make_state(job["size_bytes"], job["tensors"], job["seed"])
    cells: list[dict[str, Any]] = []

    def save(_step: int) -> float:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if dist.get_rank() == 0:
                torch.save(state, Path(folder) / "model.pt")
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"x": 1}, checkpoint=checkpoint)
        return time.perf_counter() - begun

    seconds, stall = timed(lambda: save(0))
    base = {"peer": "Ray Train report"}
    cells.append({**base, "operation": "first save", "seconds": seconds, "stall_s": stall})
    for step in range(1, 1 + job["repeats"]):
        change_a_tenth(state, step)
        seconds, stall = timed(lambda step=step: save(step))
        cells.append(
            {**base, "operation": "save, 10% changed", "seconds": seconds, "stall_s": stall}
        )

    # get_checkpoint() knows only what was there at the start; this waits for the last report
    kept = ray.train.get_all_reported_checkpoints()[-1].checkpoint

    def load() -> None:
        with kept.as_directory() as folder:
            found = torch.load(Path(folder) / "model.pt", weights_only=True)
        for name, tensor in state.items():
            tensor.copy_(found[name])

    for _ in range(job["repeats"]):
        seconds, _result = timed(load)
        cells.append({**base, "operation": "load, same world", "seconds": seconds})
    if dist.get_rank() == 0:
        Path(job["answer"]).write_text(json.dumps(cells))


def main() -> None:
    job = {**json.loads(Path(sys.argv[1]).read_text()), "answer": sys.argv[2]}
    ray.init(
        address="local",
        num_cpus=4,  # what it may think of; two workers compute
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    try:
        TorchTrainer(
            loop,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=f"{job['uri']}/ray", name=f"run-{time.time_ns()}"),
        ).fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
