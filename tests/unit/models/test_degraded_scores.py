"""A replica of the language model under overload: a cheaper variant scores the texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from published_models import save_run, some_text

from rayburst.errors import RefusedError
from rayburst.models import ModelRegistry, publish
from rayburst.models.measure import measure
from rayburst.serve import decode

if TYPE_CHECKING:
    from rayburst.serve.lm import LanguageModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """gpt@1 has a bf16 that is measured as twice as fast as fp32."""
    folder = tmp_path_factory.mktemp("store")
    save_run(str(folder), "first", step=10, text=some_text(folder))
    models = ModelRegistry.open(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "measure", partial(measure, batches=(1, 2), rounds=1, threads=1))
        made = models.publish("first", name="raw", variants=["bf16"])
    table = []
    for variant, agreement, ms in zip(made.variants, (1.0, 0.99), (8.0, 4.0), strict=True):
        assert variant.measured is not None
        latency = tuple(
            row.model_copy(update={"median_ms": ms, "p95_ms": ms})
            for row in variant.measured.latency
        )
        figures = {"latency": latency, "agreement": agreement}
        measured = variant.measured.model_copy(update=figures)
        table.append(variant.model_copy(update={"measured": measured}))
    for file in made.files:
        models.folder("gpt").put(file, models.folder("raw").get(file))
    models.commit(made.model_copy(update={"name": "gpt", "variants": tuple(table)}))
    return models


@pytest.fixture
def replicas(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[partial[LanguageModel]]:
    """A replica for given arguments; its thread ends with the test."""
    from rayburst.serve.lm import LanguageModel, LMArgs

    monkeypatch.setenv("RAYBURST_STORE", models.store.uri)
    made = []

    def start(**args: Any) -> LanguageModel:
        given = {"version": "gpt@1", "slo_ms": 100_000, "max_batch": 4, **args}
        made.append(LanguageModel(LMArgs(**given)))
        return made[-1]

    yield partial(start)
    for one in made:
        one._texts.close()


def cost(replica: LanguageModel, length: int, **each_s: float) -> None:
    """So many seconds a text, so many that this machine's speed decides nothing."""
    for variant, seconds in each_s.items():
        curve = replica._endpoint.batcher.costs.of(variant, length)
        curve.__init__()  # type: ignore[misc]
        for _ in range(20):
            curve.learn(1, seconds)
            curve.learn(4, 4 * seconds)


def ask(replica: LanguageModel, text: bytes, count: int) -> list[Any]:
    async def run() -> list[Any]:
        asked = [replica.score(text) for _ in range(count)]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(run())


def test_what_fp32_cannot_score_in_time_bf16_does(replicas: Any, models: ModelRegistry) -> None:
    replica, text = replicas(overload="degrade"), b"import os, sys, re\n"
    cost(replica, 32, fp32=20, bf16=1)
    answers = ask(replica, text, 9)
    assert {answer.headers["x-rayburst-variant"] for answer in answers} == {"bf16"}
    assert {answer.headers["x-rayburst-degraded"] for answer in answers} == {"0.9900"}
    (own,) = decode.score(models.load("gpt@1", "bf16")[0], [text], rows_at_once=4)
    assert answers[0].bits_per_byte == pytest.approx(own.bits_per_byte, abs=0.02)
    info = replica.info
    assert (info.variant, info.overload, info.rung) == ("fp32", "degrade", 1)
    assert [(r.variant, r.is_loaded) for r in info.rungs] == [("fp32", True), ("bf16", True)]
    assert b'rayburst_serve_variant_total{model="LanguageModel",variant="bf16"} 9.0' in (
        replica.figures()
    )


def test_shedding_refuses_what_fp32_cannot_do(replicas: Any) -> None:
    text = b"import os, sys, re\n"
    shedding = replicas(overload="shed", variant="fp32")
    cost(shedding, 32, fp32=20)
    answers = ask(shedding, text, 30)
    assert any(isinstance(answer, RefusedError) for answer in answers)
    assert {a.headers["x-rayburst-variant"] for a in answers if hasattr(a, "headers")} == {"fp32"}
    assert [rung.variant for rung in shedding.info.rungs] == ["fp32"]
    assert replicas(variant="fp32").info.rungs == []  # as it comes, all wait


def test_a_lazy_replica_has_one_variant_until_it_misses_another(replicas: Any) -> None:
    replica = replicas(overload="degrade", lazy=True)
    assert [rung.is_loaded for rung in replica.info.rungs] == [True, False]
