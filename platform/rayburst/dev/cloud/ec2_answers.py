"""What the EC2 endpoint of this machine reads of a fleet request, and its refusals. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.sax.saxutils import escape

_XMLNS = "http://ec2.amazonaws.com/doc/2016-11-15/"
_OVERRIDE = re.compile(r"LaunchTemplateConfigs\.1\.Overrides\.(\d+)\.(\w+)")
_COUNT = "TargetCapacitySpecification.TotalTargetCapacity"
_MARKET = "TargetCapacitySpecification.DefaultTargetCapacityType"
_SAYS = {
    "InsufficientInstanceCapacity": "There is no capacity for this instance type in this zone.",
    "MaxSpotInstanceCountExceeded": "Max spot instance count exceeded.",
    "VcpuLimitExceeded": "You have requested more vCPU capacity than your current limit.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetRequest:
    """A CreateFleet call: how many, of which market, in which of `places` (type and subnet)."""

    form: Mapping[str, str]
    count: int
    market: str
    places: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, form: Mapping[str, str]) -> FleetRequest:
        """Read the form of EC2's query protocol."""
        found: dict[int, dict[str, str]] = {}
        for key, value in form.items():
            if match := _OVERRIDE.fullmatch(key):
                found.setdefault(int(match[1]), {})[match[2]] = value
        ordered = [found[number] for number in sorted(found)]
        return cls(
            form=form,
            count=int(form[_COUNT]),
            market=form[_MARKET],
            places=tuple((one["InstanceType"], one["SubnetId"]) for one in ordered),
        )

    def narrowed(self, place: int, count: int) -> dict[str, str]:
        """The same call for one place and so many."""
        kind, subnet = self.places[place]
        rest = {key: value for key, value in self.form.items() if not _OVERRIDE.fullmatch(key)}
        first = "LaunchTemplateConfigs.1.Overrides.1."
        return rest | {
            _COUNT: str(count),
            f"{first}InstanceType": kind,
            f"{first}SubnetId": subnet,
        }


def failure(code: str, message: str) -> str:
    """The answer to a call that is refused whole."""
    error = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    return f"<Response><Errors>{error}</Errors><RequestID>local</RequestID></Response>"


def refused_fleet(request: FleetRequest, code: str) -> str:
    """The answer to a fleet request of which nothing could be started."""
    return (
        f'<CreateFleetResponse xmlns="{_XMLNS}"><requestId>local</requestId>'
        f"<fleetId>fleet-none</fleetId>{_errors(request, code)}<fleetInstanceSet/>"
        "</CreateFleetResponse>"
    )


def with_refusals(answer: bytes, request: FleetRequest, code: str) -> bytes:
    """An answer of moto's with refusals added: not all could be started."""
    end = b"</CreateFleetResponse>"
    return answer.replace(end, _errors(request, code).encode() + end)


def price_history(
    prices: Mapping[tuple[str, str], float], form: Mapping[str, str], now: float
) -> str:
    """The answer to DescribeSpotPriceHistory: today's prices, of the types asked for."""
    asked = {value for key, value in form.items() if key.startswith("InstanceType.")}
    at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    items = [
        f"<item><instanceType>{escape(kind)}</instanceType>"
        f"<productDescription>Linux/UNIX</productDescription><spotPrice>{price:.6f}</spotPrice>"
        f"<timestamp>{at}</timestamp><availabilityZone>{escape(zone)}</availabilityZone></item>"
        for (kind, zone), price in sorted(prices.items())
        if not asked or kind in asked
    ]
    return (
        f'<DescribeSpotPriceHistoryResponse xmlns="{_XMLNS}"><requestId>local</requestId>'
        f"<spotPriceHistorySet>{''.join(items)}</spotPriceHistorySet>"
        "</DescribeSpotPriceHistoryResponse>"
    )


def _errors(request: FleetRequest, code: str) -> str:
    items = [
        f"<item><errorCode>{code}</errorCode><errorMessage>{escape(_SAYS[code])}</errorMessage>"
        "<launchTemplateAndOverrides><overrides>"
        f"<instanceType>{escape(kind)}</instanceType><subnetId>{escape(subnet)}</subnetId>"
        f"</overrides></launchTemplateAndOverrides><lifecycle>{request.market}</lifecycle></item>"
        for kind, subnet in request.places
    ]
    return f"<errorSet>{''.join(items)}</errorSet>"
