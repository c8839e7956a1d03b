"""What a replica loads: a version in the variant that its table says, or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from published_models import save_run, some_text

from rayburst.errors import (
    CheckpointError,
    VariantError,
    VersionDamagedError,
    VersionNotFoundError,
)
from rayburst.models import ModelRegistry, publish
from rayburst.models.manifest import ModelVersion, Variant
from rayburst.models.measure import measure
from rayburst.serve import published
from rayburst.serve.published import Asked, load_served, settled


def measured_as(variant: Variant, agreement: float, ms: float) -> Variant:
    """With other figures: the choice is under test here, not this machine."""
    assert variant.measured is not None
    rows = tuple(
        row.model_copy(update={"median_ms": ms, "p95_ms": ms}) for row in variant.measured.latency
    )
    figures = {"agreement": agreement, "latency": rows}
    return variant.model_copy(update={"measured": variant.measured.model_copy(update=figures)})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """gpt@1 is fp32 alone; gpt@2 has a bf16 that is twice as fast and agrees 99%."""
    folder = tmp_path_factory.mktemp("store")
    save_run(str(folder), "first", step=10, text=some_text(folder))
    models = ModelRegistry.open(str(folder))
    models.publish("first", name="gpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "measure", partial(measure, batches=(1, 2), rounds=1, threads=1))
        made: ModelVersion = models.publish("first", name="raw", variants=["bf16"])
    fp32, bf16 = made.variants
    table = (measured_as(fp32, 1.0, 8.0), measured_as(bf16, 0.99, 4.0))
    models.commit(made.model_copy(update={"name": "gpt", "variants": table}))
    for file in made.files:
        models.folder("gpt").put(file, models.folder("raw").get(file))
    models.promote("gpt@2")
    return models


def environ(models: ModelRegistry) -> dict[str, str]:
    return {"RAYBURST_STORE": models.store.uri}


def test_the_table_of_the_version_decides_unless_a_variant_is_named(models: ModelRegistry) -> None:
    served = load_served(Asked(version="gpt", slo_ms=100), environ(models))
    assert (served.label, served.variant) == ("gpt@2", "bf16")
    assert "agrees 99.00%" in served.why
    strict = load_served(Asked(version="gpt", slo_ms=100, agreement=0.999), environ(models))
    assert strict.variant == "fp32"
    named = load_served(Asked(version="gpt", variant="fp32", slo_ms=1), environ(models))
    assert (named.variant, named.why) == ("fp32", "it was named")
    with pytest.raises(VariantError, match="no variant keeps 1 ms"):
        load_served(Asked(version="gpt", slo_ms=1), environ(models))
    plain = load_served(Asked(version="gpt@1"), environ(models))
    assert (plain.variant, plain.why) == ("fp32", "nothing was measured")


def test_a_table_from_another_machine_is_told(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(version="gpt", slo_ms=100)
    measured = models.get("gpt").variants[0].measured
    assert measured is not None
    monkeypatch.setattr(published, "host_of", lambda: measured.host)
    assert "a node like it" not in load_served(asked, environ(models)).why
    smaller = measured.host.model_copy(update={"threads": 7})
    monkeypatch.setattr(published, "host_of", lambda: smaller)
    why = load_served(asked, environ(models)).why
    assert f"measured with {measured.host.threads} threads of" in why and why.endswith(
        "python jobs/quantize.py --model gpt@2 --threads 7"
    )
    assert "a node like it" not in load_served(replace(asked, variant="fp32"), environ(models)).why


def test_under_overload_the_ladder_of_the_version_is_what_may_answer(models: ModelRegistry) -> None:
    asked = Asked(version="gpt", slo_ms=100, overload="degrade")
    served = load_served(asked, environ(models))
    assert served.variant == "fp32"  # the most faithful, as long as the load allows it
    assert served.rungs == {"fp32": 1.0, "bf16": 0.99}
    assert served.sizes["bf16"] < served.sizes["fp32"]
    assert served.load("fp32") is served.model
    assert next(served.load("bf16").parameters()).dtype == torch.bfloat16
    strict = load_served(replace(asked, agreement=0.999), environ(models))
    assert list(strict.rungs) == ["fp32"]
    plain = load_served(replace(asked, version="gpt@1"), environ(models))
    assert plain.rungs == {"fp32": 1.0}


def test_an_answer_leads_back_to_checkpoint_and_data(models: ModelRegistry) -> None:
    served = load_served(Asked(version="gpt@2"), environ(models))
    assert served.meta["uri"] == f"{models.store.uri}/runs/first@10"
    assert (served.meta["run"], served.meta["step"]) == ("first", 10)
    assert served.data["text"] == models.get("gpt@2").data.text


def test_what_is_settled_once_stays_whatever_is_promoted_later(models: ModelRegistry) -> None:
    assert settled(Asked(version="gpt"), environ(models)).version == "gpt@2"
    assert settled(Asked(), environ(models)).checkpoint == f"{models.store.uri}/runs/first@10"
    assert settled(Asked(), {}) == Asked()
    served = load_served(settled(Asked(), environ(models)), environ(models))
    assert (served.label, served.variant) == ("first@10", "fp32")


def test_what_cannot_be_served_is_said_before_it_is(models: ModelRegistry) -> None:
    with pytest.raises(CheckpointError, match="RAYBURST_STORE"):
        load_served(Asked(version="gpt"), {})
    with pytest.raises(VersionNotFoundError, match="no version 9; versions: 1, 2"):
        settled(Asked(version="gpt@9"), environ(models))
    file = next(iter(models.get("raw@1").files))
    models.folder("raw").put(file, b"other bytes")
    with pytest.raises(VersionDamagedError, match=file):
        load_served(Asked(version="raw@1", variant="fp32"), environ(models))
