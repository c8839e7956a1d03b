"""The language model under overload, over HTTP: down its ladder to the last rung and up again."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from support import wait_for
from trained_runs import save_model

from rayburst.models import ModelRegistry, ModelVersion
from rayburst.models.manifest import ModelShape
from rayburst.models.measure import measure, spread
from rayburst.models.publish import stored_variant
from rayburst.serve.decode import score
from rayburst.serve.deploy import delete, deploy
from rayburst.train.gpt import GPT, GPTConfig

from .conftest import Head, Trained
from .test_serve_variants import figures

pytestmark = pytest.mark.timeout(240)
SHAPE = GPTConfig(block_size=256, n_layer=16, n_head=4, n_embd=192)
NEAR, FAR = 6, 1  # layers of the students
FLOOR = 0.5
TEXT = "".join(f"def f{n}(x):\n    return x * {n} + f{n // 2}(x)\n" for n in range(60)).encode()
ASKED = TEXT[: SHAPE.block_size + 1]


def calm(model: GPT) -> None:
    """Layers add the less the higher they stand: students of fewer agree often, of six more often.

    92% and 86% of the likeliest bytes of TEXT, whatever computes them.
    """
    for n, block in enumerate(model.blocks[1:], start=1):
        adds = 1.75 if n < NEAR else 0.3
        block.attention.proj.weight.mul_(adds)
        block.mlp[2].weight.mul_(adds)


def first_layers(model: GPT, count: int) -> GPT:
    """A student of the first `count` layers."""
    student = GPT(dataclasses.replace(model.config, n_layer=count))
    weights = model.state_dict()
    student.load_state_dict({name: weights[name] for name in student.state_dict()})
    return student.eval().requires_grad_(False)


@dataclasses.dataclass(frozen=True)
class Published:
    """A version with students, what each of them says of ASKED, and a promise that fp32 keeps."""

    version: ModelVersion
    bits: dict[str, float]
    slo_ms: float


@pytest.fixture(scope="module")
def published(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """`near` and `far` are faster, each agrees less; `wrong` is as fast as the fastest, and is.

    Students, since each is faster than the one before on every host, as bf16 and int8 are not.
    """
    folder: Path = tmp_path_factory.mktemp("ladder")
    # elsewhere: others serve the newest run of the store
    address, teacher = save_model(f"file://{folder}/runs/deep", step=7, shape=SHAPE, change=calm)
    models = ModelRegistry.open(trained.store_uri)
    plain = models.publish(address, name="ladder")
    wrong = first_layers(teacher, FAR)
    wrong.norm.weight.neg_()
    forms = {"fp32": teacher, "near": first_layers(teacher, NEAR)}
    forms["far"] = first_layers(teacher, FAR)
    forms["wrong"] = wrong
    texts = spread(np.frombuffer(TEXT, np.uint8), block=SHAPE.block_size)
    table = measure(forms, texts, batches=(1, 4), rounds=3, threads=1)
    variants = [
        stored_variant(models, plain.name, name, model, lambda line: None).model_copy(
            update={
                "measured": table[name],
                "model": ModelShape(kind="gpt", config=model.config.to_dict()),
            }
        )
        for name, model in forms.items()
    ]
    version = models.commit(plain.model_copy(update={"variants": tuple(variants)}))
    agrees = [table[name].agreement for name in ("wrong", "far", "near")]
    assert agrees[0] < FLOOR <= agrees[1] < agrees[2] - 0.02, agrees
    bits = {n: score(m, [ASKED], rows_at_once=1)[0].bits_per_byte for n, m in forms.items()}
    alone, full = table["fp32"].latency
    slo_ms = max(2.5 * alone.p95_ms, 6 * full.median_ms / full.batch)
    return Published(version=version, bits=bits, slo_ms=slo_ms)


class Readers:
    """Clients that have ASKED scored again and again, and what they were told."""

    def __init__(self, url: str, count: int, *, every_s: float = 0.0) -> None:
        self.url, self._every_s = url, every_s
        self.told: list[tuple[int, str, str, float]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.wait(self._every_s):
                answer = session.post(
                    f"{self.url}/score", json={"text": ASKED.decode()}, timeout=60
                )
                bits = answer.json()["bits_per_byte"] if answer.ok else 0.0
                headers = answer.headers
                variant = headers["x-rayburst-variant"]
                degraded = headers.get("x-rayburst-degraded", "")
                self.told.append((answer.status_code, variant, degraded, bits))

    def variants(self) -> Counter[str]:
        """Answers by the variant that their header names."""
        return Counter(variant for status, variant, *_ in self.told if status == 200)


@contextmanager
def served(head: Head, published: Published) -> Iterator[str]:
    """`serve_apps/lm.py` with the version; its address."""
    app: dict[str, Any] = {
        "name": "ladder",
        "route_prefix": "/ladder",
        "import_path": "serve_apps.lm:app",
        "args": {
            "version": published.version.ref, "slo_ms": published.slo_ms, "agreement": FLOOR,
            "overload": "degrade", "max_batch": 4, "cpus": 0.5,
        },
    }  # fmt: skip
    http = {"host": "127.0.0.1", "port": head.serve_port}
    try:
        yield deploy(head.dashboard_url, head.token, app=app, http=http, timeout_s=150).url
    finally:
        delete(head.dashboard_url, head.token, name="ladder")


def test_overload_goes_down_two_rungs_and_back_and_each_answer_is_of_the_variant_that_it_names(
    head: Head, published: Published
) -> None:
    agreement = {v.name: v.measured.agreement for v in published.version.variants if v.measured}
    with served(head, published) as url:
        told = requests.get(f"{url}/v1/model", timeout=30).json()
        assert (told["overload"], told["rung"]) == ("degrade", 0)
        assert [rung["variant"] for rung in told["rungs"]] == ["fp32", "near", "far"]
        at = lambda rung: lambda: figures(url)["rung"] == rung or None  # noqa: E731
        with Readers(url, 2, every_s=1.0) as few:  # these stay when the others are gone
            wait_for(lambda: few.variants()["fp32"] or None, what="fp32 answers")
            with Readers(url, 64) as many:
                wait_for(at(2), what="the last rung", timeout_s=60)
                wait_for(lambda: many.variants()["far"] > 64 or None, what="its answers")
            wait_for(at(1), what="the rung above", timeout_s=60)
            assert requests.get(f"{url}/v1/model", timeout=30).json()["rung"] <= 1
            wait_for(at(0), what="the top", timeout_s=60)
            first = len(few.told)
            wait_for(lambda: len(few.told) >= first + 4 or None, what="answers at the top")
        answered = [one for one in (*few.told, *many.told) if one[0] == 200]
        assert {one[0] for one in (*few.told, *many.told)} <= {200, 503, 504}
        for _, variant, degraded, bits in answered:
            assert degraded == ("" if variant == "fp32" else f"{agreement[variant]:.4f}")
            assert bits == pytest.approx(published.bits[variant], rel=1e-4)
        seen = few.variants() + many.variants()
        assert set(seen) == {"fp32", "near", "far"}, "wrong is as fast as far"
        assert many.variants()["far"] > many.variants()["fp32"], "overload is answered by the last"
        counted = figures(url)
        assert {name: counted[name] for name in seen} == seen
        assert counted.get("wrong", 0) == 0
