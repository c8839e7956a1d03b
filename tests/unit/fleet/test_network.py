"""What a fleet file says about the way between on-prem and cloud."""

from __future__ import annotations

import pytest

from rayburst.errors import SpecError
from rayburst.fleet.spec import FleetSpec

FILE = """\
name: lab
object_store: {uri: s3://bucket}
network: %s
pools:
  - {name: a, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1}}
"""


def test_a_network_is_stated() -> None:
    text = "{on_prem: [10.1.0.0/16], cloud: [10.2.0.0/16], route: vpn, encryption: wireguard}"
    network = FleetSpec.parse(FILE % text).network
    assert network is not None
    assert (network.on_prem, network.route) == (("10.1.0.0/16",), "vpn")
    assert FleetSpec.parse((FILE % "x").replace("network: x\n", "")).network is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{route: vpn}", "encryption"),
        ("{route: pigeon, encryption: none}", "vpn, private-line, peering"),
        ("{route: public, encryption: none}", "would cross the public network as it is"),
        ("{route: vpn, encryption: ipsec, cloud: [10.2.0.1/16]}", "10.1.0.0/16"),
        (
            "{route: vpn, encryption: ipsec, cloud: [10.1.2.0/24], on_prem: [10.1.0.0/16]}",
            "overlap",
        ),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        FleetSpec.parse(FILE % text)
