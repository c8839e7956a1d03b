"""EC2's API for one pool: calls with time-outs and retries, its refusals in plain words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rayburst.errors import (
    PoolCapacityError,
    PoolError,
    PoolQuotaError,
    PoolThrottledError,
)

_NO_CAPACITY = (
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "UnfulfillableCapacity",
    "SpotMaxPriceTooLow",
    "Unsupported",  # this type is not offered in this zone
)
_QUOTA = (
    "MaxSpotInstanceCountExceeded",
    "VcpuLimitExceeded",
    "InstanceLimitExceeded",
    "MaxSpotFleetRequestCountExceeded",
)
_THROTTLED = ("RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequests")
_DENIED = (
    "AuthFailure",
    "InvalidClientTokenId",
    "ExpiredToken",
    "RequestExpired",
    "UnauthorizedOperation",
    "SignatureDoesNotMatch",
)
_GONE = "InvalidInstanceID.NotFound"


class Ec2Api:
    """A client of one region. Safe to use from several threads."""

    def __init__(self, pool: str, *, region: str, endpoint: str | None) -> None:
        import boto3
        from botocore.config import Config

        self._pool = pool
        self._client = boto3.client(
            "ec2",
            region_name=region,
            endpoint_url=endpoint or os.environ.get("AWS_ENDPOINT_URL_EC2"),
            config=Config(
                connect_timeout=3,
                read_timeout=15,
                retries={"mode": "standard", "total_max_attempts": 3},
                # AWS_ENDPOINT_URL may be there for the object store
                ignore_configured_endpoint_urls=True,
            ),
        )

    def call(self, action: str, *, may_fail: Sequence[str] = (), **request: Any) -> dict[str, Any]:
        """One call. Raises PoolError that says what EC2 refused; codes of `may_fail` are fine.

        So is an instance that EC2 does not know (any more).
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            reply: dict[str, Any] = getattr(self._client, action)(**request)
        except ClientError as error:
            told = error.response.get("Error", {})
            code, message = str(told.get("Code", "")), str(told.get("Message", ""))
            if code in (*may_fail, _GONE):
                return {}
            raise error_of(self._pool, code, f"{action}: {message}") from error
        except (BotoCoreError, ResponseParserError) as error:
            raise PoolError(f"pool {self._pool!r}: EC2 cannot be asked: {error}") from error
        return reply

    def instances(self, filters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Every instance that fits, page by page."""
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"MaxResults": 1000}
        while True:
            reply = self.call("describe_instances", Filters=list(filters), **page)
            found += [one for group in reply.get("Reservations", []) for one in group["Instances"]]
            if not (token := reply.get("NextToken")):
                return found
            page["NextToken"] = token


def error_of(pool: str, code: str, said: str) -> PoolError:
    """The PoolError that a code of EC2's stands for."""
    text = f"pool {pool!r}: EC2 says {code}: {said}"
    if code.startswith(_THROTTLED):
        return PoolThrottledError(f"{text}. It is asked again later")
    if code in _QUOTA:
        return PoolQuotaError(f"{text}. Ask for a higher quota (Service Quotas, EC2)")
    if code in _NO_CAPACITY:
        return PoolCapacityError(
            f"{text}. More `types` or `subnets` in the fleet file give it more to choose from"
        )
    if code in _DENIED:
        return PoolError(f"{text}. The credentials of this machine do not allow it")
    return PoolError(text)


def refusal(pool: str, errors: Sequence[Mapping[str, Any]], started: int, asked: int) -> PoolError:
    """The PoolError of a fleet request that brought fewer instances than asked for."""
    if not errors:
        return PoolCapacityError(f"pool {pool!r}: EC2 started {started} of {asked} instance(s)")
    places: dict[str, str] = {}
    for error in errors:
        override = error.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
        where = f"{override.get('InstanceType', '?')} in {override.get('SubnetId', '?')}"
        places[where] = str(error.get("ErrorCode", ""))
    first = errors[0]
    listed = ", ".join(f"{where} ({code})" for where, code in places.items())
    said = f"{first.get('ErrorMessage', '')} {started} of {asked} instance(s) started; {listed}"
    codes = [str(error.get("ErrorCode", "")) for error in errors]
    worst = next((code for code in codes if code in _QUOTA), codes[0])
    return error_of(pool, worst, said)
