"""Groups of plain gloo processes that train, are interrupted by declaration, and start again.

No Ray: a run is the same object in a process that torchrun could have started, so whole schedules
of interruptions take seconds. `play` runs one; each process trains the small model below.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from support import preloaded, wait_for
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from rayburst.checkpoint import latest
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import RunLeftError
from rayburst.train.notices import Notice
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.runlog import read_folder

LEFT, CUT = 3, 9  # exit codes of a process that left, and of one that lost its power
SAMPLES, EPOCHS, GLOBAL_BATCH = 50, 4, 12
AUTO_BYTES = 400_000  # whole copies fit four of them and not three
LAID_OUT_STEPS = 8


@dataclass(frozen=True)
class Phase:
    """A group of `world`, until `event` after step `step`: all leave, or `ranks` lose power."""

    world: int
    event: Literal["leave", "cut", "end"] = "end"
    step: int = 0
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """What is trained. `poison`: a sample whose loss is not a number. `spread`: with FSDP2."""

    options: dict[str, Any] = field(default_factory=lambda: {"mode": "exact", "shards": 8})
    optimizer: Literal["adamw", "sgd"] = "adamw"
    poison: int | None = None
    checkpoint_every_s: float = 1e-9  # after each step that finds the last save done
    epochs: int = EPOCHS
    dropout: float = 0.2
    spread: bool = False
    layout: str | None = None
    """A GPT in this layout, for LAID_OUT_STEPS, in place of the model below."""


class Digits(torch.utils.data.Dataset[Any]):
    """Drawn from a seed; the index comes along, so that a test can count what was trained on."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(SAMPLES, 16, generator=generator)
        self.y = torch.randint(0, 10, (SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        return i, self.x[i] + 0.01 * torch.randn(16), self.y[i]  # augmented


def model_of(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 33), nn.LayerNorm(33), nn.GELU(), nn.Dropout(dropout), nn.Linear(33, 10)
    )


def spread(model: nn.Module) -> None:
    """What a user gives as `shard`."""
    fully_shard(model[0])
    fully_shard(model)


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def learn(run: Run, case: Case, turn: Callable[[list[int]], None] = lambda samples: None) -> None:
    """What a user writes; `turn` is called before each backward pass."""
    model = model_of(case.dropout)
    optimizer = optimizer_of(model, case.optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    shard = spread if case.spread else None
    model = run.prepare(model, optimizer, schedule, clip_norm=1.0, shard=shard)
    for index, x, y in run.batches(Digits(), global_batch=GLOBAL_BATCH, seed=3, epochs=case.epochs):
        turn(index.tolist())
        loss = F.cross_entropy(model(x), y)
        if case.poison is not None and (index == case.poison).any():
            loss = loss * float("nan")
        run.backward(loss)
        run.step()


class Counting(torch.utils.data.Dataset[Any]):
    """Text with a rule, so that there is something to learn."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> Any:
        text = (i + (1 + i % 3) * torch.arange(17)) % 64
        return i, text[:-1], text[1:]


def learn_laid_out(run: Run, layout: str, turn: Callable[[list[int]], None], steps: int) -> None:
    """The same for a model in a layout; "auto": what fits devices of `AUTO_BYTES`."""
    from rayburst.train import plan_layout
    from rayburst.train.gpt import GPT, GPTConfig
    from rayburst.train.parallel import Layout, ParallelOptions

    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=16))
    if layout == "auto":
        nodes = run.machines(memory_bytes=AUTO_BYTES)
        chosen = plan_layout(gpt, nodes, "fp32", global_batch=16).layout
    else:
        chosen = Layout.parse(layout)
    model = run.lay_out(
        gpt,
        ParallelOptions(layout=chosen),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, eps=1e-5),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )
    for index, x, y in run.batches(Counting(), global_batch=16, seed=3, steps=steps):
        turn(index.tolist())
        run.backward(model(x, y))
        run.step()


def on_ray(config: dict[str, Any]) -> None:
    """The same as a Ray Train function."""
    learn(start_run(RunOptions(**config["options"])), Case())


def train(case: Case, phase: Phase, rank: int, folder: Path, number: int = 0) -> None:
    """`learn` in a process of a group, with the declared interruption, and what it trained on."""
    trained_on = folder / f"samples-{number}-{rank}.jsonl"

    def notice() -> Notice | None:
        is_time = phase.event == "leave" and run.steps_done >= phase.step
        return Notice(deadline_s=None, reason="declared") if is_time else None

    def turn(samples: list[int]) -> None:
        if case.layout is not None:
            run.report()  # what is not flushed is lost with the process
        if phase.event == "cut" and run.steps_done >= phase.step and rank in phase.ranks:
            if case.layout is not None:
                wait_for(lambda: latest(str(folder / "run" / "checkpoints")), what="a checkpoint")
            os._exit(CUT)
        line = json.dumps({"step": run.steps_done + 1, "phase": number, "samples": samples})
        with trained_on.open("a") as file:
            file.write(f"{line}\n")

    options = RunOptions(**case.options, checkpoint_every_s=case.checkpoint_every_s)
    run = start_run(options, storage=str(folder / "run"), notices=notice)
    if case.layout is not None:
        learn_laid_out(run, case.layout, turn, LAID_OUT_STEPS)
    else:
        learn(run, case, turn)


def _member(case: Case, phase: Phase, rank: int, folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    if phase.world > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous-{number}",
            rank=rank,
            world_size=phase.world,
        )
    try:
        train(case, phase, rank, folder, number)
    except RunLeftError:
        os._exit(LEFT)
    except BaseException as error:
        text = json.dumps({"type": type(error).__name__, "text": str(error)})
        (folder / f"error-{number}-{rank}.json").write_text(text)
        os._exit(1)
    os._exit(0)


def run_phase(case: Case, phase: Phase, folder: Path, number: int) -> list[int | None]:
    """Exit codes of the group's processes. When one is cut off, the others are ended too."""
    group = [
        preloaded().Process(target=_member, args=(case, phase, rank, folder, number))
        for rank in range(phase.world)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(120)
        if phase.event == "cut" and any(p.exitcode == CUT for p in group):
            for other in group:
                other.kill()
    for process in group:
        process.kill()
        process.join()
    return [process.exitcode for process in group]


def play(case: Case, phases: list[Phase], folder: Path, *, first: int = 0) -> list[dict[str, Any]]:
    """Run the phases one after the other; asserts that each ended as declared. Returns the log."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, phase in enumerate(phases, first):
        codes = run_phase(case, phase, folder, number)
        told = [p.read_text() for p in sorted(folder.glob(f"error-{number}-*.json"))]
        if phase.event == "cut":
            assert CUT in codes, f"{phase}: the cut did not happen: {codes} {told}"
        else:
            expected = LEFT if phase.event == "leave" else 0
            assert codes == [expected] * phase.world, f"{phase}: {codes} {told}"
    return read_folder(ObjectStore.open(str(folder / "run")))


def samples_by_step(folder: Path) -> dict[int, list[int]]:
    """What each step that counts was trained on: the last group that did it, all its ranks."""
    lines = [
        json.loads(line)
        for file in folder.glob("samples-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    last = {line["step"]: -1 for line in lines}
    for line in lines:
        last[line["step"]] = max(last[line["step"]], line["phase"])
    found: dict[int, list[int]] = {step: [] for step in last}
    for line in lines:
        if line["phase"] == last[line["step"]]:
            found[line["step"]] += line["samples"]
    return found


def weights_of(log: list[dict[str, Any]]) -> set[str]:
    """Hashes of the final weights, over all ranks that came to the end."""
    return {r["weights"] for r in log if r["kind"] == "end"}
