"""An EC2 endpoint of this machine that can refuse: moto, and before it what moto lacks.

    server = Ec2Server(address="127.0.0.1")
    server.start()
    server.market.capacity["m6i.large", "us-east-1a", "spot"] = 2
    server.fail("CreateFleet", code="RequestLimitExceeded", times=2)
    server.stop()

moto launches whatever is asked for. Here a launch finds only what its market has left, a quota may
be reached, the same client token launches once, spot has prices, and calls fail by script. `calls`
is what came in. Needs the package `moto`. It starts no machines; `cloud.py` does, for a box.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from rayburst.dev.cloud.ec2_answers import (
    FleetRequest,
    failure,
    price_history,
    refused_fleet,
    with_refusals,
)
from rayburst.dev.cloud.market import NO_CAPACITY, OVER_QUOTA, Held, Market, Place

ACCOUNT = "123456789012"
_LIVING = ("pending", "running")


@dataclass
class Fault:
    """A scripted refusal of calls of one action. `times` counts down."""

    code: str
    status: int
    times: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A request for instances that no script refused: when (unix seconds), where, what it got."""

    at: float
    zone: str
    market: str
    asked: int
    got: int


class Ec2Server:
    """One endpoint with one region's instances.

    Attributes:
        market: what there is to launch.
        leaving: instances that were given notice.
        calls: the action of every EC2 call that came in, in order; `called_at` says when, in unix
            seconds.
        launches: every request for instances, in order; one that is repeated counts once.
        called: told of every call that was answered.
    """

    def __init__(self, *, address: str, region: str = "us-east-1", port: int = 0) -> None:
        self.region = region
        self.market = Market()
        self.leaving: set[str] = set()
        self.calls: list[str] = []
        self.called_at: list[float] = []
        self.launches: list[Launch] = []
        self.called: Callable[[], None] = lambda: None
        self._faults: dict[str, Fault] = {}
        self._answers: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {}
        self._bind = (address, port)
        self._servers: list[tuple[Any, threading.Thread]] = []
        self._one_launch = threading.Lock()

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._servers[0][0].server_address[:2]
        return f"http://{host}:{port}"

    def start(self) -> None:
        """Answer, in threads of this process."""
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        with socket.create_server(self._bind) as here:
            self.answer_at(here)

    def answer_at(self, listening: socket.socket) -> None:
        """Answer at a socket too, wherever it is."""
        from moto.moto_server.werkzeug_app import MotoRequestHandler
        from werkzeug.serving import make_server

        class Silent(MotoRequestHandler):
            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Say nothing: it is called several times a second."""

        address, port = listening.getsockname()[:2]
        server = make_server(
            address,
            port,
            self._answer,
            threaded=True,
            request_handler=Silent,
            fd=listening.fileno(),
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        self._servers.append((server, thread))

    def stop(self) -> None:
        """Answer no more."""
        for server, thread in self._servers:
            server.shutdown()
            thread.join()
            server.server_close()
        self._servers.clear()

    def reset(self) -> None:
        """Forget all instances, limits and scripts."""
        from moto.moto_api._internal.models import moto_api_backend

        moto_api_backend.reset()
        self.market.clear()
        self.leaving.clear()
        self.calls.clear()
        self.called_at.clear()
        self.launches.clear()
        self._faults.clear()
        self._answers.clear()

    def fail(self, action: str, *, code: str, status: int = 503, times: int = 1) -> None:
        """Refuse the next `times` calls of an action."""
        self._faults[action] = Fault(code, status, times)

    def failures(self, action: str) -> int:
        """How many calls of an action are still to be refused."""
        return self._faults[action].times if action in self._faults else 0

    def living(self) -> list[Any]:
        """moto's instances that live."""
        found = self.backend().all_instances()
        return [one for one in found if one.state in _LIVING]

    def held(self) -> list[Held]:
        """What lives, the oldest first."""
        living = sorted(self.living(), key=lambda one: one.launch_time)
        return [
            Held(id=one.id, place=self._place(one), leaving=one.id in self.leaving)
            for one in living
        ]

    def reclaim(self, instance: str) -> None:
        """Take a spot instance away, as EC2 does it."""
        self.end(instance, "Server.SpotInstanceTermination", "Spot instance termination")

    def end(self, instance: str, code: str, why: str) -> None:
        """End an instance for a reason of EC2's own."""
        one = self.backend().get_instance(instance)
        self.backend().terminate_instances([instance])
        one._reason = code
        one.state_reason.code = code
        one.state_reason.message = f"{code}: {why}"

    def backend(self) -> Any:
        """moto's EC2."""
        from moto.ec2.models import ec2_backends

        return ec2_backends[ACCOUNT][self.region]

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        action = form.get("Action", "")
        try:
            return self._answered(action, environ, start_response, form, body)
        finally:
            self.called()

    def _answered(
        self,
        action: str,
        environ: dict[str, Any],
        start_response: Any,
        form: dict[str, str],
        body: bytes,
    ) -> Iterable[bytes]:
        if action:
            self.calls.append(action)
            self.called_at.append(time.time())
        if (fault := self._faults.get(action)) is not None and fault.times > 0:
            fault.times -= 1
            return _send(start_response, fault.status, failure(fault.code, "as the script says"))
        if action == "CreateFleet":
            with self._one_launch:
                return self._create_fleet(environ, start_response, form)
        if action == "DescribeSpotPriceHistory" and self.market.prices:
            return _send(start_response, 200, price_history(self.market.prices, form, time.time()))
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
        held = self.held()
        places: list[Place] = [(k, self.zone(s), request.market) for k, s in request.places]
        best = self.market.choice(places, request.count, held)
        over = self.market.over_quota(request.market, request.count, held)
        room = 0 if over else self.market.room(places[best], held)
        delivered = int(min(room, request.count))
        self._note(places[best], request.count, delivered)
        if over:
            code = OVER_QUOTA[request.market]
            return _send(start_response, 200, refused_fleet(request, code))
        if delivered == 0:
            return _send(start_response, 200, refused_fleet(request, NO_CAPACITY))
        narrowed = request.narrowed(best, delivered)
        sent: list[Any] = []
        parts = self._moto(environ, lambda *told: sent.append(told), urlencode(narrowed).encode())
        answer = b"".join(parts)
        status, headers = sent[-1][0], list(sent[-1][1])
        if delivered < request.count:
            answer = with_refusals(answer, request, NO_CAPACITY)
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        if token and status.startswith("200"):
            self._answers[token] = (status, headers, answer)
        start_response(status, headers)
        return [answer]

    def _note(self, place: Place, asked: int, got: int) -> None:
        _, zone, market = place
        self.launches.append(Launch(at=time.time(), zone=zone, market=market, asked=asked, got=got))

    def subnets(self) -> dict[str, str]:
        """One subnet for each zone."""
        return {zone: min(held) for zone, held in sorted(self.backend().subnets.items())}

    def zone(self, subnet: str) -> str:
        """The zone of a subnet."""
        zone: str = self.backend().get_subnet(subnet).availability_zone
        return zone

    def _place(self, instance: Any) -> Place:
        market = "spot" if instance.lifecycle == "spot" else "on-demand"
        return instance.instance_type, self.zone(instance.subnet_id), market

    def _moto(self, environ: dict[str, Any], start_response: Any, body: bytes) -> Iterable[bytes]:
        inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer: Iterable[bytes] = self._app(inner, start_response)
        return answer


def _send(start_response: Any, status: int, text: str) -> Iterable[bytes]:
    body = text.encode()
    headers = [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {'OK' if status == 200 else 'Refused'}", headers)
    return [body]
