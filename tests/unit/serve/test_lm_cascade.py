"""The next-byte cascade: its threshold is the table's, its models answer as they do alone."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from published_models import save_run
from trained_runs import CONFIG

from rayburst.errors import BadRequestError, VariantError
from rayburst.models import ModelRegistry
from rayburst.models.manifest import Escalation, Host, Latency, Measured

# Ray Serve 2.60 declares its own models in pydantic's old way, seen when it is first imported:
# hence the imports within the tests.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
)
APP = Path(__file__).resolve().parents[3] / "serve_apps" / "cascade.py"
POINTS = (
    Escalation(threshold=0.0, agreement=0.9, escalated=0.0),
    Escalation(threshold=0.4, agreement=0.97, escalated=0.2),
    Escalation(threshold=0.7, agreement=0.99, escalated=0.5),
)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """gpt@1 as it is, and gpt@2 whose variant `student` has a table."""
    save_run(str(tmp_path), "first", step=10)
    models = ModelRegistry.open(str(tmp_path))
    fp32 = models.publish("first", name="gpt").variants[0]
    host = Host(cpu="a", vector_instructions="AVX2", cores=2, threads=1, torch="2.13.0")
    row = Latency(batch=1, median_ms=1, p95_ms=1, runs=1)
    measured = Measured(
        agreement=0.9, bits_per_byte=2, positions=9, tokens=3, latency=(row,), host=host,
        escalation=POINTS,
    )  # fmt: skip
    student = fp32.model_copy(update={"name": "student", "measured": measured})
    models.commit(models.get("gpt@1").model_copy(update={"variants": (fp32, student)}))
    monkeypatch.setenv("RAYBURST_STORE", str(tmp_path))
    return models


@pytest.mark.usefixtures("models")
def test_the_threshold_follows_from_the_agreement_that_is_asked_for() -> None:
    from rayburst.serve.lm_cascade import CascadeArgs, threshold_of

    assert threshold_of(CascadeArgs(version="gpt@2", agreement=0.95), "gpt@2") == 0.4
    assert threshold_of(CascadeArgs(version="gpt@2", agreement=0.98), "gpt@2") == 0.7
    assert threshold_of(CascadeArgs(version="gpt@2", threshold=0.33), "gpt@2") == 0.33
    with pytest.raises(VariantError, match=r"no threshold keeps an agreement of 99.90%"):
        threshold_of(CascadeArgs(version="gpt@2", agreement=0.999), "gpt@2")
    with pytest.raises(VariantError, match=r"measured for top1 and fp32. Give threshold=0.7"):
        threshold_of(CascadeArgs(version="gpt@2", confidence="margin"), "gpt@2")
    with pytest.raises(VariantError, match="no thresholds were measured"):
        threshold_of(CascadeArgs(version="gpt@1", student="fp32"), "gpt@1")


def test_a_model_tells_its_likeliest_bytes_and_refuses_an_empty_text(models: ModelRegistry) -> None:
    from rayburst.serve.lm_cascade import NextByte

    threads = torch.get_num_threads()
    served = NextByte()
    try:
        served.load("gpt@1", "fp32", 4, 1)
    finally:
        torch.set_num_threads(threads)
    told, refused, other = served.predict(["def f", "", "x" * 100])
    assert isinstance(refused, BadRequestError) and "the text is empty" in str(refused)
    assert len(told["bytes"]) == len(told["text"]) == 4 and other["probabilities"][0] <= 1
    model, _ = models.load("gpt@1")
    assert model.config == CONFIG
    with torch.no_grad():
        last = model(torch.tensor([list(b"def f")]))[0][0, -1].softmax(-1)
    assert told["bytes"][0] == int(last.argmax())
    assert told["probabilities"][0] == pytest.approx(float(last.max()))


def test_serve_reads_the_type_of_the_builder_s_argument() -> None:
    from rayburst.serve.lm_cascade import CascadeArgs

    spec = importlib.util.spec_from_file_location("cascade_app", APP)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (parameter,) = inspect.signature(module.app).parameters.values()
    assert parameter.annotation is CascadeArgs
