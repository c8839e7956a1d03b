"""The fleet file: pools, shapes, prices, limits and the object store.

    spec = FleetSpec.load(Path("cluster_configs/local.yaml"))
    spec.pool("rack").max_hosts

Files use short keys with units (`memory: 2GiB`, `price: 0.35 USD/h`, `idle_timeout: 60s`);
attributes carry the unit in their name (`memory_bytes`, `price_usd_per_hour`, `idle_timeout_s`).
Code that builds a spec uses the attributes' names and plain numbers.
Deliberately does not know: Ray, what a market costs today, whether hosts exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rayburst.errors import SpecError
from rayburst.fleet import fields, problems, specfile
from rayburst.fleet.kindspec import (
    EC2_EXAMPLE,
    SSH_EXAMPLE,
    Ec2Spec,
    HeadSshSpec,
    Part,
    SoftwareSpec,
    SshSpec,
    kind_finds,
)
from rayburst.fleet.netspec import NetworkSpec
from rayburst.fleet.problems import Find, wrong

POOL_KINDS = ("process", "ssh", "ec2")
POOL_GROUP = "rayburst.pools"  # entry points of this group bring further kinds
_POOL = (
    "{name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 2GiB}, hosts: {max: 2}}"
)
HEAD = "head"  # the name of the head's node type, so no pool may have it


class Market(StrEnum):
    """How a host is paid for. Work goes to them in this order."""

    ON_PREM = "on-prem"
    SPOT = "spot"
    ON_DEMAND = "on-demand"


class HeadSpec(Part):
    """The node that runs Ray's head and rayburst's agent."""

    cpus: fields.Count = Field(default=0, description="CPUs the head gives to work; 0: none")
    ssh: HeadSshSpec | None = Field(
        default=None,
        description="the machine that `ray up` makes the head of; none for `rayburst up`, whose "
        "head is this machine",
        examples=["{host: 10.0.0.6, user: ray}"],
    )


class Shape(Part):
    """What one host of a pool has."""

    cpus: fields.AtLeastOne = Field(description="CPUs of one host")
    memory_bytes: fields.Memory = Field(validation_alias="memory", description="memory of one host")
    gpus: fields.Count = Field(default=0, description="GPUs of one host")
    accelerator: fields.Label | None = Field(
        default=None, description="the GPUs' type, as Ray calls it", examples=["A100"]
    )

    @field_validator("accelerator")
    @classmethod
    def _accelerator_needs_gpus(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is not None and info.data.get("gpus", 1) == 0:
            raise wrong("an accelerator needs gpus: 1 or more beside it")
        return given


class Hosts(Part):
    """How many hosts a pool may have."""

    min: fields.Count = Field(default=0, description="hosts that always run")
    max: fields.Count = Field(description="hosts at the most", examples=[2])

    @field_validator("max")
    @classmethod
    def _max_from_min(cls, given: int, info: ValidationInfo) -> int:
        if given < (least := info.data.get("min", 0)):
            raise wrong(f"max is min ({least}) or more", str(least))
        return given


class Traffic(Part):
    """What moving a GB (10^9 bytes) between a host of a pool and the object store costs."""

    read_usd_per_gb: fields.TrafficRate = Field(
        default=None, validation_alias="read", description="a GB that a host reads from the store"
    )
    write_usd_per_gb: fields.TrafficRate = Field(
        default=None, validation_alias="write", description="a GB that a host writes to the store"
    )


class PoolSpec(Part):
    """Hosts of one kind, place and market. Ray sees one node type of the pool's name."""

    name: fields.Name = Field(description="the pool's name; also Ray's node type")
    kind: fields.Name = Field(
        description="where hosts come from; process: Ray nodes on this machine; ssh: machines of "
        "yours; ec2: instances of AWS; other packages may bring further kinds",
        examples=["process"],
    )
    market: Annotated[Market, fields.one_of(list(Market), "a market is one of")] = Field(
        description="how hosts are paid for; on-prem is asked first, then spot; on-demand only "
        "for work that asks for it",
        examples=["spot"],
    )
    shape: Shape = Field(examples=["{cpus: 1, memory: 2GiB}"])
    zone: fields.Label | None = Field(
        default=None, description="rack or availability zone", examples=["rack-1"]
    )
    region: fields.Label | None = Field(
        default=None, description="cloud region; one for all pools", examples=["us-east-1"]
    )
    price_usd_per_hour: fields.Rate = Field(
        default=None, validation_alias="price", description="price of one host for one hour"
    )
    shortest_paid_s: fields.Duration = Field(
        default=0.0,
        validation_alias="shortest_paid",
        description="the least time that a host is paid for; an idle host stays that long",
    )
    traffic: Traffic = Field(
        default=Traffic(),
        description="prices of traffic with the object store; unknown if absent",
        examples=["{read: 0.09 USD/GB, write: 0 USD/GB}"],
    )
    hosts: Hosts = Field(description="how many", examples=["{min: 0, max: 2}"])
    ssh: SshSpec | None = Field(
        default=None, description="for pools of kind ssh", examples=[SSH_EXAMPLE]
    )
    ec2: Ec2Spec | None = Field(
        default=None, description="for pools of kind ec2", examples=[EC2_EXAMPLE]
    )
    options: dict[str, Any] = Field(
        default={}, description="what a kind of another package wants to know"
    )

    @property
    def min_hosts(self) -> int:
        """Hosts that always run."""
        return self.hosts.min

    @property
    def max_hosts(self) -> int:
        """Hosts at the most."""
        return self.hosts.max

    @model_validator(mode="before")
    @classmethod
    def _fold_hosts(cls, given: Any, info: ValidationInfo) -> Any:
        """Code may pass min_hosts and max_hosts as it reads them."""
        if problems.from_file(info) or not isinstance(given, dict) or "max_hosts" not in given:
            return given
        hosts = {"min": given.get("min_hosts", 0), "max": given["max_hosts"]}
        rest = {k: v for k, v in given.items() if k not in ("min_hosts", "max_hosts")}
        return rest | {"hosts": hosts}

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, given: str) -> str:
        if given in POOL_KINDS:
            return given
        known = [*POOL_KINDS, *sorted({point.name for point in entry_points(group=POOL_GROUP)})]
        if given not in known:
            raise wrong(f"the kinds of pools here are {', '.join(known)}", allowed=known)
        return given

    @field_validator("options")
    @classmethod
    def _options_of_other_kinds(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if given and (kind := info.data.get("kind")) in POOL_KINDS:
            raise wrong(f"pools of kind {kind} have no options")
        return given

    @field_validator("name")
    @classmethod
    def _not_the_head(cls, given: str) -> str:
        if given == HEAD:
            raise wrong("this name belongs to the head node", "pool-1")
        return given


class Limits(Part):
    """What the fleet may spend, and how long it waits."""

    budget_usd: fields.Money | None = Field(
        default=None,
        validation_alias="budget",
        description="all the fleet may ever cost; none if absent",
    )
    monthly_budget_usd: fields.Money | None = Field(
        default=None,
        validation_alias="monthly_budget",
        description="all the fleet may cost in one calendar month (UTC); none if absent",
    )
    idle_timeout_s: fields.Duration = Field(
        default=60.0, validation_alias="idle_timeout", description="idle hosts go after this"
    )
    drain_s: fields.Duration = Field(
        default=30.0, validation_alias="drain", description="time that work has to leave a host"
    )
    join_s: fields.Duration = Field(
        default=600.0,
        validation_alias="join",
        description="time that a host on another machine has to join; it failed after that",
    )


class TenantSpec(Part):
    """Who shares the fleet, with what weight, and what all their jobs together may cost."""

    name: fields.Name = Field(description="the tenant's name, as jobs give it")
    share: fields.AtLeastOne = Field(
        default=1, description="its weight where jobs wait; 2 gets twice what 1 gets"
    )
    budget_usd: fields.Money | None = Field(
        default=None,
        validation_alias="budget",
        description="all its jobs may ever cost; none if absent",
    )
    monthly_budget_usd: fields.Money | None = Field(
        default=None,
        validation_alias="monthly_budget",
        description="all its jobs may cost in one calendar month (UTC); none if absent",
    )


class ObjectStoreSpec(Part):
    """Where all that lasts is kept: a server that `rayburst up` starts, or an S3 bucket."""

    kind: Literal["embedded", "s3"] = Field(
        description="embedded: a server on this machine; s3 (or just a uri): a bucket",
        examples=["embedded"],
    )
    uri: fields.BucketUri | None = Field(default=None, description="bucket and folder")
    endpoint: fields.Endpoint | None = Field(
        default=None, description="server of the bucket, where it is not AWS"
    )
    usd_per_gb_month: fields.StorageRate = Field(
        default=None,
        validation_alias="price",
        description="price of a GB (10^9 bytes) kept for a month; unknown if absent",
    )

    @model_validator(mode="before")
    @classmethod
    def _uri_means_s3(cls, given: Any) -> Any:
        if isinstance(given, dict) and "uri" in given:
            return {"kind": "s3"} | given
        return given

    @model_validator(mode="after")
    def _kind_fits_uri(self) -> Self:
        if self.kind == "s3" and self.uri is None:
            raise wrong("a store of kind s3 needs a uri", "{uri: s3://my-bucket/my-fleet}")
        if self.kind == "embedded" and (self.uri or self.endpoint):
            raise wrong("the embedded store has its own uri and endpoint", "{kind: embedded}")
        return self


class ServeSpec(Part):
    """How Ray Serve runs in the fleet."""

    haproxy: bool = Field(
        default=False,
        description="HAProxy before replicas with servers of their own: models have the fast lane; "
        "Serve then listens on all addresses, and a request needs a key",
    )


class FleetSpec(Part):
    """A whole fleet file."""

    name: fields.Name = Field(description="the fleet's name", examples=["my-fleet"])
    region: fields.Label | None = Field(
        default=None, description="cloud region of the fleet", examples=["us-east-1"]
    )
    object_store: ObjectStoreSpec = Field(examples=["{kind: embedded}"])
    limits: Limits = Field(default=Limits(), examples=["{idle_timeout: 60s, drain: 30s}"])
    head: HeadSpec = Field(default=HeadSpec(), examples=["{cpus: 0}"])
    software: SoftwareSpec = Field(
        default=SoftwareSpec(), examples=["{python: /opt/rayburst/bin/python}"]
    )
    serve: ServeSpec = Field(default=ServeSpec(), examples=["{haproxy: true}"])
    network: NetworkSpec | None = Field(
        default=None,
        description="how machines on-prem and a cloud reach each other",
        examples=["{route: vpn, encryption: wireguard}"],
    )
    span: Annotated[
        Literal["zone", "any"], fields.one_of(("zone", "any"), "workers of one job lie in")
    ] = Field(
        default="zone",
        description="how far apart the workers of one job may be: in one zone, or in any pools",
        examples=["zone"],
    )
    tenants: tuple[TenantSpec, ...] = Field(
        default=(), description="who shares the fleet", examples=["[{name: research, share: 2}]"]
    )
    pools: tuple[PoolSpec, ...] = Field(
        description="where hosts come from",
        examples=[f"[{_POOL}]"],
        json_schema_extra={"minItems": 1},
    )

    @field_validator("pools")
    @classmethod
    def _one_pool_at_least(cls, given: tuple[PoolSpec, ...]) -> tuple[PoolSpec, ...]:
        if not given:
            raise wrong("a fleet has one pool or more")
        return given

    @model_validator(mode="after")
    def _pools_fit_together(self, info: ValidationInfo) -> Self:
        if problems.from_file(info):
            return self  # there every find has its place, see parse()
        for loc, why, _ in _across(self.model_dump()):
            raise wrong(f"{'.'.join(map(str, loc))}: {why}")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a fleet file. Raises SpecError with every problem of the file."""
        return cls.parse(specfile.read_text(path), source=str(path))

    @classmethod
    def parse(cls, text: str, source: str = "<text>") -> Self:
        """Read the text of a fleet file; `source` names it in messages. Raises SpecError."""
        return problems.validate(cls, text, source, _across)

    def pool(self, name: str) -> PoolSpec:
        """The pool of this name. Raises SpecError that lists the known ones."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        known = ", ".join(pool.name for pool in self.pools)
        raise SpecError(f"no pool {name!r} in fleet {self.name!r}; its pools: {known}")


def default_path() -> Path:
    """The fleet file that `rayburst up` takes when none is given: cluster_configs/local.yaml."""
    return Path(__file__).with_name("local.yaml").resolve()


def _across(data: Mapping[str, Any]) -> Iterator[Find]:
    """What no single pool shows: two of one name, two regions. Bears data of any form."""
    pools = data.get("pools")
    first: dict[str, int] = {}
    regions = [data["region"]] if isinstance(data.get("region"), str) else []
    for index, pool in enumerate(pools if isinstance(pools, list | tuple) else []):
        if not isinstance(pool, dict):
            continue
        yield from kind_finds(data, index, pool)
        name, region = pool.get("name"), pool.get("region")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            loc = ("pools", index, "name")
            yield loc, f"pools[{first[name]}] already has the name {name}", f"{name}-{index + 1}"
        if isinstance(region, str):
            regions.append(region)
            if region != regions[0]:
                why = f"a fleet is in one region, and {regions[0]} is named before {region}"
                yield ("pools", index, "region"), why, regions[0]
