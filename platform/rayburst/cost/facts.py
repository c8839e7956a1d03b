"""All that the ledger is made from: node events, who held what, run logs, other charges. Pure.

Facts are records of what was seen; nothing in them is worked out. The same facts give the same
ledger, on whatever machine and in whatever order they arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rayburst.cost.entries import Owner
from rayburst.fleet.events import NodeEvent

_EXACT = 10**6  # resources are given in Ray to 1/10,000


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Resources of one node that belonged to somebody for a time.

    Attributes:
        id: of the actor or task that held them, with its node; unique.
        end_ms: None while it is held. A node's end ends every hold on it.
        resources: what was held, as Ray counts it ({"CPU": 1}); empty is the whole node.
        total: what the node has.
        is_reserved: kept for the owner by a grant, whether anything of it runs there or not.
    """

    id: str
    node: str
    owner: Owner
    start_ms: int
    end_ms: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    total: Mapping[str, float] = field(default_factory=dict)
    is_reserved: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """Something that was not a node: objects kept, traffic. `nano_usd` None: price unknown."""

    id: str
    t_ms: int
    owner: Owner
    purpose: str
    quantity: int
    unit: str
    nano_usd: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """`runs` are run logs by the run's name, as `train/runlog.py` reads them."""

    events: Sequence[NodeEvent] = ()
    holds: Sequence[Hold] = ()
    runs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    charges: Sequence[Charge] = ()


def dominant_shares(holds: Sequence[Hold]) -> dict[Owner, Fraction]:
    """What part of a node each owner has, by the resource it has most of; they sum to 1 at most.

    Dominant resource share (Ghodsi et al., NSDI'11): whoever has all GPUs of a node and one of its
    64 CPUs has the node, because nobody else can use it. Where the parts of several sum to more
    than 1 (one has the GPUs, another the CPUs) they are scaled down to 1.
    """
    held: dict[Owner, dict[str, Fraction]] = {}
    for hold in holds:
        parts = held.setdefault(hold.owner, {})
        for name, part in _parts(hold).items():
            parts[name] = parts.get(name, Fraction(0)) + part
    shares = {owner: min(Fraction(1), max(p.values())) for owner, p in held.items() if p}
    whole = sum(shares.values(), Fraction(0))
    return {owner: s / whole for owner, s in shares.items()} if whole > 1 else shares


def _parts(hold: Hold) -> dict[str, Fraction]:
    if not hold.resources:
        return {"node": Fraction(1)}
    return {
        name: _exact(amount) / _exact(hold.total[name])
        for name, amount in hold.resources.items()
        if hold.total.get(name, 0) > 0
    }


def _exact(number: float) -> Fraction:
    return Fraction(number).limit_denominator(_EXACT)
