"""From an EC2 instance and its tags to a Host, and back. Pure.

Tags that begin with `rayburst:` are the pool's own; all others are handed on as they are.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rayburst.fleet.kindspec import Ec2Spec
from rayburst.fleet.pools.base import Host, Notice

OWN = "rayburst:"
FLEET, POOL = OWN + "fleet", OWN + "pool"
WHY, PRICE, AT = OWN + "why", OWN + "price", OWN + "requested-at"
NOTICE, GONE = OWN + "notice", OWN + "gone"
_MOST = 256  # characters of a tag's value
_LIVING = ("pending", "running")
_TIME = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


def host_id(pool: str, instance: str) -> str:
    """The host's id: pool and instance id."""
    return f"{pool}-{instance.removeprefix('i-')}"


def instance_of(host: str) -> str:
    """The instance id in a host's id."""
    return f"i-{host.rpartition('-')[2]}"


def filters(fleet: str, pool: str) -> list[dict[str, Any]]:
    """What describes a pool's instances to EC2."""
    wanted = {FLEET: fleet, POOL: pool}
    return [{"Name": f"tag:{key}", "Values": [value]} for key, value in wanted.items()]


def marks(fleet: str, pool: str, price: float | None, why: str, now: float) -> dict[str, str]:
    """Tags that make an instance this fleet's."""
    own = {"Name": f"rayburst {fleet} {pool}", FLEET: fleet, POOL: pool, WHY: why[:_MOST]}
    own[AT] = f"{now:.3f}"
    return own if price is None else own | {PRICE: repr(price)}


def notice_text(notice: Notice) -> str:
    """A notice as the value of a tag; a long reason is cut."""
    fact = asdict(notice)
    while len(text := json.dumps(fact, separators=(",", ":"))) > _MOST:
        fact["why"] = fact["why"][:-1]
    return text


def gone_text(at: float, why: str) -> str:
    """An end as the value of a tag."""
    return f"{at:.3f} {why}"[:_MOST]


def host_of(instance: Mapping[str, Any], pool: str, said: Mapping[str, str]) -> Host:
    """The host that an instance is; `said` are tags that EC2 may not tell yet."""
    tags = _tags(instance) | dict(said)
    tags.setdefault(AT, repr(instance["LaunchTime"].timestamp()))
    address = instance.get("PrivateIpAddress", "")
    return _host(pool, instance["InstanceId"], tags, address)


def launched_host(
    launch: Mapping[str, Any], instance: str, pool: str, said: Mapping[str, str]
) -> Host:
    """The host that was launched a moment ago and that EC2 does not tell yet."""
    return _host(pool, instance, {**launch["tags"], **said}, "")


def ended_but_runs(instance: Mapping[str, Any], before: float) -> bool:
    """Whether an end was put on record before this time and the instance lives all the same."""
    at = _tags(instance).get(GONE, "").partition(" ")[0]
    return bool(at) and float(at) < before and runs(instance)


def runs(instance: Mapping[str, Any]) -> bool:
    """Whether EC2 tells that an instance runs, or will."""
    return instance["State"]["Name"] in _LIVING


def untold_end(instance: Mapping[str, Any], now: float) -> str | None:
    """The end of an instance that nobody put on record yet, as the value of its tag."""
    if runs(instance) or GONE in _tags(instance):
        return None
    reason = instance.get("StateReason", {})
    code = reason.get("Code", "")
    why = "taken: EC2 reclaimed the spot instance" if "SpotInstance" in code else ""
    why = why or reason.get("Message") or code or f"EC2 says it is {instance['State']['Name']}"
    if found := _TIME.search(instance.get("StateTransitionReason", "")):
        ended = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return gone_text(ended.timestamp(), why)
    return gone_text(now, why)  # EC2 gives a reclaim no time


def _tags(instance: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}


def _host(pool: str, instance: str, tags: Mapping[str, str], address: str) -> Host:
    gone_at, _, gone_why = tags.get(GONE, "").partition(" ")
    return Host(
        id=host_id(pool, instance),
        pool=pool,
        address=address,
        requested_at=float(tags[AT]),
        price_usd_per_hour=float(tags[PRICE]) if PRICE in tags else None,
        why=tags.get(WHY, ""),
        tags={k: v for k, v in tags.items() if not k.startswith((OWN, "aws:")) and k != "Name"},
        notice=Notice(**json.loads(tags[NOTICE])) if NOTICE in tags else None,
        gone_at=float(gone_at) if gone_at else None,
        gone_why=gone_why,
    )


def template_data(ec2: Ec2Spec, user_data: str = "") -> dict[str, Any]:
    """What every instance of a pool is launched with. Its metadata answers to tokens only."""
    data: dict[str, Any] = {
        "ImageId": ec2.image,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 2,
        },
    }
    if user_data:
        data["UserData"] = base64.b64encode(user_data.encode()).decode()
    if ec2.security_groups:
        data["SecurityGroupIds"] = list(ec2.security_groups)
    if ec2.key:
        data["KeyName"] = ec2.key
    if ec2.profile:
        data["IamInstanceProfile"] = {"Name": ec2.profile}
    return data
