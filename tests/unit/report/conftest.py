"""A demo as it goes: on-prem and spot nodes, one notice, one power cut, then serving."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

T0 = 1_767_000_000.0


@dataclass
class Story:
    """The three inputs of a report, in the formats of report.json, events and run log."""

    report: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


def _node(story: Story, name: str, market: str, **times: float) -> None:
    price = {"on-prem": 0.0212, "spot": 0.0148, "on-demand": 0.0496}[market]
    for kind, t in times.items():
        story.events.append(
            {
                "t": T0 + t,
                "kind": kind,
                "node": name,
                "pool": name.rsplit("-", 1)[0],
                "market": market,
                "price_usd_per_hour": price,
                "why": kind,
            }
        )


def _train(
    story: Story, hosts: list[str], start: float, end: float, step: int, rng: random.Random
) -> int:
    """Steps of 0.55 s on `hosts` from `start` to `end`; returns the last step done."""
    for rank, host in enumerate(hosts):
        story.log.append(
            {"t": T0 + start + 0.1 * rank, "kind": "start", "rank": rank, "world": len(hosts),
             "step": step, "host": host, "market": "spot", "pool": "p"}
        )  # fmt: skip
    at = start + 3.5
    while at + 0.55 < end:
        at, step = at + 0.55, step + 1
        for rank in range(len(hosts)):
            loss = (2.05 + 3.6 * math.exp(-step / 55)) + rng.gauss(0, 0.06)
            story.log.append(
                {"t": T0 + at + rng.uniform(0, 0.02), "kind": "step", "rank": rank,
                 "world": len(hosts), "step": step, "loss": loss, "tokens": 4096,
                 "duration_s": 0.53}
            )  # fmt: skip
        if step % 25 == 0:
            for rank in range(len(hosts)):
                story.log.append(
                    {"t": T0 + at + 0.4, "kind": "checkpoint", "rank": rank, "step": step,
                     "blocked_s": 0.35}
                )  # fmt: skip
            story.log.append(
                {"t": T0 + at + 0.4, "kind": "committed", "rank": 0, "step": step,
                 "uri": f"s3://b/runs/r@{step}", "durable_s": 0.2}
            )  # fmt: skip
            at += 0.4
        if step % 50 == 0:
            bits = (2.1 + 3.6 * math.exp(-step / 55)) / math.log(2)
            story.log.append(
                {"t": T0 + at + 0.9, "kind": "validation", "step": step, "bits_per_byte": bits}
            )
            at += 0.9
    return step


@pytest.fixture
def story() -> Story:
    """A finished demo of about five minutes."""
    rng = random.Random(7)
    made = Story()
    _node(made, "onprem-1", "on-prem", requested=8, up=14, gone=312)
    _node(made, "onprem-2", "on-prem", requested=9, up=15.5, gone=312)
    _node(made, "spot-a-3f2c", "spot", requested=22, up=30, notice=98, draining=98.4, gone=128)
    _node(made, "spot-b-91d0", "spot", requested=23, up=32, gone=168)
    _node(made, "spot-b-77aa", "spot", requested=131, up=176, draining=251, gone=258)
    _node(made, "spot-a-c041", "spot", requested=170, up=181, draining=251, gone=259)
    o1, o2, s1, s2, s3, s4 = (
        "onprem-1", "onprem-2", "spot-a-3f2c", "spot-b-91d0", "spot-b-77aa", "spot-a-c041",
    )  # fmt: skip
    last = _train(made, [o1, o2, s1, s2], 38, 123, 0, rng)
    for rank in range(4):
        made.log.append(
            {"t": T0 + 124, "kind": "leave", "rank": rank, "step": last, "reason": "notice"}
        )
    last = _train(made, [o1, o2, s2], 134, 168, last, rng)
    last = _train(made, [o1, o2, s3, s4], 186, 244, last - 17, rng)
    made.log.append({"t": T0 + 245.5, "kind": "validation", "step": last, "bits_per_byte": 3.071})
    made.log.append(
        {"t": T0 + 246, "kind": "end", "step": last, "val_bits_per_byte": 3.071,
         "order0_bits_per_byte": 4.842}
    )  # fmt: skip
    made.events.sort(key=lambda e: e["t"])
    made.log.sort(key=lambda r: r["t"])
    made.report = _report(last)
    return made


@pytest.fixture
def submitted_again(story: Story) -> Story:
    """The same run, submitted once more five minutes after its end, on two other nodes so far."""
    rng = random.Random(8)
    for node in ("spot-c-10aa", "spot-c-20bb"):
        _node(story, node, "spot", requested=600, up=610)
    last = max(record["step"] for record in story.log)
    _train(story, ["spot-c-10aa", "spot-c-20bb"], 620, 700, last, rng)
    story.log.sort(key=lambda r: r["t"])
    return story


def _report(steps: int) -> dict[str, Any]:
    phases = [
        ("A fleet on this machine", 0, 20),
        ("Train: on-prem first, then spot", 20, 96),
        ("Lose two spot nodes", 96, 190),
        ("Finish", 190, 247),
        ("Serve the model", 247, 301),
        ("Count", 301, 303),
        ("Down", 303, 314),
    ]
    return {
        "job": {"status": "SUCCEEDED", "id": "raysubmit_8c1f", "run": "demo-0413"},
        "training": {
            "steps": steps,
            "world_sizes": [4, 3, 4],
            "val_bits_per_byte": 3.071,
            "order0_bits_per_byte": 4.842,
        },
        "interruptions": [
            {"kind": "notice", "node": "spot-a-3f2c", "notice_s": 30.0, "t": T0 + 98,
             "gap_s": 14.2, "steps_lost": 0},
            {"kind": "cut", "node": "spot-b-91d0", "notice_s": 0.0, "t": T0 + 168,
             "gap_s": 22.6, "steps_lost": 17},
        ],
        "fleet": {"node_seconds": {"on_prem": 594.5, "spot": 452.0, "on_demand": 0.0}},
        "cost": {"usd": 0.005359, "usd_if_on_demand": 0.01442},
        "serving": {"requests": 300, "errors": 0, "p50_ms": 181.4, "p99_ms": 402.9,
                    "requests_per_s": 164.0},
        "wall_s": 316.4,
        "versions": {"rayburst": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "python": "3.11"},
        "started": T0,
        "phases": [{"name": n, "start": T0 + a, "end": T0 + b} for n, a, b in phases],
    }  # fmt: skip
