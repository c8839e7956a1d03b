"""A model with variants behind its endpoint: who computes, what an answer says, what is counted."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import grpc
import numpy as np
import pytest
from openapi_spec_validator import validate

from rayburst.errors import ModelError, RefusedError
from rayburst.serve.codec import Codec
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.grpc_call import predict
from rayburst.serve.model_pb2 import PredictRequest
from rayburst.serve.model_pb2_grpc import ModelStub, add_ModelServicer_to_server
from rayburst.serve.openapi import describe
from rayburst.serve.options import ModelOptions


class Forms:
    """Says which form computed; waits for its gate."""

    example = np.zeros(1, np.float32)
    variants = {"fp32": 1.0, "int8": 0.985, "tiny": 0.5}  # noqa: RUF012  as users write it

    def __init__(self):
        self.gate = threading.Event()
        self.loaded, self.sizes = [], []
        self.fails, self.failed = "", threading.Event()

    def load_variant(self, name):
        if name == self.fails:
            self.failed.set()
            raise ValueError("bytes are missing")
        self.loaded.append(name)

    def predict(self, batch: np.ndarray, variant: str):
        assert variant in self.loaded
        assert self.gate.wait(30)
        self.sizes.append(len(batch))
        return [variant] * len(batch)


class Call:
    """A carrier that keeps what it is answered."""

    ticket, told = None, ()

    def __init__(self, **headers):
        self.headers = {k.replace("_", "-").encode(): v for k, v in headers.items()}
        self.answer = asyncio.get_running_loop().create_future()

    def respond(self, status, body, kind, retry_after_s):
        self.answer.set_result((status, json.loads(body), dict(self.told)))


def made_of(model, *, costs, **options):
    """With costs of a request in any batch, in seconds: so large that no machine's speed counts."""
    made = Endpoint(
        model, ModelOptions(**{"slo_ms": 100_000, "max_batch": 4, **options}), Codec.of(Forms),
        name="M",
    )  # fmt: skip
    model.gate.set()
    made.warm_up(model.example)
    model.gate.clear()
    for variant, each_s in costs.items():
        made.batcher.costs.of(variant, 1).__init__()
        for _ in range(20):
            made.batcher.costs.of(variant, 1).learn(1, each_s)
            made.batcher.costs.of(variant, 1).learn(4, 4 * each_s)
    return made


def counts(made):
    page = made.metrics.render().decode()
    return {
        line.split('variant="')[1].split('"')[0]: float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("rayburst_serve_variant_total")
    }


async def ask(made, count):
    """So many requests while the first one is computed; their answers once it may end."""
    made.attach()
    calls = [Call() for _ in range(count + 1)]
    made.take(calls[0], b"[1]")
    await asyncio.sleep(0)
    for call in calls[1:]:
        made.take(call, b"[1]")
    made.model.gate.set()
    return [await call.answer for call in calls]


def test_what_waits_too_long_for_the_best_form_is_answered_by_the_next_and_says_so():
    made = made_of(Forms(), costs={"fp32": 20, "int8": 1})
    first, *others = asyncio.run(ask(made, 12))
    assert first == (200, "fp32", {b"x-rayburst-variant": b"fp32"})
    told = {b"x-rayburst-variant": b"int8", b"x-rayburst-degraded": b"0.9850"}
    assert others == [(200, "int8", told)] * 12
    assert counts(made) == {"fp32": 1, "int8": 12}
    assert "rayburst_serve_rung 1.0" in made.metrics.render().decode()


def test_what_the_best_form_can_do_is_left_to_it():
    made = made_of(Forms(), costs={"fp32": 1, "int8": 0.5})
    assert {answer for _, answer, _ in asyncio.run(ask(made, 12))} == {"fp32"}


def test_a_form_below_the_floor_is_not_even_loaded():
    made = made_of(Forms(), costs={"fp32": 20, "int8": 15})
    answers = asyncio.run(ask(made, 12))
    assert {answer for status, answer, _ in answers if status == 200} == {"fp32", "int8"}
    assert 503 in {status for status, *_ in answers}  # refused rather than answered by tiny
    assert made.model.loaded == ["fp32", "int8"]
    lower = made_of(Forms(), costs={"fp32": 20, "int8": 15, "tiny": 0.1}, agreement=0.5)
    assert asyncio.run(ask(lower, 12))[-1][:2] == (200, "tiny")


class Servicer:
    """What Serve calls of a replica."""

    def __init__(self, made):
        self.made = made

    async def Predict(self, request, context):
        return await predict(self.made, request, context)


async def ask_over_grpc(made, count):
    """As `ask`, over a connection: code and body with trailing metadata of each outcome."""
    made.attach()
    server = grpc.aio.server()
    add_ModelServicer_to_server(Servicer(made), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def outcome(call):
        code, told = await call.code(), dict(await call.trailing_metadata())
        return code, json.loads((await call).body) if code == grpc.StatusCode.OK else None, told

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = ModelStub(channel).Predict
        calls = []
        for held in range(1, count + 2):
            calls.append(ask(PredictRequest(body=b"[1]")))
            async with asyncio.timeout(30):
                while made.held < held and not calls[-1].done():
                    await asyncio.sleep(0.001)
        made.model.gate.set()
        outcomes = [await outcome(call) for call in calls]
    await server.stop(None)
    return outcomes


def test_over_grpc_trailing_metadata_say_the_form_and_when_to_ask_again():
    made = made_of(Forms(), costs={"fp32": 20, "int8": 15})
    first, *others = asyncio.run(ask_over_grpc(made, 12))
    assert first == (grpc.StatusCode.OK, "fp32", {"x-rayburst-variant": "fp32"})
    told = {"x-rayburst-variant": "int8", "x-rayburst-degraded": "0.9850"}
    assert (grpc.StatusCode.OK, "int8", told) in others
    refused = [told for code, _, told in others if code == grpc.StatusCode.UNAVAILABLE]
    assert refused and all(float(told["retry-after-s"]) > 0 for told in refused)
    assert "tiny" not in {answer for _, answer, _ in others}


def test_by_handle_the_form_can_be_had_too():
    made = made_of(Forms(), costs={"fp32": 1, "int8": 1})
    made.model.gate.set()

    async def run():
        return await made.ask_told([1.0]), await made.ask([1.0])

    assert asyncio.run(run()) == (("fp32", "fp32"), "fp32")


def test_a_form_that_is_loaded_late_answers_once_it_was_missed():
    async def run():
        made = made_of(Forms(), costs={"fp32": 20}, eager=False, agreement=0.98)
        assert made.model.loaded == ["fp32"]
        ladder = made.rungs.ladder
        made.attach()
        ready = asyncio.Event()
        loop, admit = asyncio.get_running_loop(), ladder.admit

        def admitted(name):
            admit(name)
            loop.call_soon_threadsafe(ready.set)

        ladder.admit = admitted
        calls = [Call() for _ in range(6)]
        for call in calls[:1]:
            made.take(call, b"[1]")
        await asyncio.sleep(0)
        for call in calls[1:]:
            made.take(call, b"[1]")
        made.model.gate.set()
        answers = [await call.answer for call in calls]
        assert {answer[1] for answer in answers if answer[0] == 200} == {"fp32"}
        assert 503 in {answer[0] for answer in answers}  # until it is there it is refused
        await asyncio.wait_for(ready.wait(), 30)
        assert made.model.loaded == ["fp32", "int8"]
        assert made.batcher.costs.of("int8", 1).largest == 4  # tried, so forecasts know it
        made.model.gate.clear()
        return await ask(made, 8)

    assert {answer for _, answer, _ in asyncio.run(run())[1:]} == {"int8"}


def test_a_form_that_cannot_be_loaded_late_costs_nothing_else():
    async def run():
        model = Forms()
        made = made_of(model, costs={"fp32": 20}, eager=False)
        model.fails = "int8"
        made.attach()
        answers = await ask(made, 12)
        assert await asyncio.to_thread(model.failed.wait, 30)
        return answers, await ask(made, 0)

    answers, again = asyncio.run(run())
    assert {answer[1] for answer in answers if answer[0] == 200} == {"fp32"}
    assert again[0][0] == 200


def test_refusal_is_by_the_cheapest_form():
    async def run():
        made = made_of(Forms(), costs={"fp32": 20, "int8": 4})
        made.attach()
        asked = [asyncio.ensure_future(made.ask([1.0])) for _ in range(40)]
        await asyncio.sleep(0)
        made.model.gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(run())
    refused = sum(isinstance(answer, RefusedError) for answer in answers)
    assert answers.count("int8") > 12  # by fp32's costs no more than five had been let in
    assert refused > 10


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model_ids": ("a",)}, "has variants and model_ids"),
        ({"predict": lambda self, batch: batch}, "not told which one to use"),
    ],
)
def test_a_class_that_cannot_degrade_is_refused_where_it_is_written(more, told):
    def predict(self, batch: np.ndarray):
        return batch

    if "predict" in more:
        more = {"predict": predict}
    with pytest.raises(ModelError, match=told):
        Codec.of(type("Wrong", (Forms,), more))


def test_the_interface_says_which_forms_may_answer():
    made = made_of(Forms(), costs={"fp32": 1, "int8": 1})
    told = describe(made, example=Forms.example)
    validate(told)
    headers = told["paths"]["/predict"]["post"]["responses"]["200"]["headers"]
    assert headers["x-rayburst-variant"]["schema"]["enum"] == ["fp32", "int8"]
    assert set(headers) == {"x-rayburst-variant", "x-rayburst-degraded"}


def test_a_request_that_lost_time_on_its_way_asks_for_no_more_than_the_promise():
    async def run():
        # what computes would take 80 s in fp32, which the promise allows no second request
        made = made_of(Forms(), costs={"fp32": 80, "int8": 8}, agreement=0.98, idempotent=True)
        made.attach()
        now_ms = round(1000 * time.time())
        calls = [
            Call(x_rayburst_arrived=b"node/%d" % (now_ms - spent)) for spent in (0, 5000, 5000)
        ]
        for call in calls:
            made.take(call, b"[1]")
        assert all(call.ticket is not None for call in calls), "int8 can do it: nobody is refused"
        assert calls[1].ticket.spent_s > 4
        made.model.gate.set()
        assert [(await call.answer)[0] for call in calls] == [200, 200, 200]

    asyncio.run(run())
