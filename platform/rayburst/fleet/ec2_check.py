"""Whether what an `ec2` pool names is there: image, subnets, security groups, types of its shape.

    for find in check_ec2(pool, spec.network): find.said, find.wrong

Asked of EC2 with the credentials of the one who calls; nothing is launched. What only a launch
shows (capacity, quotas, the rights of the profile) is not known here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayburst.errors import PoolError
from rayburst.fleet.kindspec import Ec2Spec
from rayburst.fleet.netspec import NetworkSpec
from rayburst.fleet.pools.ec2_api import Ec2Api
from rayburst.fleet.spec import PoolSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One thing that EC2 was asked about. `wrong` is "" where all is well."""

    about: str
    said: str
    wrong: str = ""


def check_ec2(
    pool: PoolSpec, network: NetworkSpec | None = None, *, api: Ec2Api | None = None
) -> list[Asked]:
    """What EC2 says of all that a pool of kind ec2 names; [] for any other."""
    if pool.ec2 is None or pool.region is None:
        return []
    ec2 = pool.ec2
    ask = api or Ec2Api(pool.name, region=pool.region, endpoint=ec2.endpoint)
    parts: dict[str, Callable[[], Asked]] = {
        "image": lambda: _image(ask, ec2),
        "subnets": lambda: _subnets(ask, pool, ec2, network),
        "types": lambda: _types(ask, pool, ec2),
    }
    if ec2.security_groups:
        parts["security groups"] = lambda: _groups(ask, ec2)
    return list(_each(parts))


def _each(parts: Mapping[str, Callable[[], Asked]]) -> Iterator[Asked]:
    for about, look in parts.items():
        try:
            yield look()
        except PoolError as error:
            yield Asked(about=about, said="", wrong=str(error))


def _image(ask: Ec2Api, ec2: Ec2Spec) -> Asked:
    images = ask.call("describe_images", ImageIds=[ec2.image]).get("Images", [])
    state = images[0]["State"] if images else "unknown"
    wrong = "" if state == "available" else f"image {ec2.image} is {state}; name one that is there"
    return Asked(about="image", said=f"{ec2.image} is {state}", wrong=wrong)


def _subnets(ask: Ec2Api, pool: PoolSpec, ec2: Ec2Spec, network: NetworkSpec | None) -> Asked:
    told = ask.call("describe_subnets", SubnetIds=list(ec2.subnets)).get("Subnets", [])
    zones = {one["SubnetId"]: one["AvailabilityZone"] for one in told}
    wrong = [f"{one} is not there" for one in ec2.subnets if one not in zones]
    if pool.zone:
        wrong += [
            f"{one} is in {zone}, the pool's `zone` is {pool.zone}"
            for one, zone in zones.items()
            if zone != pool.zone
        ]
    twice = {zone for zone in zones.values() if list(zones.values()).count(zone) > 1}
    wrong += [f"two subnets in {zone}; EC2 takes one a zone" for zone in sorted(twice)]
    ranges = [ipaddress.ip_network(one) for one in network.cloud] if network else []
    wrong += [
        f"{one['SubnetId']} has {one['CidrBlock']}, which is in none of `network`'s cloud ranges"
        for one in told
        if ranges and not _lies_in(one["CidrBlock"], ranges)
    ]
    said = ", ".join(f"{one} in {zone}" for one, zone in zones.items())
    return Asked(about="subnets", said=said, wrong="; ".join(wrong))


def _lies_in(block: str, ranges: Sequence[Any]) -> bool:
    part = ipaddress.ip_network(block)
    return any(one.version == part.version and part.subnet_of(one) for one in ranges)


def _groups(ask: Ec2Api, ec2: Ec2Spec) -> Asked:
    groups = list(ec2.security_groups)
    told = ask.call("describe_security_groups", GroupIds=groups).get("SecurityGroups", [])
    said = ", ".join(f"{one['GroupId']} ({one['GroupName']})" for one in told)
    return Asked(about="security groups", said=said)


def _types(ask: Ec2Api, pool: PoolSpec, ec2: Ec2Spec) -> Asked:
    told = ask.call("describe_instance_types", InstanceTypes=list(ec2.types))
    found = {one["InstanceType"]: _size(one) for one in told.get("InstanceTypes", [])}
    shape, wrong = pool.shape, []
    wanted = (shape.cpus, shape.memory_bytes / 2**30, shape.gpus)
    for kind in ec2.types:
        if kind not in found:
            wrong.append(f"{kind} is no instance type of {pool.region}")
        elif any(has < least for has, least in zip(found[kind], wanted, strict=True)):
            wrong.append(f"{kind} has {_words(found[kind])}; `shape` says {_words(wanted)}")
    said = "; ".join(f"{kind}: {_words(size)}" for kind, size in found.items())
    return Asked(about="types", said=said, wrong="; ".join(wrong))


def _size(told: Mapping[str, Any]) -> tuple[float, float, float]:
    """CPUs, GiB and GPUs of an instance type."""
    gpus = sum(one["Count"] for one in told.get("GpuInfo", {}).get("Gpus", []))
    return told["VCpuInfo"]["DefaultVCpus"], told["MemoryInfo"]["SizeInMiB"] / 1024, gpus


def _words(size: tuple[float, float, float]) -> str:
    cpus, gib, gpus = size
    return f"{cpus:g} CPUs, {gib:g} GiB" + (f", {gpus:g} GPUs" if gpus else "")
