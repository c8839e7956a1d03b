"""Requests onto nodes: resources, label selectors, spread. Pure.

First fit over the bins in the order given. Ray's own scheduler places the work in the end; this
only has to agree with it on what fits where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

_EPSILON = 1e-6


class RequestKind(StrEnum):
    """Why resources are asked for."""

    TASK = "task"
    """A pending task, actor or placement-group bundle: needs what is free."""
    FLOOR = "floor"
    """A standing request (`request_resources`, Ray Train's size): needs what is there at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRule:
    """One term of a label selector: the label's value is (or, negated, is not) among `values`."""

    key: str
    values: frozenset[str]
    negated: bool = False

    def accepts(self, labels: Mapping[str, str]) -> bool:
        return (labels.get(self.key) in self.values) is not self.negated


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One bundle of resources that must fit one node.

    Attributes:
        selector: all rules must accept the node's labels.
        apart: requests that share this name must be on different nodes.
    """

    resources: Mapping[str, float]
    kind: RequestKind = RequestKind.TASK
    selector: Sequence[LabelRule] = ()
    apart: str = ""

    def __str__(self) -> str:
        amounts = ", ".join(f"{k}: {v:g}" for k, v in sorted(self.resources.items()))
        rules = ", ".join(
            f"{rule.key} {'not in' if rule.negated else 'in'} {'|'.join(sorted(rule.values))}"
            for rule in self.selector
        )
        return f"{{{amounts}}}" + (f" where {rules}" if rules else "")


@dataclass(kw_only=True, slots=True)
class Bin:
    """A node being filled: tasks take from what is free, floors from all it has."""

    name: str
    labels: Mapping[str, str]
    left: dict[RequestKind, dict[str, float]]
    apart: set[str] = field(default_factory=set)
    used: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        total: Mapping[str, float],
        available: Mapping[str, float],
        labels: Mapping[str, str],
    ) -> Bin:
        left = {RequestKind.TASK: dict(available), RequestKind.FLOOR: dict(total)}
        return cls(name=name, labels=labels, left=left)

    def fits(self, request: Request) -> bool:
        left = self.left[request.kind]
        return (
            all(left.get(k, 0.0) >= v - _EPSILON for k, v in request.resources.items() if v > 0)
            and all(rule.accepts(self.labels) for rule in request.selector)
            and not (request.apart and request.apart in self.apart)
        )

    def take(self, request: Request) -> None:
        left = self.left[request.kind]
        for name, amount in request.resources.items():
            left[name] = left.get(name, 0.0) - amount
        if request.apart:
            self.apart.add(request.apart)
        self.used = True


def place(request: Request, bins: Sequence[Bin]) -> bool:
    """Put `request` into the first bin that fits; False when none does."""
    for candidate in bins:
        if candidate.fits(request):
            candidate.take(request)
            return True
    return False
