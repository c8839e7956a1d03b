"""Runs as one rank of a distributed test: `python ranks.py CASE URI FOLDER [EXTRA]`.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from the launcher in test_reshard.py.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from rayburst.checkpoint import Checkpointer, ObjectStore, Options
from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.protocol import SaveStep
from rayburst.checkpoint.tree import flatten
from rayburst.errors import CheckpointAbandonedError, CheckpointDamagedError, CheckpointError

LAYOUTS = {1: ["plain", "fsdp"], 2: ["plain", "fsdp", "tp"], 3: ["fsdp"], 4: ["fsdp", "tp_fsdp"]}


def model_of(layout: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model with uneven sizes in a layout, and AdamW after two steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(13, 22), nn.ReLU(), nn.Linear(22, 7, bias=False))
    world = dist.get_world_size()
    if layout == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
    elif layout == "tp":
        mesh = init_device_mesh("cpu", (world,))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, mesh, plan)
    elif layout == "tp_fsdp":
        both = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, both["tp"], plan)
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=both["dp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(2):
        torch.manual_seed(seed + step)
        model(torch.randn(4, 13)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def full(state: dict[str, Any]) -> dict[str, Any]:
    """Every leaf, tensors gathered whole: the same names for every layout."""
    leaves, _ = flatten(state)
    return {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in leaves.items()}


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert set(left) == set(right), set(left) ^ set(right)
    for name, value in left.items():
        other = right[name]
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name
        else:
            assert value == other, (name, value, other)


def reshard(uri: str, folder: Path) -> None:
    """Save in this world's layouts; load everything that any world saved, into each layout."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for layout in LAYOUTS[world]:
        name = f"{world}-{layout}"
        if (folder / f"{name}.pt").exists():
            continue
        state = state_of(*model_of(layout, seed=world * 10 + len(layout)))
        whole = full(state)
        with Checkpointer(f"{uri}/{name}") as checkpoints:
            saved = checkpoints.save(state, step=1, rng=[rank, 7])
            again = checkpoints.save(state, step=2)
        assert saved.sent_bytes > 0 or world > 1
        assert again.sent_bytes == 0, again
        if rank == 0:
            torch.save(whole, folder / f"{name}.pt")
        dist.barrier()
    for path in sorted(folder.glob("*.pt")):
        reference = torch.load(path, weights_only=True)
        for layout in LAYOUTS[world]:
            model, optimizer = model_of(layout, seed=999)
            state = state_of(model, optimizer)
            with Checkpointer(f"{uri}/{path.stem}") as checkpoints:
                found = checkpoints.load(state, step=1)
                assert found.rng(0) == [0, 7]
                same(full(state), reference)
                set_state_dict(
                    model,
                    optimizer,
                    model_state_dict=state["model"],
                    optim_state_dict=state["optimizer"],
                )
                same(full(state_of(model, optimizer)), reference)
                plain, _ = flatten(checkpoints.load().state)
                same(plain, reference)


def pipeline(uri: str, folder: Path) -> None:
    """Every rank holds other names, as the stages of a pipeline do; one big tensor is shared."""
    rank, world = dist.get_rank(), dist.get_world_size()
    shared = torch.arange(5_000_000, dtype=torch.float32)
    state = {f"stage{rank}": {"w": torch.full((5, 3), float(rank))}, "shared": shared, "n": 4}
    with Checkpointer(uri) as checkpoints:
        saved = checkpoints.save(state, step=1)
        found = checkpoints.load()
        assert set(found.state) == {f"stage{r}" for r in range(world)} | {"shared", "n"}
        for r in range(world):
            assert torch.equal(found.state[f"stage{r}"]["w"], torch.full((5, 3), float(r)))
        assert torch.equal(found.state["shared"], shared)
        # the replicas shared the work on what all of them hold
        assert 0 < saved.sent_bytes < 0.8 * shared.numel() * 4
        try:
            checkpoints.save(state, step=1)
        except CheckpointError as error:
            assert "already saved" in str(error)
        else:
            raise AssertionError("step 1 was saved twice")
        for when_busy in ("wait", "skip", "supersede"):
            step = 10 + len(when_busy)
            first = checkpoints.async_save(state, step=step, when_busy=when_busy)
            shared += 1
            second = checkpoints.async_save(state, step=step + 10, when_busy=when_busy)
            assert second.outcome in ("started", "waited", "skipped", "superseded")
            outcomes: list[Any] = [None] * world
            dist.all_gather_object(outcomes, (first.outcome, second.outcome))
            # a rank waits for its own save; whether one is skipped or superseded is agreed on
            assert when_busy == "wait" or len(set(outcomes)) == 1, outcomes
            checkpoints.wait()


def shared_reads(uri: str, folder: Path) -> None:
    """What all ranks of a machine need is read by one of them; damage that one finds stops all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    # the first is cut into chunks of 256 KiB; the last is each rank's own
    state = {"w": torch.arange(5_000_000.0), "n": {"x": [1, 2]}, "s": torch.ones(3)}
    with Checkpointer(uri) as checkpoints:
        checkpoints.save({**state, "f": math.sqrt, f"own{rank}": torch.full((100,), rank)}, step=1)
    store = ObjectStore.open(uri)
    read: list[int] = []
    plain = store.get_range_buffer

    def counted(key: str, start: int, length: int) -> memoryview:
        read.append(length if "packs/" in key else 0)
        return plain(key, start, length)

    store.get_range_buffer = counted  # type: ignore[method-assign]
    into = {"w": torch.zeros(5_000_000), "n": {"x": [0, 0]}, "s": torch.zeros(3)}
    mine = {f"own{rank}": torch.zeros(100, dtype=torch.int64)}
    with Checkpointer(store) as checkpoints:
        checkpoints.load({**into, **mine})
        everyones: list[Any] = [None] * world
        dist.all_gather_object(everyones, sum(read))
        assert sum(everyones) < 1.05 * 20_000_000, everyones
        assert max(everyones) < 0.75 * 20_000_000, everyones
        same({**into, **mine}, {**state, f"own{rank}": torch.full((100,), rank)})
        found = checkpoints.load(unpickle=True).state
        assert torch.equal(found["w"], state["w"])
        assert torch.equal(found[f"own{world - 1}"], torch.full((100,), world - 1))
        assert list(Path("/dev/shm").glob("rayburst-load-*")) == []
        trusting = {"s": torch.zeros(3), **({"f": None} if rank == 0 else {})}
        try:  # one rank refuses what was pickled: all learn it, and none waits for it
            checkpoints.load(trusting)
        except CheckpointError as error:
            assert "unpickle=True" in str(error), error
        else:
            raise AssertionError("a pickled leaf was loaded without trust")
        if rank == 0:
            manifest = read_manifest(store, 1)
            shards = manifest.tensors["w"].shards
            pack = shards[len(shards) // 2].chunks[0].pack
            data = bytearray(store.get(pack))
            data[-1] ^= 1
            store.put(pack, bytes(data))
        dist.barrier()
        try:
            checkpoints.load(into)
        except CheckpointDamagedError as error:
            assert "digest differs" in str(error), error
        else:
            raise AssertionError("a damaged pack was loaded")


def failing_rank(uri: str, folder: Path) -> None:
    """An error on one rank reaches all, commits nothing and leaves the rest usable."""
    rank = dist.get_rank()
    with Checkpointer(uri) as checkpoints:
        checkpoints.save({"a": torch.ones(3)}, step=1)
        bad = torch.ones(3) if rank == 0 else torch.ones(4)
        sharded = {"a": torch.ones(3), f"only{rank}": bad if rank == 0 else object_that_fails()}
        try:
            checkpoints.save(sharded, step=2)
        except Exception as error:
            assert "refuses" in str(error), error
        else:
            raise AssertionError("the save went through")
        assert checkpoints.latest() == 1
        checkpoints.save({"a": torch.zeros(3)}, step=3)
        assert torch.equal(checkpoints.load().state["a"], torch.zeros(3))


def killed_rank(uri: str, folder: Path) -> None:
    """Rank 1 dies when its packs are written: nothing is committed, and rank 0 learns it."""
    rank = dist.get_rank()
    state = {"a": torch.ones(3), f"own{rank}": torch.ones(5)}
    with Checkpointer(uri) as checkpoints:
        checkpoints.save(state, step=1)

    def reached(step: SaveStep) -> None:
        if rank == 1 and step is SaveStep.PACKS_DONE:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = Checkpointer(uri, Options(reached=reached))
    state["a"] += 1
    try:
        checkpoints.save(state, step=2)
    except CheckpointAbandonedError as error:
        assert "a rank left" in str(error), error
    else:
        raise AssertionError("a save without rank 1 was committed")
    assert checkpoints.latest() == 1
    assert list(checkpoints.store.list("leases")) == []
    os._exit(0)  # the other rank is gone: no barrier would end


class Refuses:
    """A leaf that cannot be pickled."""

    def __deepcopy__(self, memo: Any) -> Refuses:
        return self

    def __reduce__(self) -> Any:
        raise ValueError("this leaf refuses to be pickled")


def object_that_fails() -> Refuses:
    return Refuses()


CASES = {f.__name__: f for f in (reshard, pipeline, shared_reads, failing_rank, killed_rank)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        CASES[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # gloo's threads can outlive the interpreter's shutdown order
    sys.stdout.flush()
    os._exit(0)
