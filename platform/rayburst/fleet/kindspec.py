"""What single kinds of pools need in a fleet file, beside what all pools have. Pure.

Each kind has a block of its own name (`ec2: {...}`). Deliberately does not know: pools of other
packages, which have `options`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from rayburst.errors import SpecError
from rayburst.fleet import fields
from rayburst.fleet.hours import OpeningHours
from rayburst.fleet.problems import Find, wrong

SSH_EXAMPLE = "{hosts: [10.0.0.7, 10.0.0.8], user: ray}"
VENV_PYTHON = "~/.rayburst/venv/bin/python"
_INSTALL = (
    f"test -x {VENV_PYTHON} || python3 -m venv ~/.rayburst/venv",
    f"{VENV_PYTHON} -m pip install --quiet --disable-pip-version-check $RAYBURST_SHIP/*.whl",
)
EC2_EXAMPLE = "{types: [m6i.xlarge], image: ami-0123456789abcdef0, subnets: [subnet-0123abcd]}"


class Part(BaseModel):
    """A part of a fleet file: frozen, every key known."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )


def _words(what: str, example: str) -> BeforeValidator:
    def check(given: object) -> object:
        words = given if isinstance(given, list | tuple) else ()
        if not words or not all(isinstance(word, str) and word for word in words):
            raise wrong(f"a list of {what}, one or more, is meant", f"[{example}]")
        return given

    return BeforeValidator(check)


def _one_or_more(what: str, example: str) -> Any:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    return (_words(what, example), WithJsonSchema({**schema, "examples": [f"[{example}]"]}))


class Ec2Spec(Part):
    """How hosts of a pool of kind ec2 are launched."""

    types: Annotated[tuple[str, ...], *_one_or_more("instance types", "m6i.xlarge, m6a.xlarge")] = (
        Field(description="instance types; each has what `shape` says, or more")
    )
    image: fields.Label = Field(
        description="machine image with Python and rayburst", examples=["ami-0123456789abcdef0"]
    )
    subnets: Annotated[tuple[str, ...], *_one_or_more("subnets", "subnet-0123abcd")] = Field(
        description="subnets, at most one a zone; they say in which zones hosts may be"
    )
    security_groups: tuple[fields.Label, ...] = Field(
        default=(), description="security groups of every host", examples=["[sg-0123abcd]"]
    )
    key: fields.Label | None = Field(
        default=None, description="EC2 key pair for SSH", examples=["rayburst"]
    )
    profile: fields.Label | None = Field(
        default=None, description="instance profile: what hosts may do", examples=["rayburst-node"]
    )
    rebalance_s: fields.Duration | None = Field(
        default=None,
        validation_alias="rebalance",
        description="time to leave an instance that EC2 recommends to rebalance; if absent the "
        "recommendation is not heeded",
        examples=["15m"],
    )
    endpoint: fields.Endpoint | None = Field(
        default=None, description="server of the EC2 API, where it is not AWS"
    )


class SshSpec(Part):
    """Machines that are there, and how they are reached."""

    hosts: Annotated[tuple[str, ...], *_one_or_more("addresses", "10.0.0.7, 10.0.0.8")] = Field(
        description="addresses or names of the machines"
    )
    user: fields.Name = Field(description="who logs in on them", examples=["ray"])
    port: fields.AtLeastOne = Field(default=22, description="port of their SSH servers")
    key: str | None = Field(
        default=None, description="file of the private key, on the head", examples=["~/.ssh/fleet"]
    )
    known_hosts: str | None = Field(
        default=None,
        description="file of their host keys, on the head; by default the user's own",
        examples=["~/.ssh/known_hosts"],
    )
    open: Annotated[tuple[str, ...], Field(examples=['["mon-fri 20:00-08:00", sat-sun]'])] = Field(
        default=(), description="when they may be used; always if absent"
    )
    timezone: str = Field(
        default="UTC", validate_default=True, description="whose wall clock `open` is of"
    )
    notice_s: fields.Duration = Field(
        default=300.0,
        validation_alias="notice",
        description="how long before the opening hours end hosts get notice",
    )

    @field_validator("timezone")
    @classmethod
    def _hours_can_be_read(cls, given: str, info: ValidationInfo) -> str:
        try:
            OpeningHours.parse(info.data.get("open", ()), timezone=given)
        except SpecError as error:
            raise wrong(str(error)) from None
        return given


class HeadSshSpec(Part):
    """The machine that `ray up` makes the head of, and how it is reached."""

    host: str = Field(
        min_length=1, description="its address or name, as you reach it", examples=["10.0.0.6"]
    )
    address: str | None = Field(
        default=None,
        validate_default=True,
        description="its IP address, as hosts reach it; by default `host`",
        examples=["10.0.0.6"],
    )
    user: fields.Name = Field(description="who logs in on it", examples=["ray"])
    key: str | None = Field(
        default=None, description="file of the private key, with you", examples=["~/.ssh/fleet"]
    )
    known_hosts: str | None = Field(
        default=None,
        description="file of its host key, with you; by default the user's own",
        examples=["~/.ssh/known_hosts"],
    )

    @field_validator("address")
    @classmethod
    def _an_address(cls, given: str | None, info: ValidationInfo) -> str | None:
        if not _is_ip(given or str(info.data.get("host", ""))):
            raise wrong("Ray needs the head's IP address, as hosts reach it", "10.0.0.6")
        return given

    @property
    def ip(self) -> str:
        """The address under which hosts reach it."""
        return self.address or self.host


class SoftwareSpec(Part):
    """Where Python is on every machine of the fleet, and what is done before it is used."""

    python: str = Field(
        default=VENV_PYTHON,
        min_length=1,
        description="the Python with Ray and rayburst on head and hosts; by default a venv that "
        "`setup` makes",
        examples=["/opt/rayburst/bin/python"],
    )
    setup: tuple[str, ...] | None = Field(
        default=None,
        description="shell commands on every machine before Ray starts; $RAYBURST_SHIP is the "
        "folder with rayburst's wheel. By default they install it in the venv, and nothing where "
        "`python` names another",
        examples=["[nvidia-smi]"],
    )

    @property
    def commands(self) -> tuple[str, ...]:
        """What is run on every machine before Ray starts."""
        if self.setup is not None:
            return self.setup
        return _INSTALL if self.python == VENV_PYTHON else ()


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def kind_finds(data: Mapping[str, Any], index: int, pool: Mapping[str, Any]) -> Iterator[Find]:
    """What a pool's kind needs and does not find in a fleet file. Bears data of any form."""
    for kind in ("ec2", "ssh"):
        if pool.get(kind) and pool.get("kind") != kind:
            yield ("pools", index, kind), f"only pools of kind {kind} have this block", None
    at = ("pools", index, "kind")
    if pool.get("kind") == "ssh":
        if not pool.get("ssh"):
            yield at, f"a pool of this kind needs a block ssh: {SSH_EXAMPLE}", None
        yield from _far_from_the_store(data, "machines of yours")
    if pool.get("kind") != "ec2":
        return
    if not pool.get("ec2"):
        yield at, f"a pool of this kind needs a block ec2: {EC2_EXAMPLE}", None
    if not pool.get("region"):
        yield at, "a pool of this kind needs its region: us-east-1", None
    if pool.get("market") == "on-prem":
        why = "hosts of EC2 are bought on spot or on-demand"
        yield ("pools", index, "market"), why, "spot"
    yield from _far_from_the_store(data, "hosts of EC2")


def _far_from_the_store(data: Mapping[str, Any], who: str) -> Iterator[Find]:
    store = data.get("object_store")
    if isinstance(store, dict) and store.get("kind") == "embedded":
        why = f"{who} cannot reach a store on this machine's loopback"
        yield ("object_store", "kind"), f"{why}; name a bucket: {{uri: s3://my-bucket}}", None
