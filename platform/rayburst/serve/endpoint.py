"""One model on one replica: from a request's bytes to a response, whatever carries them.

    endpoint = Endpoint(model, options, codec)
    endpoint.attach()                     # on the event loop that serves HTTP
    endpoint.take(call)                   # a Call; its `respond` is called once
    value = await endpoint.ask(value)     # by handle, from any loop

lanes.py and asgi.py bring HTTP to it; neither decides anything. A body is decoded and checked when
it arrives, before it can meet others; batches are stacked, computed and encoded off the loop.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from rayburst.errors import BadRequestError, LateError, RefusedError, RequestError
from rayburst.serve.admission import Admission, Load, Refusal
from rayburst.serve.batcher import Batcher, Ticket
from rayburst.serve.codec import ARROW, JSON, NPY, Codec
from rayburst.serve.metrics import ServingMetrics
from rayburst.serve.options import ModelOptions
from rayburst.serve.rates import Rates
from rayburst.serve.retry.haproxy import ARRIVED
from rayburst.serve.retry.spent import Spent
from rayburst.serve.runner import Runner
from rayburst.serve.scaling import Demand

__all__ = ["DEADLINE", "MODEL_ID", "PRIORITY", "TENANT", "Call", "Endpoint", "Gate"]

DEADLINE = b"x-rayburst-deadline-ms"
PRIORITY = b"x-rayburst-priority"
TENANT = b"x-rayburst-tenant"
MODEL_ID = b"serve_multiplexed_model_id"
_ARRIVED = ARRIVED.encode()
_KINDS = {JSON.encode(): JSON, NPY.encode(): NPY, ARROW.encode(): ARROW}
_ANY = (b"*/*", b"application/*", b"")
_MAX_DEADLINE_S = 3600.0
_LOWEST = 9  # the last of the priorities 0..9

Headers = Mapping[bytes, bytes]


class Gate(Protocol):
    """Who a request comes from: a tenant's name; RequestError when it may not ask."""

    def tenant(self, headers: Headers, now_s: float) -> str:
        """The tenant of a request with these (lower-case) headers."""


class Call(Protocol):
    """A request on its way: what a carrier hands to the endpoint."""

    headers: Headers
    ticket: Ticket | None

    def respond(self, status: int, body: bytes, kind: str, retry_after_s: float | None) -> None:
        """Sends the response. Called once, unless the client is gone."""


class _Payload:
    """What waits in the queue for a call: its value, how to answer, and whom."""

    __slots__ = ("accept", "call", "future", "model_id", "value")

    def __init__(
        self, value: Any, accept: str, call: Call | None, future: Any, model_id: str = ""
    ) -> None:
        self.value, self.accept, self.call, self.future = value, accept, call, future
        self.model_id = model_id


class Endpoint:
    """The queue, the slots and the books of one model on one replica."""

    def __init__(
        self,
        model: Any,
        options: ModelOptions,
        codec: Codec,
        *,
        name: str,
        gate: Gate | None = None,
        admission: Admission | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.model, self.options, self.codec, self.name = model, options, codec, name
        self.metrics = ServingMetrics(name)
        self.admission = admission or Admission(max_waiting=options.queue_limit)
        self.gate, self.rates = gate, rates
        self.batcher = Batcher(max_batch=options.max_batch, patience_s=options.slo_s)
        self.demand = Demand(slo_s=options.slo_s, max_batch=options.max_batch, slots=options.slots)
        self._threads = ThreadPoolExecutor(options.slots, thread_name_prefix="predict")
        self._spent = Spent() if options.idempotent else None
        self._model_ids: Container[str] | None = getattr(model, "model_ids", None)
        self._is_async = inspect.iscoroutinefunction(model.predict)
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = 0

    @property
    def held(self) -> int:
        """Requests waiting or running."""
        return self._held

    def attach(self) -> None:
        """Settles on the running loop: requests are queued and answered there."""
        self._loop = asyncio.get_running_loop()
        self._runner = Runner(
            self.batcher, self._compute, done=self._done, slots=self.options.slots
        )
        gauges = self.metrics.gauges
        gauges["rayburst_serve_waiting"] = ("Requests in the queue", lambda: len(self.batcher))
        gauges["rayburst_serve_held"] = ("Requests waiting or running", lambda: self._held)
        gauges["rayburst_serve_forecast_seconds"] = (
            "Seconds until a request that came now would be answered",
            lambda: self.forecast_s(),
        )

    def warm_up(self, example: Any) -> None:
        """Computes the example alone and in full batches, so that the first costs are known."""
        if example is None or self._is_async or self._model_ids is not None:
            return
        self._predict([example], encode=None)  # the first run of all also pays for allocations
        curve = self.batcher.costs.of("", self._bucket_of(example))
        for size in (1 << n for n in range(self.options.max_batch.bit_length())):
            started_s = time.perf_counter()
            self._predict([example] * size, encode=None)
            curve.learn(size, time.perf_counter() - started_s)

    def forecast_s(self) -> float:
        """Seconds until a request that came now would be answered."""
        now_s = time.monotonic()
        ticket = Ticket(None, arrived_s=now_s, deadline_s=now_s + self.options.slo_s)
        return self._here.forecast_s(ticket, now_s)

    def take(self, call: Call, body: bytes) -> None:
        """Answers an HTTP request whose body is complete. On the loop of `attach` only."""
        now_s = time.monotonic()
        headers = call.headers
        try:
            tenant = self._tenant(headers, now_s)
            kind, accept = self._kinds(headers)
            value = self.codec.decode(body, kind)
            ticket = self._ticket(_Payload(value, accept, call, None), headers, tenant, now_s)
        except RequestError as error:
            self._refuse(call, error, now_s)
            return
        if self.rates is None:
            self._enter(call, ticket, None)
        else:
            self.rates.take(tenant, now_s, lambda refusal: self._enter(call, ticket, refusal))

    async def ask(
        self, value: Any, *, tenant: str = "", deadline_s: float | None = None, model_id: str = ""
    ) -> Any:
        """The answer to one value, computed with others; for handles and for ASGI.

        BadRequestError, RefusedError, LateError, or what predict raised.
        """
        payload = _Payload(value, "", None, None, self._which(model_id))
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self.attach()
        if loop is not self._loop and self._loop is not None:
            asked = self._ask_here(payload, tenant, deadline_s)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._loop))
        return await self._ask_here(payload, tenant, deadline_s)

    def on_home(self, do: Callable[[], None]) -> None:
        """Runs `do` on the loop of `attach`: at once when called there, else soon."""
        if self._loop is None:
            self.attach()
        home = self._loop
        if home is None or home is asyncio.get_running_loop():
            do()
        else:
            home.call_soon_threadsafe(do)

    async def admit_stream(self, headers: Headers, body: bytes) -> Any:
        """The value of a request for a stream, which is not batched; RequestError if refused."""
        now_s = time.monotonic()
        tenant = self._tenant(headers, now_s)
        kind, _ = self._kinds(headers)
        value = self.codec.decode(body, kind)
        ticket = Ticket(None, arrived_s=now_s, deadline_s=math.inf, tenant=tenant)
        load = Load(forecast_s=0.0, room=math.inf, held=0, is_idle=True)
        refusal = self.admission.judge(ticket, now_s=now_s, load=load)
        if refusal is None and self.rates is not None:
            refusal = await self._token(tenant, now_s)
        if refusal is not None:
            raise RefusedError(
                refusal.why, status=refusal.status, retry_after_s=refusal.retry_after_s
            )
        return value

    async def _token(self, tenant: str, now_s: float) -> Refusal | None:
        """A token of `rates` for a caller on any loop."""
        got: Future[Refusal | None] = Future()
        rates = self.rates
        if rates is not None:
            self.on_home(lambda: rates.take(tenant, now_s, got.set_result))
        return await asyncio.wrap_future(got)

    def cancel(self, ticket: Ticket) -> None:
        """The client is gone: not computed if it still waits, not answered in any case."""
        ticket.payload.call = ticket.payload.future = None
        if self._here.cancel(ticket):
            self._leave(ticket)
            self.metrics.answered(499, 0.0)

    async def _ask_here(self, payload: _Payload, tenant: str, deadline_s: float | None) -> Any:
        now_s = time.monotonic()
        future = payload.future = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            payload,
            arrived_s=now_s,
            deadline_s=now_s + (deadline_s or self.options.slo_s),
            length=self.codec.length(payload.value),
            variant=payload.model_id,
            tenant=tenant,
        )
        refusal = self._admit(ticket, now_s)
        if refusal is not None:
            raise RefusedError(
                refusal.why, status=refusal.status, retry_after_s=refusal.retry_after_s
            )
        self._here.submit(ticket)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise

    @property
    def _here(self) -> Runner:
        if self._runner is None:
            self.attach()
        if self._runner is None:
            raise RequestError("the endpoint is attached to no loop")
        return self._runner

    def _bucket_of(self, value: Any) -> int:
        return 1 << max(0, self.codec.length(value) - 1).bit_length()

    def _tenant(self, headers: Headers, now_s: float) -> str:
        """By its key; where none is needed, whom the request itself names."""
        if self.gate is not None:
            return self.gate.tenant(headers, now_s)
        return headers.get(TENANT, b"")[:64].decode("latin-1")

    def _kinds(self, headers: Headers) -> tuple[str, str]:
        """The content type of the body and of the answer."""
        given = headers.get(b"content-type", b"application/json")
        kind = _KINDS.get(given) or _KINDS.get(given.split(b";")[0].strip().lower())
        if kind is None or kind not in self.codec.kinds:
            allowed = ", ".join(self.codec.kinds)
            raise _Unsupported(f"content-type {given[:80]!r} is not taken; send {allowed}")
        wanted = headers.get(b"accept", b"*/*")
        if wanted in _ANY:
            return kind, kind
        for part in wanted.split(b","):
            name = part.split(b";")[0].strip().lower()
            if name in _KINDS and _KINDS[name] in self.codec.kinds:
                return kind, _KINDS[name]
        return kind, kind

    def _ticket(self, payload: _Payload, headers: Headers, tenant: str, now_s: float) -> Ticket:
        slo_s, priority = self.options.slo_s, 1
        if DEADLINE in headers:
            slo_s = _number(headers, DEADLINE, 0.001, _MAX_DEADLINE_S * 1000) / 1000
        if PRIORITY in headers:
            priority = int(_number(headers, PRIORITY, 0, _LOWEST, is_whole=True))
        if self._model_ids is not None:
            payload.model_id = self._which(headers.get(MODEL_ID, b"").decode("latin-1"))
        if self._spent is not None and _ARRIVED in headers:
            slo_s -= self._spent.seconds(headers[_ARRIVED], time.time())
        return Ticket(
            payload,
            arrived_s=now_s,
            deadline_s=now_s + slo_s,
            priority=priority,
            length=self.codec.length(payload.value),
            variant=payload.model_id,
            tenant=tenant,
        )

    def _which(self, model_id: str) -> str:
        """Which of the models that one class holds; "" where it holds but one."""
        if self._model_ids is None:
            return ""
        if model_id in self._model_ids:
            return model_id
        known = f": {', '.join(self._model_ids)}" if isinstance(self._model_ids, Iterable) else ""
        raise BadRequestError(
            f"header {MODEL_ID.decode()} is {model_id[:40]!r}; give one of model_ids{known}"
        )

    def _enter(self, call: Call, ticket: Ticket, refusal: Refusal | None) -> None:
        """Queues a request that has its token, unless it would be late."""
        if refusal is None:
            refusal = self._admit(ticket, time.monotonic())
            if refusal is not None and self.rates is not None:
                self.rates.give_back(ticket.tenant)
        if refusal is not None:
            self._turn_away(call, refusal, ticket.arrived_s)
            return
        call.ticket = ticket
        self._here.submit(ticket)

    def _admit(self, ticket: Ticket, now_s: float) -> Refusal | None:
        runner = self._here
        is_idle = runner.running < self.options.slots and not len(self.batcher)
        curve = self.batcher.costs.of(ticket.variant, self._bucket_of(ticket.payload.value))
        self.demand.asked(curve)
        whole_s = curve.mean(self.options.max_batch)
        slots, most = self.options.slots, self.options.max_batch
        room = slots * most * self.options.slo_s / whole_s if whole_s > 0 else math.inf
        load = Load(
            forecast_s=0.0 if is_idle else runner.forecast_s(ticket, now_s),
            room=room,
            held=self._held,
            is_idle=is_idle,
        )
        refusal = self.admission.judge(ticket, now_s=now_s, load=load)
        if refusal is None:
            self._held += 1
            self.admission.enter(ticket.tenant, now_s)
        return refusal

    def _leave(self, ticket: Ticket) -> None:
        self._held -= 1
        self.admission.leave(ticket.tenant)

    async def _compute(self, payloads: list[_Payload]) -> Sequence[Any]:
        self.metrics.batched(len(payloads))
        values = [payload.value for payload in payloads]
        if self._is_async:
            made = await self.model.predict(self.codec.stack(values), *self._model_of(payloads))
            return self._encoded(self.codec.split(made, len(values)), payloads)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._predict, values, payloads)

    def _predict(self, values: list[Any], encode: list[_Payload] | None) -> list[Any]:
        made = self.model.predict(self.codec.stack(values), *self._model_of(encode))
        answers = self.codec.split(made, len(values))
        return answers if encode is None else self._encoded(answers, encode)

    def _model_of(self, payloads: list[_Payload] | None) -> tuple[str, ...]:
        """What predict is told besides its batch: one batch is for one model."""
        return () if self._model_ids is None or not payloads else (payloads[0].model_id,)

    def _encoded(self, answers: list[Any], payloads: list[_Payload]) -> list[Any]:
        for place, payload in enumerate(payloads):
            answer = answers[place]
            if payload.accept and not isinstance(answer, BaseException):
                try:
                    answers[place] = self.codec.encode(answer, payload.accept)
                except Exception as error:  # noqa: BLE001  concerns this answer only
                    answers[place] = error
        return answers

    def _done(self, ticket: Ticket, answer: Any) -> None:
        self._leave(ticket)
        payload = ticket.payload
        now_s = time.monotonic()
        if payload.future is not None:
            _resolve(payload.future, answer)
        if payload.call is None:
            self.metrics.answered(200, now_s - ticket.arrived_s)
        elif isinstance(answer, BaseException):
            self._refuse(payload.call, answer, ticket.arrived_s)
        else:
            is_late = now_s > ticket.deadline_s
            self.metrics.answered(200, now_s - ticket.arrived_s, is_late=is_late)
            payload.call.respond(200, answer, payload.accept, None)

    def _refuse(self, call: Call, error: BaseException, began_s: float) -> None:
        status = error.status if isinstance(error, RequestError) else 500
        why = str(error) if isinstance(error, RequestError) else "the model failed on this request"
        retry_s = error.retry_after_s if isinstance(error, RefusedError) else None
        if isinstance(error, LateError):
            retry_s = self._here.busy_s(time.monotonic())
        self._say(call, status, why, retry_s, began_s)

    def _turn_away(self, call: Call, refusal: Refusal, began_s: float) -> None:
        self._say(call, refusal.status, refusal.why, refusal.retry_after_s, began_s)

    def _say(
        self, call: Call, status: int, why: str, retry_s: float | None, began_s: float
    ) -> None:
        self.metrics.answered(status, time.monotonic() - began_s)
        body: dict[str, Any] = {"error": why, "status": status}
        if retry_s is not None:
            body["retry_after_s"] = round(retry_s, 4)
        call.respond(status, msgspec.json.encode(body), JSON, retry_s)


class _Unsupported(BadRequestError):
    status = 415


def _number(
    headers: Headers, name: bytes, least: float, most: float, *, is_whole: bool = False
) -> float:
    try:
        value = float(headers[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most or (is_whole and value != int(value)):
        whole = "a whole number from " if is_whole else ""
        raise BadRequestError(
            f"header {name.decode()} is {headers[name][:40]!r}; give {whole}{least:g} to {most:g}"
        )
    return value


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
