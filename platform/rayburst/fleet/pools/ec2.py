"""Hosts that are EC2 instances, spot or on-demand.

    Ec2Pool(spec, site).launch(2, tags={}, why="pending work")

One EC2 Fleet request of type `instant` a launch: EC2 picks among instance types and subnets, by
price and capacity for spot, by price for on-demand. An instance's tags are its record, so whoever
opens the pool finds what an earlier head launched. EC2's answers may be seconds old: what was just
launched, tagged or ended here is remembered until EC2 tells it too.

Where the site has a cluster, instances get user data that makes them join it (`ec2_join`). It knows
no image's content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from rayburst.errors import NodeNotFoundError, PoolError, StoreError
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools import ec2_instances as records
from rayburst.fleet.pools.base import Host, Notice, PoolSite, check_room, pool_of
from rayburst.fleet.pools.ec2_api import Ec2Api, refusal
from rayburst.fleet.pools.ec2_join import user_data
from rayburst.fleet.pools.ec2_memory import Ec2Memory
from rayburst.fleet.spec import Market, PoolSpec

LAUNCH_REQUEST = "ray-launch-request"
FRESH_S = 1.0
"""How long one listing answers."""
STALE_S = 60.0
"""How long the last listing still answers while EC2 does not."""
REAP_S = 30.0
"""After so long an instance that was ended and still runs is ended again."""


class Ec2Pool:
    """A pool of EC2 instances; safe to use from several threads and processes of one head."""

    def __init__(self, spec: PoolSpec, site: PoolSite, *, api: Ec2Api | None = None) -> None:
        if spec.ec2 is None or spec.region is None:
            raise PoolError(f"pool {spec.name!r} of kind ec2 needs a block `ec2` and a region")
        self._spec = spec
        self._ec2 = spec.ec2
        self._fleet = site.fleet
        self._site = site
        self._clock = site.clock
        self._api = api or Ec2Api(spec.name, region=spec.region, endpoint=spec.ec2.endpoint)
        self._memory = Ec2Memory(site.folder, spec.name)
        self._lock = threading.Lock()
        self._listed: list[dict[str, Any]] = []
        self._listed_at: float | None = None

    @property
    def name(self) -> str:
        return self._spec.name

    def hosts(self) -> list[Host]:
        known = {one["InstanceId"]: one for one in self._instances()}
        self._note_ends(known)
        self._reap(known)
        memory = self._memory.read(self._clock())
        hosts = [
            records.host_of(one, self.name, memory.said.get(instance_id, {}))
            for instance_id, one in known.items()
            if instance_id not in memory.forgotten
        ]
        hosts += [
            records.launched_host(one, instance_id, self.name, memory.said.get(instance_id, {}))
            for instance_id, one in memory.launched.items()
            if instance_id not in known and instance_id not in memory.forgotten
        ]
        return sorted(hosts, key=lambda host: (host.requested_at, host.id))

    def launch(self, count: int, *, tags: Mapping[str, str], why: str) -> list[str]:
        now = self._clock()
        with self._memory.exclusive():
            self._listed_at = None
            check_room(self._spec, sum(host.lives for host in self.hosts()), count)
            marks = records.marks(self._fleet, self.name, self._spec.price_usd_per_hour, why, now)
            reply = self._api.call(
                "create_fleet", **self._request(count, {**tags, **marks}, tags.get(LAUNCH_REQUEST))
            )
            started = [i for group in reply.get("Instances", []) for i in group["InstanceIds"]]
            if len(started) < count:
                if started:
                    self._api.call("terminate_instances", InstanceIds=started)
                raise refusal(self.name, reply.get("Errors", []), len(started), count)
            self._memory.add_launched(started, {**tags, **marks}, now)
            self._listed_at = None
            return [records.host_id(self.name, instance) for instance in started]

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        self._say(self._known(host), tags)

    def notify(self, host: str, notice: Notice) -> None:
        if self._known(host).notice is None:
            self._say(self._known(host), {records.NOTICE: records.notice_text(notice)})

    def terminate(self, host: str, *, why: str) -> None:
        found = self._find(host)
        if found is None:
            return
        if found.lives:
            self._say(found, {records.GONE: records.gone_text(self._clock(), why)})
        elif self._has_ended(records.instance_of(host)):
            return  # asked for at every round while the host is on record
        self._api.call("terminate_instances", InstanceIds=[records.instance_of(host)])
        self._listed_at = None

    def forget(self, host: str) -> None:
        found = self._find(host)
        if found is not None and not found.lives:
            self._memory.forget(records.instance_of(host), self._clock())

    def _say(self, host: Host, tags: Mapping[str, str]) -> None:
        """Tag an instance, and remember it until EC2 tells it too."""
        instance = records.instance_of(host.id)
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        self._api.call("create_tags", Resources=[instance], Tags=listed)
        self._memory.add_said(instance, tags, self._clock())

    def _find(self, host: str) -> Host | None:
        return next((one for one in self.hosts() if one.id == host), None)

    def _known(self, host: str) -> Host:
        found = self._find(host) if pool_of(host) == self.name else None
        if found is None:
            known = ", ".join(one.id for one in self.hosts() if one.lives) or "none"
            raise NodeNotFoundError(f"no host {host!r} in pool {self.name!r}; it has: {known}")
        return found

    def _instances(self) -> list[dict[str, Any]]:
        """The pool's instances as EC2 told them within the last second."""
        with self._lock:
            now = time.monotonic()
            if self._listed_at is None or now - self._listed_at > FRESH_S:
                try:
                    self._listed = self._api.instances(records.filters(self._fleet, self.name))
                    self._listed_at = now
                except PoolError:
                    if self._listed_at is None or now - self._listed_at > STALE_S:
                        raise
            return self._listed

    def _has_ended(self, instance: str) -> bool:
        """Whether EC2 itself tells of an instance's end."""
        return any(
            one["InstanceId"] == instance and not records.runs(one) for one in self._instances()
        )

    def _note_ends(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        """Put on record, once, the ends that came from outside."""
        now = self._clock()
        ends = {i: end for i, one in known.items() if (end := records.untold_end(one, now))}
        if not ends:
            return
        memory = self._memory.read(now)
        for instance, end in ends.items():
            if records.GONE not in memory.said.get(instance, {}):
                self._memory.add_said(instance, {records.GONE: end}, now)

    def _reap(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        """End again what somebody ended who died, or was refused, before EC2 heard of it."""
        now = self._clock()
        left = [i for i, one in known.items() if records.ended_but_runs(one, now - REAP_S)]
        if left:
            with contextlib.suppress(PoolError):  # the next look tries again
                self._api.call("terminate_instances", InstanceIds=left)

    def _request(
        self, count: int, tags: Mapping[str, str], launch_request: str | None
    ) -> dict[str, Any]:
        spot = self._spec.market is Market.SPOT
        options = (
            {"SpotOptions": {"AllocationStrategy": "price-capacity-optimized"}}
            if spot
            else {"OnDemandOptions": {"AllocationStrategy": "lowest-price"}}
        )
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        return {
            "Type": "instant",
            "ClientToken": self._token(launch_request, count),
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": count,
                "DefaultTargetCapacityType": "spot" if spot else "on-demand",
            },
            "LaunchTemplateConfigs": [
                {
                    "LaunchTemplateSpecification": {
                        "LaunchTemplateName": self._template(),
                        "Version": "$Default",
                    },
                    "Overrides": [
                        {"InstanceType": kind, "SubnetId": subnet}
                        for kind in self._ec2.types
                        for subnet in self._ec2.subnets
                    ],
                }
            ],
            "TagSpecifications": [{"ResourceType": "instance", "Tags": listed}],
            **options,
        }

    def _token(self, launch_request: str | None, count: int) -> str:
        """The same for the same request of the autoscaler, so that a repeated one launches once."""
        request = launch_request or token_hex(16)
        text = f"{self._fleet}/{self.name}/{request}/{count}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _user_data(self) -> str:
        """What instances run first; empty where there is no cluster to join. Raises PoolError."""
        if not self._site.joins:
            return ""
        try:
            return user_data(FleetDir(self._site.folder), self._spec)
        except StoreError as error:
            raise PoolError(
                f"pool {self.name!r}: nothing is launched, since the object store does not take "
                f"what instances need to join: {error}"
            ) from error

    def _template(self) -> str:
        """The name of the launch template; it is made where there is none of this content."""
        data = records.template_data(self._ec2, self._user_data())
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]
        name = f"rayburst-{self._fleet}-{self.name}-{digest}"
        self._api.call(
            "create_launch_template",
            may_fail=("InvalidLaunchTemplateName.AlreadyExistsException",),
            LaunchTemplateName=name,
            LaunchTemplateData=data,
            TagSpecifications=[
                {
                    "ResourceType": "launch-template",
                    "Tags": [{"Key": records.FLEET, "Value": self._fleet}],
                }
            ],
        )
        return name
