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
from checkpoint_peers import Peer, Rayburst, State, limits, peers

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


def memcpy_s(state: State, repeats: int) -> float:
    """Median of a per-tensor copy_ of the state into buffers that are reused."""
    buffers = {name: tensor.clone() for name, tensor in state.items()}
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        begun = time.perf_counter()
        for name, tensor in state.items():
            buffers[name].copy_(tensor)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


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


def bench_limits(uri: str, size_bytes: int, repeats: int) -> list[dict[str, Any]]:
    cells = []
    for raw in limits(uri):
        raw.prepare(size_bytes)
        for operation, action in (("raw put", raw.save), ("raw get", raw.load)):
            for _ in range(repeats):
                seconds, _r = timed(lambda action=action: action({}, 0))
                cells.append({"peer": raw.name, "operation": operation, "seconds": seconds})
    return cells


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
    cells += bench_load(peer, state, base + repeats, repeats, "load, same world")
    return cells


def bench_load(
    peer: Peer, state: State, step: int, repeats: int, operation: str
) -> list[dict[str, Any]]:
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    cells = []
    for _ in range(repeats):
        seconds, _r = timed(lambda: peer.load(into, step))
        cells.append({"peer": peer.name, "operation": operation, "seconds": seconds})
        slow = torch.tensor(seconds > SLOW_S)
        dist.broadcast(slow, 0)
        if slow:
            break  # once is enough to know
    for name, tensor in state.items():
        if not torch.equal(tensor, into[name]):
            raise SystemExit(f"{peer.name}: {name} came back different")
    return cells


def bench_full_saves(uri: str, state: State, repeats: int) -> list[dict[str, Any]]:
    """Whole saves in the steady state: every byte differs from the last save."""
    cells = []
    peer = Rayburst(f"{uri}/full")
    for step in range(repeats + 1):
        for tensor in state.values():
            tensor.add_(1.0)
        seconds, stall = timed(lambda step=step: peer.save(state, step))
        if step:
            cell = {"peer": peer.name, "operation": "whole save again", "seconds": seconds}
            cells.append(cell | {"stall_s": stall})
    peer.close()
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


def bench_slowdown(uri: str, state: State) -> list[dict[str, Any]]:
    """Step time on rank 0 alone, and while its save uploads."""
    peer = Rayburst(f"{uri}/slowdown")
    peer.save(state, 0)
    until = time.perf_counter() + 2.0
    alone = train_steps(lambda: time.perf_counter() > until)
    during: list[float] = []
    for step in range(1, 4):
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
    if job["mode"] == "save":
        cells.append({"operation": "memcpy", "seconds": memcpy_s(state, max(5, repeats))})
        for lap in range(job["laps"]):
            cells += bench_limits(f"{uri}/raw{lap}", job["size_bytes"], repeats)
            for peer in peers(f"{uri}/{lap}"):
                gc.collect()
                cells += bench_peer(peer, state, repeats, base=1 + lap * 100)
                peer.close()
                if dist.get_rank() == 0:
                    print(f"{time.strftime('%H:%M:%S')}   {peer.name} is done", flush=True)
            cells += bench_full_saves(f"{uri}/{lap}", state, repeats)
        if dist.get_world_size() > 1:
            dist.barrier()
    elif job["mode"] == "load":
        for peer in peers(f"{uri}/0"):
            for step in range(2, 2 + job["saved_repeats"]):
                change_a_tenth(state, step)
            # each peer in turn saved the state that the one before it had left
            cells += bench_load_only(peer, state, 1 + job["saved_repeats"], repeats)
            peer.close()
    else:
        cells += bench_slowdown(uri, state)
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(cells))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def bench_load_only(peer: Peer, state: State, step: int, repeats: int) -> list[dict[str, Any]]:
    return bench_load(peer, state, step, repeats, "load, other world")


if __name__ == "__main__":
    main()
