"""An EC2 endpoint of this machine that can refuse: moto, and before it what moto lacks.

    server = Ec2Server(address="127.0.0.1")
    server.start()
    server.capacity["m6i.large", "us-east-1a", "spot"] = 2
    server.fail("CreateFleet", code="RequestLimitExceeded", times=2)
    server.stop()

moto launches whatever is asked for. Here a launch finds only what its market has left, a quota may
be reached, the same client token launches once, and calls fail by script. `calls` is what came in.
Needs the package `moto`. It starts no machines.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from rayburst.dev.cloud.ec2_answers import FleetRequest, failure, refused_fleet, with_refusals

Market = tuple[str, str, str]
"""Instance type, zone, and "spot" or "on-demand"."""

ACCOUNT = "123456789012"
_LIVING = ("pending", "running")


@dataclass
class Fault:
    """A scripted refusal of calls of one action. `times` counts down."""

    code: str
    status: int
    times: int


class Ec2Server:
    """One endpoint with one region's instances. `capacity` without an entry is without end.

    Attributes:
        capacity: hosts that a market has in all, those of others included.
        quota: instances that the account may have, by "spot" and "on-demand".
        calls: the action of every EC2 call that came in, in order.
    """

    def __init__(self, *, address: str, region: str = "us-east-1", port: int = 0) -> None:
        self.region = region
        self.capacity: dict[Market, int] = {}
        self.quota: dict[str, int] = {}
        self.calls: list[str] = []
        self._faults: dict[str, Fault] = {}
        self._answers: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {}
        self._bind = (address, port)
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._one_launch = threading.Lock()

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}"

    def start(self) -> None:
        """Answer, in a thread of this process."""
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        address, port = self._bind
        self._server = make_server(
            address, port, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._thread = None

    def reset(self) -> None:
        """Forget all instances, limits and scripts."""
        from moto.moto_api._internal.models import moto_api_backend

        moto_api_backend.reset()
        self.capacity.clear()
        self.quota.clear()
        self.calls.clear()
        self._faults.clear()
        self._answers.clear()

    def fail(self, action: str, *, code: str, status: int = 503, times: int = 1) -> None:
        """Refuse the next `times` calls of an action."""
        self._faults[action] = Fault(code, status, times)

    def living(self) -> list[Any]:
        """moto's instances that live."""
        found = self.backend().all_instances()
        return [one for one in found if one.state in _LIVING]

    def reclaim(self, instance: str) -> None:
        """Take a spot instance away, as EC2 does it."""
        one = self.backend().get_instance(instance)
        self.backend().terminate_instances([instance])
        one._reason = "Server.SpotInstanceTermination"
        one.state_reason.code = "Server.SpotInstanceTermination"
        one.state_reason.message = "Server.SpotInstanceTermination: Spot instance termination"

    def backend(self) -> Any:
        """moto's EC2."""
        from moto.ec2.models import ec2_backends

        return ec2_backends[ACCOUNT][self.region]

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        action = form.get("Action", "")
        if action:
            self.calls.append(action)
        if (fault := self._faults.get(action)) is not None and fault.times > 0:
            fault.times -= 1
            return _send(start_response, fault.status, failure(fault.code, "as the script says"))
        if action == "CreateFleet":
            with self._one_launch:
                return self._create_fleet(environ, start_response, form)
        return self._moto(environ, start_response, body)

    def _create_fleet(
        self, environ: dict[str, Any], start_response: Any, form: dict[str, str]
    ) -> Iterable[bytes]:
        token = form.get("ClientToken", "")
        if token in self._answers:
            status, headers, answer = self._answers[token]
            start_response(status, headers)
            return [answer]
        request = FleetRequest.of(form)
        if (most := self.quota.get(request.market)) is not None:
            has = sum(_market(one) == request.market for one in self.living())
            if has + request.count > most:
                spot = request.market == "spot"
                code = "MaxSpotInstanceCountExceeded" if spot else "VcpuLimitExceeded"
                return _send(start_response, 200, refused_fleet(request, code))
        rooms = [self._room(kind, subnet, request) for kind, subnet in request.places]
        best = max(range(len(rooms)), key=lambda index: rooms[index])
        if rooms[best] <= 0:
            nothing = refused_fleet(request, "InsufficientInstanceCapacity")
            return _send(start_response, 200, nothing)
        delivered = min(rooms[best], request.count)
        narrowed = request.narrowed(best, delivered)
        sent: list[Any] = []
        parts = self._moto(environ, lambda *told: sent.append(told), urlencode(narrowed).encode())
        answer = b"".join(parts)
        status, headers = sent[-1][0], list(sent[-1][1])
        if delivered < request.count:
            answer = with_refusals(answer, request, "InsufficientInstanceCapacity")
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        if token and status.startswith("200"):
            self._answers[token] = (status, headers, answer)
        start_response(status, headers)
        return [answer]

    def _room(self, kind: str, subnet: str, request: FleetRequest) -> int:
        zone = self.zone(subnet)
        most = self.capacity.get((kind, zone, request.market))
        if most is None:
            return request.count
        there = (one for one in self.living() if one.instance_type == kind)
        return most - sum(
            _market(one) == request.market and self.zone(one.subnet_id) == zone for one in there
        )

    def subnets(self) -> dict[str, str]:
        """One subnet for each zone."""
        return {zone: min(held) for zone, held in sorted(self.backend().subnets.items())}

    def zone(self, subnet: str) -> str:
        """The zone of a subnet."""
        zone: str = self.backend().get_subnet(subnet).availability_zone
        return zone

    def _moto(self, environ: dict[str, Any], start_response: Any, body: bytes) -> Iterable[bytes]:
        inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer: Iterable[bytes] = self._app(inner, start_response)
        return answer


def _market(instance: Any) -> str:
    return "spot" if instance.lifecycle == "spot" else "on-demand"


def _send(start_response: Any, status: int, text: str) -> Iterable[bytes]:
    body = text.encode()
    headers = [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {'OK' if status == 200 else 'Refused'}", headers)
    return [body]
