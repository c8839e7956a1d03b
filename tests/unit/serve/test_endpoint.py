"""The endpoint without a server: refusals, lateness, handles from another loop, its OpenAPI."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import RefusedError
from rayburst.serve.codec import Codec
from rayburst.serve.endpoint import MODEL_ID, Endpoint
from rayburst.serve.keys import KeyGate, KeyStore
from rayburst.serve.openapi import describe
from rayburst.serve.options import ModelOptions


class Gated:
    """Doubles when its gate is open."""

    example = np.zeros(2, np.float32)

    def __init__(self):
        self.gate = threading.Event()

    def predict(self, batch: np.ndarray):
        assert self.gate.wait(30)
        return batch * 2


class Asynchronous:
    example = np.zeros(2, np.float32)

    async def predict(self, batch: np.ndarray):
        await asyncio.sleep(0)
        return batch * 3


class Call:
    """A carrier that keeps what it is answered."""

    ticket = None

    def __init__(self, **headers):
        self.headers = {k.replace("_", "-").encode(): v for k, v in headers.items()}
        self.answer = asyncio.get_running_loop().create_future()

    def respond(self, status, body, kind, retry_after_s):
        assert not self.answer.done(), "answered twice"
        self.answer.set_result((status, json.loads(body), retry_after_s))


def endpoint(model, **options):
    made = Endpoint(model, ModelOptions(**options), Codec.of(type(model)), name="M")
    curve = made.batcher.costs.of("", 1)
    for _ in range(30):
        for n in (1, 8, 32):
            curve.learn(n, 50 + n)  # so slow that the machine's own speed decides nothing
    return made


def test_a_request_that_would_be_late_is_refused_at_once_and_a_patient_one_is_not():
    async def run():
        model = Gated()
        made = endpoint(model, slo_ms=80_000)
        made.attach()
        first, hasty, patient = Call(), Call(), Call(x_rayburst_deadline_ms=b"500000")
        made.take(first, b"[1,2]")
        await asyncio.sleep(0)
        for call in (hasty, patient):
            made.take(call, b"[1,2]")
        status, told, retry_after_s = await hasty.answer
        assert (status, told["status"]) == (503, 503)
        assert 0 < retry_after_s < 80
        model.gate.set()
        assert (await first.answer)[:2] == (200, [2.0, 4.0])
        assert (await patient.answer)[0] == 200
        assert made.held == 0

    asyncio.run(run())


def test_a_request_whose_deadline_passes_in_the_queue_is_told_504():
    async def run():
        model = Gated()
        made = endpoint(model, slo_ms=600_000)
        made.batcher.costs.of("", 1).__init__()  # nothing is known: everybody is let in
        made.attach()
        first, late = Call(), Call(x_rayburst_deadline_ms=b"1")
        made.take(first, b"[1,2]")
        await asyncio.sleep(0)
        made.take(late, b"[1,2]")
        late.ticket.deadline_s = 0.0
        model.gate.set()
        assert (await late.answer)[0] == 504
        assert (await first.answer)[0] == 200

    asyncio.run(run())


def test_a_request_that_is_asked_again_has_what_is_left_of_its_deadline():
    async def run():
        model = Gated()
        model.gate.set()
        now_ms = round(1000 * time.time())
        first, again, too_late = (
            Call(
                x_rayburst_arrived=b"node/%d" % (now_ms - spent_ms), x_rayburst_deadline_ms=b"5000"
            )
            for spent_ms in (0, 2000, 9000)
        )
        for is_idempotent, statuses in [(True, [200, 200, 504]), (False, [200, 200, 200])]:
            made = endpoint(model, slo_ms=600_000, idempotent=is_idempotent)
            made.attach()
            for call, status in zip((first, again, too_late), statuses, strict=True):
                call.__init__(**{k.decode().replace("-", "_"): v for k, v in call.headers.items()})
                made.take(call, b"[1,2]")
                assert (await call.answer)[0] == status
                if status == 200:
                    left_s = call.ticket.deadline_s - call.ticket.arrived_s
                    assert (left_s < 3.1) == (is_idempotent and call is again)

    asyncio.run(run())


def test_a_coroutine_predicts_too_and_handles_may_ask_from_another_loop():
    async def run():
        made = endpoint(Asynchronous(), slo_ms=600_000)
        made.attach()
        here = await made.ask([1.0, 2.0])
        there = await asyncio.to_thread(lambda: asyncio.run(made.ask([1.0, 2.0])))
        assert here.tolist() == there.tolist() == [3.0, 6.0]

    asyncio.run(run())


def test_a_handle_is_refused_with_an_error_that_says_when_to_come_back():
    async def run():
        model = Gated()
        made = endpoint(model, slo_ms=80_000)
        made.attach()
        first = asyncio.ensure_future(made.ask([1.0, 2.0], deadline_s=600))
        for _ in range(4):  # it is asked, queued, taken, under way
            await asyncio.sleep(0)
        with pytest.raises(RefusedError) as refused:
            await made.ask([1.0, 2.0])
        assert refused.value.status == 503
        assert refused.value.retry_after_s > 0
        model.gate.set()
        assert (await first).tolist() == [2.0, 4.0]

    asyncio.run(run())


class Several:
    """Multiplies by what the model's name says; keeps each batch's model and size."""

    example = np.zeros(2, np.float32)
    model_ids = ("twice", "thrice")

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()

    def predict(self, batch: np.ndarray, model_id: str):
        assert self.gate.wait(30)
        self.batches.append((model_id, len(batch)))
        return batch * (2 + self.model_ids.index(model_id))


def test_one_class_holds_several_models_and_a_batch_is_for_one_of_them():
    async def run():
        model = Several()
        made = endpoint(model, slo_ms=600_000)
        made.warm_up(Several.example)
        made.attach()
        asked = ["twice", "twice", "thrice", "twice", "thrice"]
        calls = [Call(serve_multiplexed_model_id=name.encode()) for name in asked]
        for call in calls:
            call.headers = {MODEL_ID: next(iter(call.headers.values()))}
            made.take(call, b"[1,2]")
            await asyncio.sleep(0)
        other = asyncio.create_task(made.ask([1.0, 2.0], model_id="thrice"))
        await asyncio.sleep(0)
        model.gate.set()
        answers = [(await call.answer)[1] for call in calls]
        assert answers == [[2, 4], [2, 4], [3, 6], [2, 4], [3, 6]]
        assert list(await other) == [3, 6]
        sizes = [size for _, size in model.batches]
        assert sum(sizes) == 6
        assert max(sizes) == 2, "requests for one model share a batch"
        unknown = [Call(), Call(serve_multiplexed_model_id=b"x")]
        unknown[1].headers = {MODEL_ID: b"x"}
        for call in unknown:
            made.take(call, b"[1,2]")
            status, told, _ = await call.answer
            assert status == 422
            assert "give one of model_ids: twice, thrice" in told["error"]
        assert len(made.batcher.costs._curves) <= 3, "strangers' names are remembered"
        (which,) = [
            each
            for each in describe(made, example=None)["paths"]["/predict"]["post"]["parameters"]
            if each["name"] == "serve_multiplexed_model_id"
        ]
        assert which["schema"]["enum"] == ["thrice", "twice"]

    asyncio.run(run())


def test_names_of_models_mean_nothing_to_a_class_that_holds_one():
    async def run():
        model = Gated()
        model.gate.set()
        made = endpoint(model, slo_ms=600_000)
        made.attach()
        for n in range(50):
            call = Call()
            call.headers = {MODEL_ID: b"stranger-%d" % n}
            made.take(call, b"[1,2]")
            assert (await call.answer)[0] == 200
        assert len(made.batcher.costs._curves) == 1

    asyncio.run(run())


def test_a_tenant_is_who_its_key_says_or_else_whom_it_names(tmp_path):
    keys = KeyStore(ObjectStore.open(str(tmp_path)))
    _, secret = keys.create("ads", models=("M",), now_s=0)
    _, other = keys.create("ads", models=("X",), now_s=0)

    async def run():
        made = endpoint(Asynchronous(), slo_ms=600_000)
        made.attach()
        named = Call(x_rayburst_tenant=b"ads")
        made.take(named, b"[1,2]")
        assert named.ticket.tenant == "ads"
        assert (await named.answer)[0] == 200
        made.gate = KeyGate(keys, model="M")
        told = []
        for key in (secret, other, ""):
            call = Call(authorization=f"Bearer {key}".encode(), x_rayburst_tenant=b"liar")
            made.take(call, b"[1,2]")
            told.append(((await call.answer)[0], call.ticket and call.ticket.tenant))
        made.gate.close()
        assert told == [(200, "ads"), (403, None), (401, None)]

    asyncio.run(run())


class Point(BaseModel):
    x: float


class Nested(BaseModel):
    points: list[Point]


class Models:
    example = Nested(points=[Point(x=1)])

    def predict(self, batch: list[Nested]): ...

    def stream(self, value): ...


@pytest.mark.parametrize("model", [Gated, Models])
def test_its_openapi_is_valid_and_knows_what_predict_takes(model):
    made = endpoint(model())
    page = describe(made, example=model.example, root_path="/m")
    validate(page)
    body = page["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["example"] in ([0.0, 0.0], {"points": [{"x": 1.0}]})
    assert ("/stream" in page["paths"]) == (model is Models)
