"""The kinds of pools there are: rayburst's own, and those that other packages bring.

    open_pool(spec, site)

A package brings a kind by an entry point of the group `rayburst.pools`: its name is the `kind` of
fleet files, its object is called with a PoolSpec and a PoolSite and returns a Pool. A kind of that
name that rayburst has itself is never replaced. `docs/pools.md` has a whole example.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from rayburst.errors import PoolError
from rayburst.fleet.pools.base import Pool, PoolSite
from rayburst.fleet.pools.process import ProcessPool
from rayburst.fleet.pools.ssh import SshPool
from rayburst.fleet.spec import POOL_GROUP, PoolSpec


def open_pool(spec: PoolSpec, site: PoolSite) -> Pool:
    """The pool of a fleet file's entry. Starts nothing.

    Raises:
        PoolError: no package here has this kind, or it cannot be loaded.
    """
    if (opener := _OWN.get(spec.kind)) is not None:
        return opener(spec, site)
    found = {point.name: point for point in entry_points(group=POOL_GROUP)}
    if spec.kind not in found:
        known = ", ".join([*_OWN, *sorted(found)])
        raise PoolError(
            f"pool {spec.name!r} is of kind {spec.kind!r}, which no package here has; known: "
            f"{known}. Install the package that brings it, on the head too"
        )
    pool: Pool = _load(found[spec.kind])(spec, site)
    return pool


def _load(point: EntryPoint) -> Callable[[PoolSpec, PoolSite], Pool]:
    try:
        opener: Callable[[PoolSpec, PoolSite], Pool] = point.load()
    except (ImportError, AttributeError) as error:
        raise PoolError(
            f"the kind {point.name!r} of pools is said to be at {point.value!r} and cannot be "
            f"loaded: {error}"
        ) from error
    return opener


def _process(spec: PoolSpec, site: PoolSite) -> Pool:
    return ProcessPool(spec, fleet_dir=site.folder, subnet=site.subnet, clock=site.clock)


def _ec2(spec: PoolSpec, site: PoolSite) -> Pool:
    from rayburst.fleet.pools.ec2 import Ec2Pool  # it loads boto3

    return Ec2Pool(spec, site)


def _ssh(spec: PoolSpec, site: PoolSite) -> Pool:
    return SshPool(spec, site)


_OWN: dict[str, Callable[[PoolSpec, PoolSite], Pool]] = {
    "process": _process,
    "ssh": _ssh,
    "ec2": _ec2,
}
