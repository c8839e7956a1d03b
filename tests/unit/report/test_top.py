"""The live screen shows what matters first, whatever its size, and says unknown for unknown."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from rayburst.fleet.status import NodeStatus
from rayburst.report.top import JobSeen, PoolSeen, Snapshot, TakenSeen, draw


def node(name: str, market: str, *, price: float | None = 1.0, left: float | None = None):
    return NodeStatus(
        node=name,
        pool=name.rsplit("-", 1)[0],
        market=market,
        state="draining" if left is not None else "up",
        address="127.0.0.1",
        age_s=90.0,
        price_usd_per_hour=price,
        notice_left_s=left,
    )


SEEN = Snapshot(
    fleet="lab",
    clock="12:00:00",
    pools=[
        PoolSeen(name="spot-a", market="spot", living=2, most=40, price_usd_per_hour=None),
        PoolSeen(name="rack", market="on-prem", living=1, most=2, price_usd_per_hour=0.35),
    ],
    nodes=[node("rack-1", "on-prem", price=0.35), node("spot-a-1", "spot", left=14.0)],
    jobs=[JobSeen(id="first", status="RUNNING", last_line="step 4/9 loss 2.1  ETA 3 min 49 s")],
    pending=["{CPU: 1}", "{CPU: 1}"],
    taken=[TakenSeen(ago_s=6, node="spot-a-9", market="spot", words="power cut")],
    usd=1.0,
    usd_if_on_demand=4.0,
)


def shown(seen: Snapshot, height: int = 40) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=110).print(draw(seen, height=height))
    return text.getvalue().splitlines()


def line(lines: list[str], words: str) -> str:
    return next(text for text in lines if words in text)


def test_money_pools_nodes_jobs_and_losses_are_there():
    lines = shown(SEEN)
    assert "$1.35/h" in line(lines, "fleet lab")
    assert "(75% saved)" in line(lines, "fleet lab")
    assert "■ □" in line(lines, "rack ") and "1 of 2" in line(lines, "rack ")
    assert "unknown" in line(lines, "spot-a  ")
    assert "14 s" in line(lines, "spot-a-1")
    assert "step 4/9 loss 2.1" in line(lines, "first") and "3 min 49 s" in line(lines, "first")
    assert "2 x {CPU: 1}" in line(lines, "pending")
    assert "power cut" in line(lines, "spot-a-9")


def test_on_prem_stands_first_and_a_node_with_notice_above_all():
    lines = shown(SEEN)
    assert lines.index(line(lines, "rack ")) < lines.index(line(lines, "spot-a  "))
    assert lines.index(line(lines, "spot-a-1")) < lines.index(line(lines, "rack-1"))


def test_an_unknown_price_makes_the_rate_unknown():
    lines = shown(replace(SEEN, nodes=[node("spot-a-1", "spot", price=None)], usd=None))
    assert line(lines, "fleet lab").count("unknown") == 2


def test_a_low_terminal_hides_nodes_and_says_how_many():
    many = replace(SEEN, nodes=[node(f"rack-{i:03}", "on-prem") for i in range(60)])
    for height in (32, 40, 60):
        lines = shown(many, height=height)
        shown_nodes = sum("rack-0" in text for text in lines)
        assert f"and {60 - shown_nodes} more" in "\n".join(lines)
        assert len(lines) <= height


def test_an_empty_fleet_says_so_and_problems_are_told():
    empty = replace(SEEN, nodes=[], jobs=[], pending=[], taken=[], problems=["the agent is dead"])
    text = "\n".join(shown(empty))
    assert "they come when work asks" in text and "the agent is dead" in text
