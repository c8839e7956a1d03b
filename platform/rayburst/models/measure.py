"""What variants of a model are worth here: agreement on real text, latency by batch.

    texts = spread(held_out_bytes, block=64, count=256)
    table = measure({"fp32": model, "int8": cheaper}, texts, batches=(1, 8, 32))

Agreement is the share of positions at which the likeliest next token is that of the first model
given; for the others the same is told for each threshold of a cascade to the first. A latency is
one forward pass over so many whole texts. The variants take turns, one pass each, so what else the
machine does meets all of them alike; still it is a figure of this host, at this number of threads,
with what ran beside it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rayburst.errors import DataError
from rayburst.models.escalation import curve
from rayburst.models.manifest import Escalation, Host, Latency, Measured
from rayburst.train.gpt import GPT
from rayburst.train.hardware import hardware_class
from rayburst.train.text import Bytes, windows

__all__ = ["BATCHES", "TEXTS", "host_of", "measure", "spread"]

BATCHES = (1, 2, 4, 8, 16, 32)
TEXTS = 256
ROUNDS = 11
_AT_ONCE = 32
_CELL_S = 6.0
"""Turns of one batch size end after this, when each variant had five."""


def spread(data: Bytes, *, block: int, count: int = TEXTS) -> Tensor:
    """At most `count` texts of `block` + 1 bytes, spread evenly: LongTensor [texts, block + 1].

    DataError when there is not one.
    """
    if data.size <= block:
        raise DataError(
            f"the text has {data.size} bytes and the model compares {block + 1} at a time: give "
            "more text"
        )
    count = min(count, max(1, (data.size - 1) // block))
    starts = np.linspace(0, data.size - block - 1, count).astype(np.int64)
    inputs, targets = windows(data, starts, block)
    return torch.cat((inputs, targets[:, -1:]), dim=1)


def measure(
    models: Mapping[str, GPT],
    texts: Tensor,
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measured]:
    """A row for each model; the first one is what the others should agree with.

    `texts`: LongTensor [texts, tokens + 1]. `threads`: of torch, by default as many as it has here.
    """
    with _threads(threads):
        judged = _judged(models, texts)
        timed = _timed(models, texts[:, :-1], batches, rounds, clock)
        host = host_of()
    return {
        name: Measured(
            agreement=judged[name][0],
            bits_per_byte=judged[name][1],
            positions=texts[:, 1:].numel(),
            tokens=texts.shape[1] - 1,
            latency=timed[name],
            host=host,
            escalation=judged[name][2],
        )
        for name in models
    }


def host_of() -> Host:
    """This machine as torch would use it now."""
    found = hardware_class(torch.device("cpu"))
    known = {name: found[name] for name in ("cpu", "vector_instructions", "threads", "torch")}
    return Host(cores=len(os.sched_getaffinity(0)), **known)


@torch.inference_mode()
def _judged(
    models: Mapping[str, GPT], texts: Tensor
) -> dict[str, tuple[float, float, tuple[Escalation, ...]]]:
    """Agreement with the first model, bits a byte, and what a cascade to the first would give."""
    nats = dict.fromkeys(models, 0.0)
    same: dict[str, list[Tensor]] = {name: [] for name in models}
    sure: dict[str, list[Tensor]] = {name: [] for name in models}
    for first in range(0, texts.shape[0], _AT_ONCE):
        rows = texts[first : first + _AT_ONCE]
        likeliest: Tensor | None = None
        for name, model in models.items():
            logits = model(rows[:, :-1])[0]
            mine = logits.argmax(dim=-1)
            likeliest = mine if likeliest is None else likeliest
            same[name].append((mine == likeliest).flatten())
            sure[name].append(logits.float().softmax(dim=-1).amax(dim=-1).flatten())
            nats[name] += float(GPT.loss(logits, rows[:, 1:])) * rows.shape[0]
    judged = {}
    for place, name in enumerate(models):
        alike, confidence = torch.cat(same[name]).numpy(), torch.cat(sure[name]).numpy()
        points = curve(confidence, alike) if place else ()
        judged[name] = (
            float(alike.mean()),
            nats[name] / texts.shape[0] / math.log(2),
            points,
        )
    return judged


@torch.inference_mode()
def _timed(
    models: Mapping[str, GPT],
    inputs: Tensor,
    batches: Sequence[int],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, tuple[Latency, ...]]:
    found: dict[str, list[Latency]] = {name: [] for name in models}
    for batch in batches:
        rows = inputs[torch.arange(batch) % inputs.shape[0]]
        took: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            model(rows)  # the first pass of a shape makes its kernels
        began = clock()
        for turn in range(rounds):
            if turn >= min(5, rounds) and clock() - began > _CELL_S:
                break
            for name, model in models.items():
                start = clock()
                model(rows)
                took[name].append((clock() - start) * 1000)
        for name, times in took.items():
            found[name].append(
                Latency(
                    batch=batch,
                    median_ms=float(np.median(times)),
                    p95_ms=float(np.quantile(times, 0.95, method="higher")),
                    runs=len(times),
                )
            )
    return {name: tuple(rows) for name, rows in found.items()}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
