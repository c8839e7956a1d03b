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
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from rayburst.errors import BadRequestError, LateError, RefusedError, RequestError
from rayburst.serve.admission import Admission, Load, Refusal
from rayburst.serve.batcher import Batch, Batcher, Ticket
from rayburst.serve.codec import JSON, Codec
from rayburst.serve.costs import CostCurve
from rayburst.serve.headers import Headers, kinds, number
from rayburst.serve.metrics import ServingMetrics
from rayburst.serve.options import ModelOptions
from rayburst.serve.rates import Rates
from rayburst.serve.retry.haproxy import ARRIVED
from rayburst.serve.retry.spent import Spent
from rayburst.serve.rungs import Headers as Told
from rayburst.serve.rungs import Rungs
from rayburst.serve.runner import Runner
from rayburst.serve.scaling import Demand

__all__ = ["DEADLINE", "MODEL_ID", "PRIORITY", "TENANT", "Call", "Endpoint", "Gate"]

DEADLINE = b"x-rayburst-deadline-ms"
PRIORITY = b"x-rayburst-priority"
TENANT = b"x-rayburst-tenant"
MODEL_ID = b"serve_multiplexed_model_id"
_ARRIVED = ARRIVED.encode()
_MAX_DEADLINE_S = 3600.0
_LOWEST = 9  # the last of the priorities 0..9


class Gate(Protocol):
    """Who a request comes from: a tenant's name; RequestError when it may not ask."""

    def tenant(self, headers: Headers, now_s: float) -> str:
        """The tenant of a request with these (lower-case) headers."""


class Call(Protocol):
    """A request on its way: what a carrier hands to the endpoint. `told`: headers of the answer."""

    headers: Headers
    told: Told
    ticket: Ticket | None

    def respond(self, status: int, body: bytes, kind: str, retry_after_s: float | None) -> None:
        """Sends the response. Called once, unless the client is gone."""


class _Payload:
    """What waits in the queue for a call: its value, how to answer, and whom."""

    __slots__ = ("accept", "call", "future", "value", "variant")

    def __init__(
        self, value: Any, accept: str, call: Call | None, future: Any, variant: str = ""
    ) -> None:
        self.value, self.accept, self.call, self.future = value, accept, call, future
        self.variant = variant  # one of model_ids, or with `variants` the form that computes it


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
        self.demand = Demand(slo_s=options.slo_s, max_batch=options.max_batch, slots=options.slots)
        self.rungs = Rungs.of(model, options, work_s=self.demand.work_s)
        self.batcher = Batcher(
            max_batch=options.max_batch,
            patience_s=options.slo_s,
            ladder=None if self.rungs is None else self.rungs.ladder,
            slots=options.slots,
        )
        self._threads = ThreadPoolExecutor(options.slots, thread_name_prefix="predict")
        self._spent = Spent() if options.idempotent else None
        self._model_ids: Container[str] | None = getattr(model, "model_ids", None)
        self._is_async = inspect.iscoroutinefunction(model.predict)
        self._example: Any = None
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
            self.batcher,
            self._compute,
            done=self._done,
            slots=self.options.slots,
            begun=self._begun,
        )
        gauges = self.metrics.gauges
        gauges["rayburst_serve_waiting"] = ("Requests in the queue", lambda: len(self.batcher))
        gauges["rayburst_serve_held"] = ("Requests waiting or running", lambda: self._held)
        gauges["rayburst_serve_forecast_seconds"] = (
            "Seconds until a request that came now would be answered",
            lambda: self.forecast_s(),
        )
        if self.rungs is not None:
            ladder = self.rungs.ladder
            gauges["rayburst_serve_rung"] = (
                "Rungs below the most faithful variant",
                lambda: ladder.level(time.monotonic()),
            )
            self.rungs.load_when_short(self._ready)

    def warm_up(self, example: Any) -> None:
        """Computes the example alone and in full batches, so that the first costs are known.

        Loads the variants that are to be there first.
        """
        self._example = example
        for variant in [""] if self.rungs is None else self.rungs.load():
            if example is not None and not self._is_async and self._model_ids is None:
                self._try(variant)

    def _try(self, variant: str) -> None:
        """Learns what the example costs in one form."""
        example, payload = self._example, _Payload(self._example, "", None, None, variant)
        self._predict([example], [payload])  # the first run of all also pays for allocations
        curve = self.batcher.costs.of(variant, self._bucket_of(example))
        for size in (1 << n for n in range(self.options.max_batch.bit_length())):
            curve.learn(size, min(self._timed(example, payload, size) for _ in range(2)))

    def _timed(self, example: Any, payload: _Payload, size: int) -> float:
        """Seconds of one batch. One that was held up would keep a rung from ever being used."""
        started_s = time.perf_counter()
        self._predict([example] * size, [payload] * size)
        return time.perf_counter() - started_s

    def _ready(self, variant: str) -> None:
        """A form that was missed is loaded: tried where batches are computed, then admitted."""
        if self._example is not None and not self._is_async:
            self._threads.submit(self._try, variant).result()
        if self.rungs is not None:
            self.rungs.ladder.admit(variant)

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
            kind, accept = kinds(headers, self.codec.kinds)
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
        asked = self.ask_told(value, tenant=tenant, deadline_s=deadline_s, model_id=model_id)
        return (await asked)[0]

    async def ask_told(
        self, value: Any, *, tenant: str = "", deadline_s: float | None = None, model_id: str = ""
    ) -> tuple[Any, str]:
        """As `ask`, and the variant that answered ("" where the model has but one)."""
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
        kind, _ = kinds(headers, self.codec.kinds)
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

    async def _ask_here(
        self, payload: _Payload, tenant: str, deadline_s: float | None
    ) -> tuple[Any, str]:
        now_s = time.monotonic()
        future = payload.future = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            payload,
            arrived_s=now_s,
            deadline_s=now_s + (deadline_s or self.options.slo_s),
            length=self.codec.length(payload.value),
            variant=payload.variant,
            tenant=tenant,
        )
        refusal = self._admit(ticket, now_s)
        if refusal is not None:
            raise RefusedError(
                refusal.why, status=refusal.status, retry_after_s=refusal.retry_after_s
            )
        self._here.submit(ticket)
        try:
            return await future, ticket.variant
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

    def _ticket(self, payload: _Payload, headers: Headers, tenant: str, now_s: float) -> Ticket:
        slo_s, priority, spent_s = self.options.slo_s, 1, 0.0
        if DEADLINE in headers:
            slo_s = number(headers, DEADLINE, 0.001, _MAX_DEADLINE_S * 1000) / 1000
        if PRIORITY in headers:
            priority = int(number(headers, PRIORITY, 0, _LOWEST, is_whole=True))
        if self._model_ids is not None:
            payload.variant = self._which(headers.get(MODEL_ID, b"").decode("latin-1"))
        if self._spent is not None and _ARRIVED in headers:
            spent_s = self._spent.seconds(headers[_ARRIVED], time.time())
        return Ticket(
            payload,
            arrived_s=now_s,
            deadline_s=now_s + slo_s - spent_s,
            spent_s=spent_s,
            priority=priority,
            length=self.codec.length(payload.value),
            variant=payload.variant,
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
        curve = self._asked(ticket, self._bucket_of(ticket.payload.value), now_s)
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

    def _asked(self, ticket: Ticket, length: int, now_s: float) -> CostCurve:
        """Counts it for what it takes in the best form; the costs that admission goes by."""
        costs = self.batcher.costs
        if self.rungs is None:
            curve = costs.of(ticket.variant, length)
            self.demand.asked(curve)
            return curve
        ladder = self.rungs.ladder
        ladder.asked(length, now_s)
        self.demand.asked(costs.of(ladder.best, length))
        return costs.of(ladder.cheapest(costs, length, self.options.max_batch), length)

    def _begun(self, batch: Batch) -> None:
        self.metrics.batched(len(batch.tickets))
        for ticket in batch.tickets:
            ticket.payload.variant = batch.variant

    def _leave(self, ticket: Ticket) -> None:
        self._held -= 1
        self.admission.leave(ticket.tenant)

    async def _compute(self, payloads: list[_Payload]) -> Sequence[Any]:
        values = [payload.value for payload in payloads]
        if self._is_async:
            made = await self.model.predict(self.codec.stack(values), *self._model_of(payloads))
            return self._encoded(self.codec.split(made, len(values)), payloads)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._predict, values, payloads)

    def _predict(self, values: list[Any], payloads: list[_Payload]) -> list[Any]:
        made = self.model.predict(self.codec.stack(values), *self._model_of(payloads))
        return self._encoded(self.codec.split(made, len(values)), payloads)

    def _model_of(self, payloads: list[_Payload]) -> tuple[str, ...]:
        """What predict is told besides its batch: one batch is for one model in one form."""
        is_told = self._model_ids is not None or self.rungs is not None
        return (payloads[0].variant,) if is_told else ()

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
        is_error = isinstance(answer, BaseException)
        if payload.call is not None and is_error:
            self._refuse(payload.call, answer, ticket.arrived_s)
            return
        self.metrics.answered(
            200,
            now_s - ticket.arrived_s,
            is_late=payload.call is not None and now_s > ticket.deadline_s,
            variant="" if self.rungs is None or is_error else payload.variant,
        )
        if payload.call is not None:
            if self.rungs is not None:
                payload.call.told = self.rungs.told(payload.variant)
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


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
