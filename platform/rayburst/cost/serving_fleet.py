"""The cheapest machines that serve several models at their rates: packing, solved exactly.

    lm = Model(name="lm", memory_gib=6, rate_per_s=900, replica_rate={"g5": 120})
    g5 = Machine(name="g5", usd_per_hour=1.0, memory_gib=22)
    fleet = cheapest_fleet(machines=[g5], models=[lm])
    fleet.usd_per_hour, fleet.usd_per_million["lm"], fleet.machines

Each machine holds a set of replicas that fits its memory and its slots; a replica serves so many
requests a second *at the promised latency*, which is measured and not derived. Whole machines and
whole replicas: an integer programme over the fillings of each machine type (cutting stock, Gilmore
and Gomory 1961), by HiGHS through scipy. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rayburst.errors import PriceError

_MOST_FILLINGS = 20_000
Filling = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A kind of machine. `slots`: replicas at the most, whatever their size (CPUs, GPU shares)."""

    name: str
    usd_per_hour: float
    memory_gib: float
    most: int = 1000
    slots: int = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model to be served at a promised latency.

    Attributes:
        rate_per_s: requests that come at the peak.
        replica_rate: requests a second that one replica serves within the promise, by machine;
            where it is absent the model does not run on that machine.
        replicas: as few at the least, so that one may be lost.
    """

    name: str
    memory_gib: float
    rate_per_s: float
    replica_rate: Mapping[str, float]
    replicas: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingFleet:
    """The answer.

    Attributes:
        machines: (machine, replicas by model on each of them, how many of these).
        usd_per_million: of each model, by the share of each machine's memory its replicas take.
    """

    machines: Sequence[tuple[str, Mapping[str, int], int]]
    usd_per_hour: float
    usd_per_million: Mapping[str, float]


def cheapest_fleet(*, machines: Sequence[Machine], models: Sequence[Model]) -> ServingFleet:
    """The cheapest fleet that serves every model.

    Raises:
        PriceError: no fleet of these machines does; says for which model.
    """
    columns = [(m, filling) for m in machines for filling in fillings(m, models)]
    for place, model in enumerate(models):
        if model.rate_per_s <= 0 or not any(filling[place] for _, filling in columns):
            raise PriceError(
                f"{model.name}: {model.rate_per_s} requests/s, {model.memory_gib} GiB: give a rate "
                f"above 0 and a machine it fits on ({', '.join(m.name for m in machines)})"
            )
    counts = _solve(columns, machines, models)
    chosen = [(c, n) for c, n in zip(columns, counts, strict=True) if n]
    told = [
        (machine.name, {m.name: k for m, k in zip(models, filling, strict=True) if k}, n)
        for (machine, filling), n in chosen
    ]
    usd_per_hour = sum(machine.usd_per_hour * n for (machine, _), n in chosen)
    return ServingFleet(
        machines=told, usd_per_hour=usd_per_hour, usd_per_million=_per_million(chosen, models)
    )


def fillings(machine: Machine, models: Sequence[Model]) -> list[Filling]:
    """Every set of replicas that one machine can hold and that no other set contains."""
    found = [f for f in _fill(machine, models, 0, machine.memory_gib, machine.slots) if any(f)]
    if len(found) > _MOST_FILLINGS:
        raise PriceError(
            f"{machine.name} can be filled in {len(found)} ways, more than {_MOST_FILLINGS}: give "
            "fewer slots or fewer models at once"
        )
    held = set(found)
    return sorted(f for f in held if not any(_grown(f, i) in held for i in range(len(f))))


def _fill(
    machine: Machine, models: Sequence[Model], place: int, room_gib: float, slots: int
) -> Iterator[Filling]:
    if place == len(models):
        yield ()
        return
    model = models[place]
    most = min(slots, int(room_gib / model.memory_gib + 1e-9)) if model.memory_gib else slots
    if machine.name not in model.replica_rate:
        most = 0
    for count in range(most + 1):
        left_gib = room_gib - count * model.memory_gib
        for rest in _fill(machine, models, place + 1, left_gib, slots - count):
            yield (count, *rest)


def _grown(filling: Filling, place: int) -> Filling:
    return (*filling[:place], filling[place] + 1, *filling[place + 1 :])


def _solve(
    columns: Sequence[tuple[Machine, Filling]], machines: Sequence[Machine], models: Sequence[Model]
) -> list[int]:
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    cost = np.array([machine.usd_per_hour for machine, _ in columns])
    rate = np.array([[f[i] * model.replica_rate.get(m.name, 0.0) for m, f in columns]
                     for i, model in enumerate(models)])  # fmt: skip
    copies = np.array([[f[i] for _, f in columns] for i in range(len(models))])
    limit = np.array([[float(m.name == kind.name) for m, _ in columns] for kind in machines])
    answer = milp(
        c=cost,
        constraints=[
            LinearConstraint(rate, lb=[model.rate_per_s for model in models]),
            LinearConstraint(copies, lb=[model.replicas for model in models]),
            LinearConstraint(limit, ub=[kind.most for kind in machines]),
        ],
        integrality=np.ones(len(columns)),
        bounds=Bounds(lb=0),
        options={"mip_rel_gap": 0.0},
    )
    if answer.x is None:
        wanted = ", ".join(f"{model.name} {model.rate_per_s}/s" for model in models)
        raise PriceError(f"no fleet within the limits serves {wanted}: {answer.message}")
    return [round(float(x)) for x in answer.x]


def _per_million(
    chosen: Sequence[tuple[tuple[Machine, Filling], int]], models: Sequence[Model]
) -> dict[str, float]:
    """Dollars for 10^6 requests: a machine's price, split by the memory its replicas take."""
    paid = dict.fromkeys((model.name for model in models), 0.0)
    for (machine, filling), count in chosen:
        sizes = [k * max(m.memory_gib, 1e-9) for k, m in zip(filling, models, strict=True)]
        for size, model in zip(sizes, models, strict=True):
            paid[model.name] += machine.usd_per_hour * count * size / sum(sizes)
    return {m.name: paid[m.name] / (m.rate_per_s * 3600) * 1e6 for m in models}
