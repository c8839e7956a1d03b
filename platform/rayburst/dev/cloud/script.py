"""What happens in a cloud in a box, and when: a script, or what a recorded trace comes to. Pure.

    steps = parse_script(Path("outage.yaml").read_text(), source="outage.yaml")
    steps = from_traces(read_traces(folder), zones=("us-east-1a",), hosts=4)

A script is a list of steps in YAML, each with `at` (seconds, or `90s`, `2m`) and one deed:

    - {at: 0s, capacity: 4, zone: us-east-1a}
    - {at: 0s, price: 0.09 USD/h, zone: us-east-1a, type: m6i.large}
    - {at: 60s, capacity: 0, zone: us-east-1a, notice: 2m}    # what is above it gets notice
    - {at: 61s, rebalance: 1, zone: us-east-1b}               # a recommendation to one instance
    - {at: 62s, interrupt: 1, zone: us-east-1b, notice: 30s}  # 0s is a power cut
    - {at: 70s, fail: CreateFleet, code: RequestLimitExceeded, times: 5}
    - {at: 80s, quota: 8, market: spot}
    - {at: 90s, boots_fail: 1}                                # the next instance never joins
    - {at: 95s, cut_network: 1, zone: us-east-1b}

It does nothing by itself: `cloud.py` carries steps out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rayburst.dev.cloud.market import ANY
from rayburst.errors import SpecError
from rayburst.fleet import units
from rayburst.fleet.replay.traces import UNKNOWN, ZoneTrace

NOTICE_S = 120.0
"""What EC2 gives."""

_DEEDS: Mapping[str, tuple[str, ...]] = {
    "capacity": ("zone", "market", "type", "notice"),
    "price": ("zone", "type"),
    "rebalance": ("zone",),
    "interrupt": ("zone", "notice"),
    "fail": ("code", "status", "times"),
    "quota": ("market",),
    "boots_fail": (),
    "cut_network": ("zone",),
}
_NEEDED = {"capacity": "zone", "price": "zone", "fail": "code"}
_NUMBERS = ("capacity", "rebalance", "interrupt", "quota", "boots_fail", "cut_network")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One deed at a time.

    Attributes:
        at_s: seconds since the cloud came up, before any change of speed.
        deed: one of the words of this module's docstring; `amount` is what it was given.
        notice_s: warning of instances that are taken, in real seconds whatever the speed.
    """

    at_s: float
    deed: str
    amount: float | str
    zone: str = ""
    kind: str = ANY
    market: str = "spot"
    notice_s: float = NOTICE_S
    code: str = ""
    status: int = 503
    times: int = 1


def parse_script(text: str, source: str) -> list[Step]:
    """The steps of a script, in the order of their times. Raises SpecError."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{source} is no YAML: {error}") from None
    if not isinstance(given, list):
        raise SpecError(f"{source}: a script is a list of steps, {_EXAMPLE}")
    steps = [_step(one, f"{source}, step {number}") for number, one in enumerate(given, 1)]
    return sorted(steps, key=lambda step: step.at_s)


_EXAMPLE = "as in  - {at: 60s, capacity: 0, zone: us-east-1a}"


def _step(given: object, where: str) -> Step:
    if not isinstance(given, dict) or "at" not in given:
        raise SpecError(f"{where} is {given!r}; it needs `at`, {_EXAMPLE}")
    deeds = [word for word in given if word in _DEEDS]
    if len(deeds) != 1:
        raise SpecError(f"{where} has {deeds or 'no deed'}; it needs one of {', '.join(_DEEDS)}")
    deed = deeds[0]
    known = ("at", deed, *_DEEDS[deed])
    if unknown := [str(word) for word in given if word not in known]:
        raise SpecError(f"{where}: {', '.join(unknown)} means nothing to {deed}; known: {known}")
    if (needed := _NEEDED.get(deed)) and needed not in given:
        raise SpecError(f"{where}: {deed} needs {needed}, {_EXAMPLE}")
    try:
        return _made(given, deed)
    except (TypeError, ValueError, SpecError) as error:
        raise SpecError(f"{where} is {given}: {error}") from None


def _made(given: Mapping[str, Any], deed: str) -> Step:
    amount: float | str = str(given[deed])
    if deed == "price":
        amount = _known_price(str(given[deed]))
    elif deed in _NUMBERS:
        amount = float(int(given[deed]))
    market = str(given.get("market", "spot"))
    if market not in ("spot", "on-demand"):
        raise SpecError(f"market is {market!r}; it is spot or on-demand")
    return Step(
        at_s=_seconds(given["at"]),
        deed=deed,
        amount=amount,
        zone=str(given.get("zone", "")),
        kind=str(given.get("type", ANY)),
        market=market,
        notice_s=_seconds(given.get("notice", NOTICE_S)),
        code=str(given.get("code", "")),
        status=int(given.get("status", 503)),
        times=int(given.get("times", 1)),
    )


def _known_price(given: str) -> float:
    if (price := units.rate_usd_per_hour(given)) is None:
        raise SpecError("a price is dollars an hour: 0.09 USD/h")
    return price


def _seconds(given: object) -> float:
    return float(given) if isinstance(given, int | float) else units.duration_s(given)


def from_traces(
    traces: Sequence[ZoneTrace], *, zones: Sequence[str], hosts: int, notice_s: float = NOTICE_S
) -> list[Step]:
    """What recorded spot markets did, as steps: one trace a zone, in the order of both.

    A trace of one node stands for `hosts` of them; one that counts nodes stands for itself. What
    was not recorded changes nothing.

    Raises:
        SpecError: there are more traces than zones.
    """
    if len(traces) > len(zones):
        names = ", ".join(trace.name for trace in traces)
        raise SpecError(
            f"{len(traces)} traces ({names}) and {len(zones)} zones; give as many zones, or the "
            f"file of one trace"
        )
    steps = [
        Step(at_s=at, deed="capacity", amount=count, zone=zone, notice_s=notice_s)
        for trace, zone in zip(traces, zones, strict=False)
        for at, count in _changes(trace, hosts)
    ]
    return sorted(steps, key=lambda step: step.at_s)


def _changes(trace: ZoneTrace, hosts: int) -> Iterable[tuple[float, float]]:
    each = hosts if trace.count.max() <= 1 else 1
    before: int | None = None
    for tick, count in enumerate(trace.count.tolist()):
        if count not in (before, UNKNOWN):
            yield tick * trace.tick_s, float(count * each)
            before = count
