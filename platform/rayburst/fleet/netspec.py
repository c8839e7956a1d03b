"""What a fleet file says about the network between machines on-prem and a cloud.

It is a statement for people and for `rayburst fleet check --live`; nothing is set up from it.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayburst.fleet import fields
from rayburst.fleet.kindspec import Part
from rayburst.fleet.problems import wrong

_ROUTES = ("vpn", "private-line", "peering", "public")
_ENCRYPTIONS = ("wireguard", "ipsec", "macsec", "none")


class NetworkSpec(Part):
    """How machines on-prem and machines of a cloud reach each other."""

    on_prem: tuple[str, ...] = Field(
        default=(), description="address ranges of machines on-prem", examples=["[10.1.0.0/16]"]
    )
    cloud: tuple[str, ...] = Field(
        default=(), description="address ranges of the cloud", examples=["[10.2.0.0/16]"]
    )
    route: Annotated[
        Literal["vpn", "private-line", "peering", "public"],
        fields.one_of(_ROUTES, "a route is one of"),
    ] = Field(description="what lies between the two; every port is open both ways")
    encryption: Annotated[
        Literal["wireguard", "ipsec", "macsec", "none"],
        fields.one_of(_ENCRYPTIONS, "an encryption is one of"),
    ] = Field(description="what encrypts that way; Ray itself sends its traffic as it is")

    @field_validator("on_prem", "cloud")
    @classmethod
    def _ranges(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for one in given:
            try:
                ipaddress.ip_network(one)
            except ValueError as error:
                raise wrong(f"{error}; an address range is meant", "10.1.0.0/16") from None
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for mine in map(ipaddress.ip_network, self.on_prem):
            for theirs in map(ipaddress.ip_network, self.cloud):
                if mine.version == theirs.version and mine.overlaps(theirs):
                    raise wrong(f"{mine} on-prem and {theirs} in the cloud overlap")
        if self.route == "public" and self.encryption == "none":
            raise wrong(
                "Ray's traffic, jobs and data among it, would cross the public network as it is; "
                "encrypt it",
                "{route: vpn, encryption: wireguard}",
            )
        return self
