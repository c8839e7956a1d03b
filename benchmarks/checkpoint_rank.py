"""One rank of benchmarks/checkpoint.py: times every peer on one state. Started by it."""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoint_peers import Peer, Raw, Rayburst, State, limits, peers

SLOW_S = 60.0


def make_state(size_bytes: int, tensors: int, seed: int) -> State:
    """float32 tensors of equal size; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    each = size_bytes // 4 // tensors
    return {f"layer{i}": torch.randn(each, generator=generator) for i in range(tensors)}


def change_a_tenth(state: State, step: int) -> int:
    """Change 10% of the tensors (of one tensor: a tenth of its rows). Returns bytes changed."""
    names = list(state)
    if len(names) == 1:
        tensor = state[names[0]]
        tenth = len(tensor) // 10
        start = (step % 10) * tenth
        tensor[start : start + tenth] += 1.0
        return tenth * 4
    chosen = names[step % 10 :: 10]
    for name in chosen:
        state[name] += 1.0
    return sum(state[name].numel() * 4 for name in chosen)


def timed(action: Any) -> tuple[float, Any]:
    """Seconds until the slowest rank is done, and this rank's result."""
    dist.barrier()
    begun = time.perf_counter()
    result = action()
    dist.barrier()
    return time.perf_counter() - begun, result


class Memcpy:
    """The least that a save must block: a per-tensor copy_ of the state into reused buffers."""

    def __init__(self, state: State) -> None:
        self._buffers = {name: tensor.clone() for name, tensor in state.items()}

    def seconds(self, state: State) -> float:
        """Of this rank; the other ranks copy at the same time."""
        dist.barrier()
        begun = time.perf_counter()
        for name, tensor in state.items():
            self._buffers[name].copy_(tensor)
        return time.perf_counter() - begun


class PeakMemory:
    """Extra resident memory while an action runs, sampled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self._stop = threading.Event()
        self.peak = self.before = _resident()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def extra_bytes(self) -> int:
        return self.peak - self.before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def bench_limits(uri: str, state: State, repeats: int) -> list[dict[str, Any]]:
    """rayburst beside the limits, in turns: whole saves in the steady state, and loads.

    Every byte differs from the last save; the first save, which is not steady, is left out.
    """
    cells: list[dict[str, Any]] = []
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    raws, peer, memcpy = limits(f"{uri}/raw"), Rayburst(f"{uri}/full"), Memcpy(state)
    into = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    for raw in raws:
        raw.prepare(size_bytes)
    for turn in range(repeats + 1):
        found: list[dict[str, Any]] = []
        for tensor in state.values():
            tensor.add_(1.0)
        for raw in raws:
            seconds, _r = timed(lambda raw=raw: raw.save({}, 0))
            found.append({"peer": raw.name, "operation": "raw put", "seconds": seconds})
        found.append({"operation": "memcpy", "seconds": memcpy.seconds(state)})
        seconds, stall = timed(lambda turn=turn: peer.save(state, turn))
        cell = {"peer": peer.name, "operation": "whole save again", "seconds": seconds}
        found.append(cell | {"stall_s": stall})
        found += bench_gets(raws, peer, into, turn, ("raw get", "load, same world"))
        if turn:  # the first turn warms every client up
            cells += found
    check_same(peer.name, state, into)
    peer.close()
    return cells


def bench_gets(
    raws: list[Raw], peer: Rayburst, into: State, step: int, names: tuple[str, str]
) -> list[dict[str, Any]]:
    """One raw GET by every client, and one load."""
    cells = []
    for raw in raws:
        seconds, _r = timed(lambda raw=raw: raw.load({}, 0))
        cells.append({"peer": raw.name, "operation": names[0], "seconds": seconds})
    seconds, _r = timed(lambda: peer.load(into, step))
    return [*cells, {"peer": peer.name, "operation": names[1], "seconds": seconds}]


def bench_limits_of_another_world(uri: str, state: State, repeats: int) -> list[dict[str, Any]]:
    """Loads of what `bench_limits` saved last in a larger world, beside the raw GET."""
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    raws, peer = limits(f"{uri}/raw-alone"), Rayburst(f"{uri}/full")
    into = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    for raw in raws:
        raw.prepare(size_bytes)
        raw.save({}, 0)
    cells = []
    for turn in range(repeats + 1):
        names = ("raw get, other world", "load, other world")
        found = bench_gets(raws, peer, into, repeats, names)
        if turn:
            cells += found
    for _ in range(repeats + 1):
        for tensor in state.values():
            tensor.add_(1.0)
    check_same(peer.name, state, into)
    peer.close()
    return cells


def check_same(who: str, state: State, into: State) -> None:
    for name, tensor in state.items():
        if not torch.equal(tensor, into[name]):
            raise SystemExit(f"{who}: {name} came back different")


def enough(seconds: float) -> bool:
    """Whether one run is enough to know; all ranks agree."""
    slow = torch.tensor(seconds > SLOW_S)
    dist.broadcast(slow, 0)
    return bool(slow)


def warm_up(uri: str, size_bytes: int) -> None:
    """Touch memory and write bytes, so that the peer whose turn is first pays no more than others.

    Without it the first turn alone meets memory that the machine has not used lately, and a store
    that has not written yet.
    """
    memory = torch.ones(2 * size_bytes // 4)
    del memory
    raw = limits(f"{uri}/warm")[0]
    raw.prepare(size_bytes)
    raw.save({}, 0)
    dist.barrier()


def bench_peer(peer: Peer, state: State, repeats: int, base: int) -> list[dict[str, Any]]:
    """First save, saves with a tenth changed, loads; `base` keeps steps apart."""
    cells: list[dict[str, Any]] = []
    with PeakMemory() as memory:
        seconds, stall = timed(lambda: peer.save(state, base))
    cells.append(
        {
            "peer": peer.name,
            "operation": "first save",
            "seconds": seconds,
            "stall_s": stall,
            "extra_bytes": memory.extra_bytes,
        }
    )
    for step in range(base + 1, base + 1 + repeats):
        changed = change_a_tenth(state, step)
        seconds, stall = timed(lambda step=step: peer.save(state, step))
        cell = {"peer": peer.name, "operation": "save, 10% changed", "seconds": seconds}
        cell |= {"stall_s": stall, "changed_bytes": changed}
        if isinstance(peer, Rayburst):
            sent = [0] * dist.get_world_size()
            dist.all_gather_object(sent, peer.sent_bytes)
            cell["sent_bytes"] = sum(sent)
        cells.append(cell)
        if enough(seconds):
            break
    cells += bench_load(peer, state, step, repeats, "load, same world")
    return cells


def bench_load(
    peer: Peer, state: State, step: int, repeats: int, operation: str
) -> list[dict[str, Any]]:
    # ones, not zeros: memory that a training process has touched, as its model is
    into = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    cells = []
    for _ in range(repeats):
        seconds, _r = timed(lambda: peer.load(into, step))
        cells.append({"peer": peer.name, "operation": operation, "seconds": seconds})
        if enough(seconds):
            break
    check_same(peer.name, state, into)
    return cells


def train_steps(stop: Any) -> list[float]:
    """Seconds of training steps on one thread until `stop()`."""
    weights = torch.randn(512, 512)
    batch = torch.randn(256, 512)
    times = []
    while not stop():
        begun = time.perf_counter()
        for _ in range(4):
            batch = torch.tanh(batch @ weights) * 0.5
        times.append(time.perf_counter() - begun)
    return times


def bench_slowdown(uri: str, state: State, repeats: int) -> list[dict[str, Any]]:
    """Step time on rank 0 alone, and while its save uploads."""
    peer = Rayburst(f"{uri}/slowdown")
    peer.save(state, 0)
    alone: list[float] = []
    during: list[float] = []
    for step in range(1, 1 + repeats):  # in turns, so that what else runs disturbs both alike
        until = time.perf_counter() + 1.5
        alone += train_steps(lambda until=until: time.perf_counter() > until)
        for tensor in state.values():
            tensor.add_(1.0)
        handle = peer._checkpoints.async_save(state, step=step)
        during += train_steps(handle.done)
        handle.result()
    peer.close()
    cell = {"peer": peer.name, "operation": "training step", "alone_s": statistics.mean(alone)}
    return [cell | {"during_upload_s": statistics.mean(during), "steps": len(during)}]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    state = make_state(job["size_bytes"], job["tensors"], job["seed"])
    uri, repeats = job["uri"], job["repeats"]
    cells: list[dict[str, Any]] = []
    if job["mode"] == "limits":
        cells += bench_limits(uri, state, repeats)
    elif job["mode"] == "limits of another world":
        cells += bench_limits_of_another_world(uri, state, repeats)
    elif job["mode"] == "save":
        warm_up(uri, job["size_bytes"])
        for peer in peers(uri):
            gc.collect()
            cells += bench_peer(peer, state, repeats, base=1)
            peer.close()
            if dist.get_rank() == 0:
                print(f"{time.strftime('%H:%M:%S')}   {peer.name} is done", flush=True)
    elif job["mode"] == "load":
        for peer in peers(uri):
            # each peer in turn saved the state that the one before it had left
            saved = job["saved"][peer.name]
            for step in range(2, 2 + saved):
                change_a_tenth(state, step)
            cells += bench_load(peer, state, 1 + saved, repeats, "load, other world")
            peer.close()
    else:
        cells += bench_slowdown(uri, state, repeats)
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(cells))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
