"""Requests onto nodes: resources, label selectors, spread. Pure.

First fit over the bins in the order given. Ray's own scheduler places the work in the end; this
only has to agree with it on what fits where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        or_else: selectors that will do where no node can be had by `selector`, best first.
        apart: requests that share this name must be on different nodes.
        in_gang: it is one bundle of a placement group.
    """

    resources: Mapping[str, float]
    kind: RequestKind = RequestKind.TASK
    selector: Sequence[LabelRule] = ()
    or_else: Sequence[Sequence[LabelRule]] = ()
    apart: str = ""
    in_gang: bool = False

    @property
    def key(self) -> object:
        """What is equal for requests that fit the same nodes."""
        return (
            tuple(sorted(self.resources.items())),
            self.kind,
            tuple(self.selector),
            tuple(tuple(selector) for selector in self.or_else),
            self.apart,
        )

    def ways(self) -> list[Request]:
        """The request by each of its selectors alone, best first."""
        if not self.or_else:
            return [self]
        selectors = (self.selector, *self.or_else)
        return [replace(self, selector=selector, or_else=()) for selector in selectors]

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

    @property
    def state(self) -> object:
        """What is equal for bins that the same requests fit."""
        left = tuple(tuple(sorted(amounts.items())) for amounts in self.left.values())
        return (left, frozenset(self.apart), self.used)

    def copy(self, name: str) -> Bin:
        """The same under another name."""
        return Bin(
            name=name,
            labels=self.labels,
            left={kind: dict(amounts) for kind, amounts in self.left.items()},
            apart=set(self.apart),
            used=self.used,
        )

    def fits(self, request: Request) -> bool:
        left = self.left[request.kind]
        for name, amount in request.resources.items():
            if amount > 0 and left.get(name, 0.0) < amount - _EPSILON:
                return False
        if request.apart and request.apart in self.apart:
            return False
        return all(rule.accepts(self.labels) for rule in request.selector)

    def take_some(self, request: Request, count: int) -> int:
        """Take as many of `count` equal requests as fit; returns how many."""
        taken = 0
        while taken < count and self.fits(request):
            self.take(request)
            taken += 1
        return taken

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


def hardest_first(requests: Sequence[Request]) -> list[tuple[Request, int]]:
    """Equal requests with their number; picky ones before those that fit anywhere, so that these
    do not take their nodes."""
    first: dict[object, Request] = {}
    counts: Counter[object] = Counter()
    for request in requests:
        key = request.key
        first.setdefault(key, request)
        counts[key] += 1
    found = [(request, counts[key]) for key, request in first.items()]
    return sorted(found, key=lambda one: _hardness(one[0]))


def _hardness(request: Request) -> tuple[bool, float]:
    return (not request.selector, -max(request.resources.values(), default=0.0))


def new_bin(pool: str, resources: Mapping[str, float], labels: Mapping[str, str]) -> Bin:
    """A node that a pool could launch."""
    return Bin.of(f"new-{pool}", resources, resources, labels)


class Shelf:
    """Bins in classes of equal ones, each with its number: first fit over classes, so that
    thousands cost little.

    `put` bins, or `add` a node, then `place`.
    """

    def __init__(self) -> None:
        self._classes: dict[object, _Class] = {}
        self._tried: dict[object, int] = {}
        self._order: list[_Class] = []

    def put(self, bin_: Bin, count: int = 1) -> None:
        """Place equal bins on the shelf, behind what is there."""
        key = (tuple(sorted(bin_.labels.items())), bin_.state)
        found = self._classes.get(key) or self._new(key, bin_)
        if not found.count:  # whoever passed it by while it was empty looks again
            self._tried = {k: min(tried, found.index) for k, tried in self._tried.items()}
        found.count += count

    def add(
        self,
        pool: str,
        total: Mapping[str, float],
        available: Mapping[str, float],
        labels: Mapping[str, str],
    ) -> None:
        """Place a node of a pool on the shelf; nodes of one pool have the same labels."""
        key = (pool, frozenset(total.items()), frozenset(available.items()))
        found = self._classes.get(key) or self._new(key, Bin.of(pool, total, available, labels))
        found.count += 1

    def place(self, request: Request, count: int) -> int:
        """Put `count` equal requests into the first bins that fit; returns how many found one."""
        key, placed = request.key, 0
        index = self._tried.get(key, 0)
        while placed < count and index < len(self._order):
            found = self._order[index]
            if not found.count or not found.sample.fits(request):
                index += 1
                continue
            filled = found.sample.copy(found.sample.name)
            each = filled.take_some(request, count - placed)
            bins = min((count - placed) // each, found.count)
            placed += bins * each
            found.count -= bins
            self._tried[key] = index
            self.put(filled, bins)
            index = self._tried[key]
        self._tried[key] = index
        return placed

    def _new(self, key: object, sample: Bin) -> _Class:
        found = self._classes[key] = _Class(sample=sample, index=len(self._order))
        self._order.append(found)
        return found


@dataclass(kw_only=True, slots=True)
class _Class:
    """So many equal bins; the sample is never filled itself."""

    sample: Bin
    index: int
    count: int = 0
