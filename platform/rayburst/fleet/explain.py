"""A fleet file in words: what may run, what is asked first, what it can cost, what is unknown.

    explain(FleetSpec.load(path))

Pure. Says only what the file says: a cost with an unknown price in it is a sum of the known part
and names the rest. Deliberately does not know: what runs, what hosts cost today.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rayburst.fleet import units
from rayburst.fleet.spec import FleetSpec, Market, PoolSpec


def explain(spec: FleetSpec) -> str:
    """The meaning of a fleet file as plain text, one thought a line."""
    hosts = sum(pool.max_hosts for pool in spec.pools)
    lines = [
        f"fleet {spec.name}: up to {_count(hosts, 'host')} in {_count(len(spec.pools), 'pool')}"
    ]
    if spec.region:
        lines.append(f"region: {spec.region}")
    lines += ["", *_pool_lines(spec.pools), ""]
    lines += [*_order_lines(spec.pools), "", *_cost_lines(spec), "", *_rest_lines(spec)]
    return "\n".join(lines)


def worst_case_usd_per_hour(pools: Iterable[PoolSpec]) -> float:
    """What all hosts of these pools cost in an hour together; unknown prices are not in it."""
    return sum((pool.price_usd_per_hour or 0.0) * pool.max_hosts for pool in pools)


def _pool_lines(pools: Sequence[PoolSpec]) -> list[str]:
    rows = [(p.name, str(p.market), _hosts(p), _shape(p), _price(p), _place(p)) for p in pools]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  " + "  ".join(row).rstrip() for row in padded]


def _hosts(pool: PoolSpec) -> str:
    if pool.max_hosts == 0:
        return "no hosts"
    if pool.min_hosts == pool.max_hosts:
        return f"always {_count(pool.max_hosts, 'host')}"
    return f"{pool.min_hosts} to {_count(pool.max_hosts, 'host')}"


def _shape(pool: PoolSpec) -> str:
    shape = pool.shape
    memory = units.written_bytes(shape.memory_bytes)
    gpus = f", {_count(shape.gpus, 'GPU')}" if shape.gpus else ""
    return f"of {_count(shape.cpus, 'CPU')}, {memory}{gpus} {shape.accelerator or ''}".rstrip()


def _price(pool: PoolSpec) -> str:
    if pool.price_usd_per_hour is None:
        return "at an unknown price"
    return f"at {units.written_money(pool.price_usd_per_hour)} USD/h"


def _place(pool: PoolSpec) -> str:
    return ", ".join(
        f"{word} {value}" for word, value in (("zone", pool.zone), ("region", pool.region)) if value
    )


def _order_lines(pools: Sequence[PoolSpec]) -> list[str]:
    usual = []
    for market in (Market.ON_PREM, Market.SPOT):
        found = [pool for pool in pools if pool.market is market and pool.max_hosts]
        if found:
            names = ", ".join(pool.name for pool in sorted(found, key=_cheapest_first))
            usual.append(f"{names} ({market})")
    on_demand = [p.name for p in pools if p.market is Market.ON_DEMAND and p.max_hosts]
    lines = [f"asked first: {', then '.join(usual)}"] if usual else []
    if on_demand:
        names = ", ".join(on_demand)
        lines.append(f"only for work that asks for on-demand, or whose deadline needs it: {names}")
    if not usual:
        lines.append("no on-prem or spot host: work that does not ask for on-demand waits for ever")
    return lines


def _cheapest_first(pool: PoolSpec) -> tuple[bool, float]:
    return (pool.price_usd_per_hour is None, pool.price_usd_per_hour or 0.0)


def _cost_lines(spec: FleetSpec) -> list[str]:
    most = [(pool, pool.max_hosts) for pool in spec.pools]
    usual = [(pool, count) for pool, count in most if pool.market is not Market.ON_DEMAND]
    always = [(pool, pool.min_hosts) for pool in spec.pools if pool.min_hosts]
    lines = [f"all hosts together: {_hourly(most)}; the head is not counted"]
    if len(usual) < len(most):
        lines.append(f"without on-demand: {_hourly(usual)}")
    lines.append(
        f"hosts that always run: {_hourly(always)}" if always else "without work no host runs"
    )
    return [*lines, _budget_line(spec)]


def _hourly(counts: Sequence[tuple[PoolSpec, int]]) -> str:
    usd = sum((pool.price_usd_per_hour or 0.0) * count for pool, count in counts)
    unknown = _unknown(counts)
    return f"{_usd(usd)} an hour" + (f" and what {unknown} may cost (unknown)" if unknown else "")


def _unknown(counts: Sequence[tuple[PoolSpec, int]]) -> str:
    return ", ".join(p.name for p, count in counts if p.price_usd_per_hour is None and count)


def _budget_line(spec: FleetSpec) -> str:
    budget_usd = spec.limits.budget_usd
    if budget_usd is None:
        return "budget: none is set"
    text = f"budget: {_usd(budget_usd)}"
    if unknown := _unknown([(pool, pool.max_hosts) for pool in spec.pools]):
        return f"{text}; hosts of {unknown} cannot be counted against it"
    hourly_usd = worst_case_usd_per_hour(spec.pools)
    if hourly_usd == 0:
        return f"{text}; no host costs anything"
    minutes = budget_usd / hourly_usd * 60
    lasts = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    return f"{text}; with all hosts it lasts {lasts}"


def _rest_lines(spec: FleetSpec) -> list[str]:
    limits, store = spec.limits, spec.object_store
    idle, drain = map(units.written_duration, (limits.idle_timeout_s, limits.drain_s))
    where = "a server that `rayburst up` starts on this machine"
    if store.uri:
        where = store.uri + (f" at {store.endpoint}" if store.endpoint else "")
    head = _count(spec.head.cpus, "CPU") if spec.head.cpus else "no CPU"
    return [
        f"a host without work goes after {idle}; work has {drain} to leave a host",
        f"the head gives {head} to work",
        f"objects are kept in {where}",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _usd(amount_usd: float) -> str:
    return f"{amount_usd:,.2f} USD"
