"""A student learns its teacher's answers, and is a variant that the table alone judges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from published_models import save_run, some_text
from torch.nn import functional as F
from trained_runs import CONFIG, save_model
from typer.testing import CliRunner

from rayburst.errors import DataError, VariantError, VersionError, VersionNotFoundError
from rayburst.models import ModelRegistry, publish
from rayburst.models.distill import DistillConfig, distillation_loss, learn
from rayburst.models.distill_job import Distillation, _config, _same_teacher, _teacher
from rayburst.models.manifest import ModelVersion, decode, encode
from rayburst.models.measure import measure
from rayburst.models.models_cli import app
from rayburst.models.publish import publish_variants
from rayburst.models.students import publish_student
from rayburst.serve.published import Asked, load_served
from rayburst.serve.variants import Wanted, ladder
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.trained import load_model

STUDENT = GPTConfig(block_size=32, n_layer=1, n_head=1, n_embd=8)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(publish, "measure", partial(measure, batches=(1, 2), rounds=1, threads=1))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the tests have a core each
    yield
    torch.set_num_threads(before)


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    """gpt@1 in fp32 and bf16, and a run `small` with a student that knows nothing."""
    save_run(str(tmp_path), "first", step=10, text=some_text(tmp_path))
    models = ModelRegistry.open(str(tmp_path))
    models.publish("first", name="gpt", variants=["bf16"])
    save_student(models, "small", step=5)
    return models


def save_student(models: ModelRegistry, run: str, *, step: int, shape: GPTConfig = STUDENT) -> None:
    save_model(f"{models.store.uri}/runs/{run}", step=step, shape=shape)


def test_the_loss_is_hintons() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    targets = torch.randint(5, (2, 3))
    loss = partial(distillation_loss, student, teacher, targets)
    hard = F.cross_entropy(student.flatten(0, 1), targets.flatten())
    assert torch.equal(loss(temperature=3.0, soft=0), hard)
    p, q = (teacher / 3).softmax(-1), (student / 3).softmax(-1)
    apart = (p * (p.log() - q.log())).sum(-1).mean()
    found = loss(temperature=3.0, soft=0.7)
    torch.testing.assert_close(found, 0.7 * 9 * apart + 0.3 * hard)
    # a student that says what its teacher says has nothing more to learn from it
    same = student.detach().clone().requires_grad_()
    distillation_loss(same, same.detach(), targets, temperature=2.0, soft=1.0).backward()
    assert same.grad is not None and same.grad.abs().max() < 1e-6
    with pytest.raises(ValueError, match="temperature=0, soft=2"):
        DistillConfig(teacher="a", text="b", student={}, temperature=0, soft=2)


def test_a_student_comes_nearer_to_its_teacher_and_is_saved_alone(
    models: ModelRegistry, tmp_path: Path
) -> None:
    config = DistillConfig(
        teacher="gpt@1",
        store=models.store.uri,
        text=f"{models.store.uri}/runs/first",
        student=STUDENT.to_dict(),
        soft=1.0,
        steps=40,
        global_batch=8,
        lr=3e-2,
    )
    folder = f"{models.store.uri}/runs/learned"
    learn({**asdict(config), "folder": folder})
    student, meta = load_model(folder)
    assert student.config == STUDENT and meta["step"] == 40
    teacher, _ = models.load("gpt@1")
    torch.manual_seed(0)
    beginner = GPT(STUDENT).eval()
    text = torch.frombuffer(bytearray((tmp_path / "text.py").read_bytes()), dtype=torch.uint8)
    texts = text[: 33 * 32].long().view(32, 33)
    judged = measure(
        {"teacher": teacher, "beginner": beginner, "student": student},
        texts,
        batches=(1,),
        rounds=1,
    )
    assert judged["student"].agreement > judged["beginner"].agreement + 0.2
    assert 0 < meta["agreement"] <= 1 and meta["teacher_bits_per_byte"] > 0


def test_a_student_stands_beside_the_other_variants_with_its_own_shape_and_lineage(
    models: ModelRegistry,
) -> None:
    version = publish_student(models, "gpt@1", "small", schemes=["bf16"])
    assert (version.ref, version.parent) == ("gpt@2", 1)
    names = ["fp32", "bf16", "student", "student-bf16"]
    assert [v.name for v in version.variants] == names
    student = version.variant("student")
    assert student.checkpoint is not None and student.checkpoint.run == "small"
    assert version.checkpoint.run == "first"  # the teacher's
    assert student.size_bytes < version.variant("fp32").size_bytes
    for variant in version.variants:
        assert variant.measured is not None
        assert [row.batch for row in variant.measured.latency] == [1, 2]
    assert student.measured is not None and student.measured.escalation[0].escalated == 0
    assert student.measured.escalation[0].agreement == student.measured.agreement
    assert version.variants[0].measured.escalation == ()
    loaded, _ = models.load("gpt@2", "student-bf16")
    assert loaded.config == STUDENT and loaded.head.weight.dtype == torch.bfloat16
    served = load_served(
        Asked(version="gpt@2", variant="student"), {"RAYBURST_STORE": models.store.uri}
    )
    assert served.meta["uri"] == student.checkpoint.uri
    assert served.meta["config"] == STUDENT.to_dict()
    assert served.meta["val_bits_per_byte"] == student.measured.bits_per_byte
    models.promote("gpt@2")
    shown = CliRunner().invoke(app, ["show", "gpt@2", "--store", models.store.uri]).output
    assert f"student: distilled, {student.checkpoint.uri}" in shown
    assert publish_student(models, "gpt@1", "small", schemes=["bf16"]) == version


def test_figures_alone_decide_about_a_student(models: ModelRegistry) -> None:
    version = publish_student(models, "gpt@1", "small")
    table = []
    for variant in version.variants:
        agreement = {"fp32": 1.0, "bf16": 0.999, "student": 0.99}[variant.name]
        ms = {"fp32": 8.0, "bf16": 8.0, "student": 1.0}[variant.name]
        rows = [
            r.model_copy(update={"median_ms": ms, "p95_ms": ms}) for r in variant.measured.latency
        ]
        figures = {"agreement": agreement, "latency": tuple(rows)}
        measured = variant.measured.model_copy(update=figures)
        table.append(variant.model_copy(update={"measured": measured}))
    rungs = ladder(table, Wanted(slo_ms=100, agreement=0.98))
    assert [r.variant for r in rungs] == ["fp32", "student"]
    assert len(ladder(table, Wanted(slo_ms=100, agreement=0.995))) == 1


def test_other_variants_made_later_keep_the_student(models: ModelRegistry) -> None:
    publish_student(models, "gpt@1", "small")
    later = publish_variants(models, "gpt@2", ["bf16"])
    assert [v.name for v in later.variants] == ["fp32", "bf16", "student"]
    assert later.variant("student").files == models.get("gpt@2").variant("student").files


def test_a_manifest_without_students_is_what_it_was(models: ModelRegistry) -> None:
    bare = models.publish("first", name="bare")
    body = json.loads(encode(bare))
    assert body["format_version"] == 1
    assert set(body["variants"][0]) == {"name", "files", "measured"}
    made = publish_student(models, "gpt@1", "small")
    data = encode(made)
    assert json.loads(data)["format_version"] == 2
    assert decode(ModelVersion, "here", data) == made


def test_what_does_not_fit_is_refused(models: ModelRegistry) -> None:
    longer = GPTConfig(block_size=64, n_layer=1, n_head=1, n_embd=8)
    save_student(models, "longer", step=3, shape=longer)
    with pytest.raises(VariantError, match="has block_size 64 and gpt@1 32"):
        publish_student(models, "gpt@1", "longer")
    with pytest.raises(VariantError, match="cannot be named 'int8'"):
        publish_student(models, "gpt@1", "small", name="int8")
    with pytest.raises(VersionNotFoundError, match=r"distill_lm.py --teacher gpt@1"):
        models.load("gpt@1", "student")


def test_a_driver_settles_teacher_student_and_text_before_anything_starts(
    models: ModelRegistry, tmp_path: Path
) -> None:
    store = models.store.uri
    wish = partial(Distillation, run="s", storage=f"{store}/runs", store=store)
    models.promote("gpt@1")
    given = wish(teacher="gpt", layers=1, heads=1, width=8)
    teacher = _teacher(given)
    config = _config(given, teacher, models.store.child("runs/s"))
    assert (config.teacher, config.store) == ("gpt@1", store)  # an alias is settled for all
    assert config.student == STUDENT.to_dict()
    assert config.text == f"{store}/runs/first"
    by_address = _teacher(wish(teacher=f"{store}/runs/first"))
    assert by_address.ref == f"{store}/runs/first@10" and by_address.shape == CONFIG
    with pytest.raises(ValueError, match="give a smaller one, for example --layers 1 --width 16"):
        _config(wish(teacher="gpt@1"), teacher, models.store.child("runs/s"))
    with pytest.raises(ValueError, match="began with no teacher, not gpt@1"):
        _same_teacher(models.store.child("runs/small"), teacher)
    save_model(f"{store}/runs/textless", step=1)
    bare = wish(teacher=f"{store}/runs/textless", layers=1, heads=1, width=8)
    with pytest.raises(DataError, match="keeps no text to distil on: give --data"):
        _config(bare, _teacher(bare), models.store.child("runs/s"))
    with pytest.raises(VersionError, match="no version 7"):
        _teacher(wish(teacher="gpt@7"))
    with pytest.raises(ValueError, match="no store says where it is"):
        Distillation(teacher="gpt@1", run="s", storage=store)
