"""A cloud in a box: an EC2 endpoint whose instances are hosts, and a market that a script moves.

    with Cloud(folder) as cloud:
        boto3.client("ec2", endpoint_url=cloud.ec2.url, ...).create_fleet(...)
        cloud.play(parse_script(text, source="outage.yaml"), speed=10)
        cloud.interrupt(instance_id, notice_s=120)

An instance that is launched becomes a host of the box on the cloud network, in the subnet of its
zone: it answers SSH, its metadata service answers at 169.254.169.254 (tokens only), and its user
data is run as root. Terminated, reclaimed or without power, it is gone with all its processes. An
instance that shuts itself down is terminated, as launch templates of rayburst ask for.

The endpoint answers on this machine's loopback (`ec2.url`) and in the box (`endpoint`). It needs
what a box needs, see `box.why_not`, and the package `moto`. It knows no Ray.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from rayburst.dev.cloud.box import METADATA, Box, network_of, router_address
from rayburst.dev.cloud.ec2_server import Ec2Server
from rayburst.dev.cloud.host_init import SHUTDOWN_S
from rayburst.dev.cloud.imds import ImdsServer
from rayburst.dev.cloud.machine import described, image_environment, user_data_of
from rayburst.dev.cloud.player import Player
from rayburst.dev.cloud.script import Step
from rayburst.dev.cloud.wires import listen
from rayburst.errors import FleetBrokenError, NodeNotFoundError, SpecError, StartError
from rayburst.fleet import processes

EC2_PORT = 4599
_LOG = logging.getLogger("rayburst.cloud")
_LOOK_S = 0.1
_RUN = "cat > /run/user-data && chmod 700 /run/user-data && exec /run/user-data"
_SHUT_DOWN = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
_NOT_STARTED = ("Server.InternalError", "Internal error on launch")


@dataclass(kw_only=True, slots=True)
class _Machine:
    """What stands behind an instance that has come up. `first` is None after a power cut."""

    first: psutil.Process | None
    imds: ImdsServer
    user_data: subprocess.Popen[bytes] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One instance that lives.

    Attributes:
        pid: of its host's first process, from outside; None until it has come up.
        reclaimed_at: unix seconds; None without a notice.
    """

    id: str
    address: str
    kind: str
    zone: str
    market: str
    pid: int | None
    reclaimed_at: float | None


class Cloud:
    """One cloud; `folder` holds its keys and logs. Use it as a context.

    Args:
        zones: how many zones it has, each with one subnet; at most 6.

    Attributes:
        image: what the environment of user data holds beside a PATH to this Python and rayburst:
            what an image would bring, or an instance profile.
        subnets: subnet id by zone.
        boots_fail: so many of the next instances come up and run no user data.
    """

    def __init__(
        self,
        folder: Path,
        *,
        zones: int = 3,
        region: str = "us-east-1",
        image: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= zones <= 6:
            raise StartError(f"a cloud in a box was asked for {zones} zones; it has 1 to 6")
        self.box = Box(folder)
        self.ec2 = Ec2Server(address="127.0.0.1", region=region)
        self.zones = tuple(f"{region}{letter}" for letter in "abcdef"[:zones])
        self.subnets: dict[str, str] = {}
        self.boots_fail = 0
        self.image = dict(image or {})
        self._clock = clock
        self._machines: dict[str, _Machine] = {}
        self._reclaims: dict[str, float] = {}
        self._rebalances: dict[str, float] = {}
        self._cuts: set[str] = set()
        self._lock = threading.RLock()
        self._changed, self._ended = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._players: list[Player] = []

    @property
    def endpoint(self) -> str:
        """The EC2 endpoint's address for hosts of the box."""
        return f"http://{router_address('onprem')}:{EC2_PORT}"

    @property
    def ami(self) -> str:
        """An image that instances can be launched with; all are alike."""
        return str(min(self.ec2.backend().amis))

    def __enter__(self) -> Self:
        self.box.__enter__()
        try:
            self.ec2.start()
            self.ec2.reset()
            with listen(self.box, router_address("onprem"), EC2_PORT) as inside:
                self.ec2.answer_at(inside)
            self._make_subnets()
            self.ec2.called = self._changed.set
            for keep in (self._keep_market, self._keep_hosts):
                thread = threading.Thread(target=keep, daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every instance, the endpoint and the box. Raises FleetBrokenError for leftovers."""
        self._ended.set()
        self._changed.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.ec2.called = lambda: None
        self.ec2.stop()
        for machine in self._machines.values():
            machine.imds.stop()
        self.box.close()
        for machine in self._machines.values():
            _reap(machine)
        self._machines.clear()

    def instances(self) -> list[Instance]:
        """What lives, the oldest first."""
        found = []
        for held in self.ec2.held():
            one = self.ec2.backend().get_instance(held.id)
            kind, zone, market = held.place
            machine = self._machines.get(held.id)
            found.append(
                Instance(
                    id=held.id,
                    address=one.private_ip,
                    kind=kind,
                    zone=zone,
                    market=market,
                    pid=machine.first.pid if machine and machine.first else None,
                    reclaimed_at=self._reclaims.get(held.id),
                )
            )
        return found

    def interrupt(self, instance: str, *, notice_s: float) -> float:
        """Give a spot instance notice, and take it when that is over; returns when (unix seconds).

        A notice that was given stands. Without notice it is gone at once.

        Raises:
            NodeNotFoundError: no such instance lives.
        """
        living = [one.id for one in self.ec2.held()]
        if instance not in living:
            known = ", ".join(living) or "none"
            raise NodeNotFoundError(f"no instance {instance!r} in this cloud; it has: {known}")
        with self._lock:
            deadline = self._reclaims.setdefault(instance, self._clock() + notice_s)
            self.ec2.leaving.add(instance)
            if notice_s <= 0:
                self._cuts.add(instance)
            if notice_s > 0 and (machine := self._machines.get(instance)) is not None:
                machine.imds.give_notice(deadline=deadline)
        _LOG.info("notice: %s is taken in %.1f s", instance, deadline - self._clock())
        return deadline

    def recommend_rebalance(self, instance: str) -> None:
        """Tell a spot instance that it may be taken soon."""
        with self._lock:
            at = self._rebalances.setdefault(instance, self._clock())
            if (machine := self._machines.get(instance)) is not None:
                machine.imds.recommend_rebalance(at=at)
        _LOG.info("rebalance recommendation: %s", instance)

    def cut_power(self, instance: str) -> None:
        """The machine behind an instance dies; EC2 goes on telling that the instance runs."""
        with self._lock:
            machine = self._machines[instance]
            machine.first = None
        machine.imds.stop()
        self.box.cut_power(instance)

    def play(self, steps: Sequence[Step], *, speed: float = 1.0) -> Player:
        """Let the steps of a script happen from now on, `speed` times as fast as they are dated.

        Raises:
            SpecError: a step is about a zone that this cloud has not.
        """
        if unknown := {step.zone for step in steps} - {"", *self.zones}:
            raise SpecError(
                f"the script names {', '.join(sorted(unknown))}; the zones of this cloud are "
                f"{', '.join(self.zones)}"
            )
        player = Player(self, steps, speed=speed, started_at=self._clock())
        player.step(self._clock())
        with self._lock:
            self._players.append(player)
        return player

    def trim(self, notice_s: float) -> None:
        """Give notice to instances above what the market has."""
        for instance in self.ec2.market.surplus(self.ec2.held()):
            self.interrupt(instance, notice_s=notice_s)

    def _make_subnets(self) -> None:
        backend = self.ec2.backend()
        network = network_of("cloud")
        vpc = backend.create_vpc(str(network))
        for zone, part in zip(self.zones, network.subnets(new_prefix=20), strict=False):
            subnet = backend.create_subnet(vpc.id, str(part), availability_zone=zone)
            self.subnets[zone] = subnet.id

    def _keep_market(self) -> None:
        """Scripts and deadlines: what must not wait for a host that boots."""
        while not self._ended.wait(_LOOK_S):
            now = self._clock()
            with self._lock:
                players, due = list(self._players), dict(self._reclaims)
            for player in players:
                player.step(now)
            living = {one.id for one in self.ec2.held()}
            for instance, deadline in due.items():
                if instance not in living:
                    with self._lock:
                        self._reclaims.pop(instance, None)
                        self.ec2.leaving.discard(instance)
                elif now >= deadline:
                    self.ec2.reclaim(instance)
                    _LOG.info("reclaimed: %s", instance)
                    self._changed.set()

    def _keep_hosts(self) -> None:
        """Hosts follow the instances that EC2 tells of."""
        while not self._ended.is_set():
            self._changed.wait(_LOOK_S)
            self._changed.clear()
            living = {one.id: one for one in self.ec2.living()}
            self._end([one for one in self._machines if one not in living])
            for instance, machine in list(self._machines.items()):
                if machine.first is not None and not processes.alive(machine.first):
                    self.ec2.end(instance, *_SHUT_DOWN)
                    self._changed.set()
            for instance in living:
                if instance not in self._machines and not self._ended.is_set():
                    self._start(living[instance])
                    self._changed.set()  # others may have been ended meanwhile
                    break

    def _start(self, instance: Any) -> None:
        try:
            self.box.start_host(instance.id, network="cloud", address=instance.private_ip)
            imds = ImdsServer(at=listen(self.box, METADATA, 80, host=instance.id))
        except (StartError, OSError) as error:
            _LOG.warning("%s does not start: %s", instance.id, error)
            self.ec2.end(instance.id, *_NOT_STARTED)
            self._cut(instance.id)
            return
        data = user_data_of(instance)
        zone = self.ec2.zone(instance.subnet_id)
        imds.documents.update(described(instance, zone=zone, region=self.ec2.region))
        imds.user_data = data
        imds.start()
        with self._lock:
            first = psutil.Process(self.box.pid(instance.id))
            machine = _Machine(first=first, imds=imds, user_data=None)
            self._machines[instance.id] = machine
            if (deadline := self._reclaims.get(instance.id)) is not None:
                imds.give_notice(deadline=deadline)
            if (at := self._rebalances.get(instance.id)) is not None:
                imds.recommend_rebalance(at=at)
            fails, self.boots_fail = self.boots_fail > 0, max(self.boots_fail - 1, 0)
        _LOG.info("up: %s at %s in %s", instance.id, instance.private_ip, zone)
        if data and not fails:
            machine.user_data = self._run(instance.id, data)

    def _run(self, host: str, data: str) -> subprocess.Popen[bytes]:
        """Run a host's user data as root, as its cloud-init would."""
        env = image_environment() | self.image
        env[processes.OWNER_VARIABLE] = str(self.box.folder)
        with (self.box.folder / f"{host}.user-data.log").open("ab") as log:
            running = subprocess.Popen(
                self.box.inside(["sh", "-c", _RUN], host=host),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        if running.stdin is not None:
            running.stdin.write(data.encode())
            running.stdin.close()
        return running

    def _end(self, instances: Sequence[str]) -> None:
        """Shut hosts down, all at once, and cut those off that have no more time."""
        machines = {one: self._machines[one] for one in instances}
        deadline = time.monotonic() + SHUTDOWN_S + 1.0
        waiting = [m.first for one, m in machines.items() if m.first and one not in self._cuts]
        for first in waiting:
            with contextlib.suppress(psutil.NoSuchProcess):
                first.terminate()
        while any(map(processes.alive, waiting)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for instance, machine in machines.items():
            with self._lock:
                self._machines.pop(instance)
                self._cuts.discard(instance)
            machine.imds.stop()
            self._cut(instance)
            _reap(machine)
            _LOG.info("gone: %s", instance)

    def _cut(self, instance: str) -> None:
        if instance in self.box.hosts:
            try:
                self.box.cut_power(instance)
            except FleetBrokenError:
                if not self._ended.is_set():
                    raise


def _reap(machine: _Machine) -> None:
    if machine.user_data is not None:
        machine.user_data.wait(timeout=30)  # its host is gone, and with it what it ran
