"""A variant that was stored answers as the one that was made, and agrees with fp32 on real text."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from published_models import save_run, some_text

from rayburst.errors import DataError, VariantError
from rayburst.models import ModelRegistry, publish
from rayburst.models.measure import measure, spread
from rayburst.models.publish import publish_variants
from rayburst.models.quantize import SCHEMES, make, packed, unpacked
from rayburst.serve.decode import Generation, generate, score
from rayburst.train.gpt import GPT

pytest.importorskip("torchao", reason="the extra `int8`; `dev` has it")
pytest.importorskip("onnxruntime", reason="the extra `onnx`; `dev` has it")
JOB = Path(__file__).parents[3] / "jobs" / "quantize.py"
TEXT = ("".join(f"def f{n}(x):\n    return x * {n}\n" for n in range(400))).encode()


@pytest.fixture(scope="module")
def model() -> Iterator[GPT]:
    """A random GPT: a trained one has fewer near ties."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the tests have a core each
    torch.manual_seed(0)
    yield GPT.shaped("micro", n_embd=64, block_size=32).eval()
    torch.set_num_threads(before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_stored_and_read_gives_the_same_bits(model: GPT, scheme: str) -> None:
    made = make(model, scheme)
    tensors, metadata = packed(made)
    assert all(type(t) is torch.Tensor for t in tensors.values())
    again = unpacked(model.config.to_dict(), tensors, metadata)
    idx = torch.arange(64).view(2, 32)
    assert torch.equal(again(idx)[0], made(idx)[0])
    assert packed(again)[0].keys() == tensors.keys()
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert model.head.weight is model.token_embedding.weight  # it stayed as it was


def test_variants_agree_on_text_and_are_smaller(model: GPT) -> None:
    data = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).numpy()
    models = {scheme: make(model, scheme) for scheme in SCHEMES}
    table = measure(models, spread(data, block=32, count=64), batches=(1, 4), rounds=1, threads=1)
    assert table["fp32"].agreement == 1.0 and table["fp32"].positions == 64 * 32
    for scheme in SCHEMES[1:]:
        assert 0.97 < table[scheme].agreement <= 1.0
        assert table[scheme].bits_per_byte == pytest.approx(table["fp32"].bits_per_byte, abs=0.05)
        assert [row.batch for row in table[scheme].latency] == [1, 4]
    sizes = {s: sum(t.nbytes for t in packed(m)[0].values()) for s, m in models.items()}
    assert max(sizes["int8"], sizes["int8-onnx"]) < sizes["bf16"] < sizes["fp32"]


def test_one_that_answers_otherwise_is_seen_to(model: GPT) -> None:
    data = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).numpy()
    broken = make(model, "int8")
    with torch.no_grad():
        broken.head.weight.qdata.zero_()
    found = measure(
        {"fp32": model, "int8": broken}, spread(data, block=32, count=16), batches=(1,), rounds=1
    )
    assert found["int8"].agreement < 0.1
    assert found["int8"].bits_per_byte > found["fp32"].bits_per_byte


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-onnx"])
def test_a_dynamic_variant_answers_alike_in_any_company(model: GPT, scheme: str) -> None:
    made = make(model, scheme)
    idx = torch.arange(128).view(4, 32)
    torch.testing.assert_close(made(idx[:1])[0][0], made(idx)[0][0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_variant_writes_and_scores_as_a_served_model_does(model: GPT, scheme: str) -> None:
    made = make(model, scheme)
    asked = [
        Generation(prompt=TEXT[:n], max_new_tokens=6, temperature=0.0, top_k=None, seed=0)
        for n in (3, 40)  # from memory, and beyond the model's block
    ]
    written = generate(made, asked)
    assert [len(text) for text in written] == [6, 6]
    assert written == [generate(made, [one])[0] for one in asked]  # alone as in company
    (mine,), (exact,) = (score(m, [TEXT[:200]], rows_at_once=8) for m in (made, model))
    assert mine.bits_per_byte == pytest.approx(exact.bits_per_byte, abs=0.05)


def test_variants_are_published_with_their_table_and_from_a_version(tmp_path: Path) -> None:
    save_run(str(tmp_path), "first", step=10, text=some_text(tmp_path))
    models = ModelRegistry.open(str(tmp_path))
    told: list[str] = []
    models.publish("first", name="gpt")
    version = publish_variants(models, "gpt@1", ["bf16", "int8"], threads=1, say=told.append)
    assert (version.ref, version.parent) == ("gpt@2", 1)
    assert [v.name for v in version.variants] == ["fp32", "bf16", "int8"]
    assert version.variants[0].files == models.get("gpt@1").variants[0].files
    for variant in models.get("gpt@2").variants:
        assert variant.measured is not None and variant.measured.host.threads == 1
        assert models.load("gpt@2", variant.name)[0].config.block_size == 32
    assert any(line.startswith("int8: agrees") for line in told)
    models.promote("gpt@2")
    with pytest.raises(DataError, match="has 3 bytes and the model compares 33"):
        publish_variants(models, "gpt", ["bf16"], text=spread_of(b"abc"))
    with pytest.raises(VariantError, match="'int3' is not known"):
        publish_variants(models, "gpt", ["int3"])


def test_the_job_publishes_the_next_version_and_says_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(str(tmp_path), "first", step=10)
    ModelRegistry.open(str(tmp_path)).publish("first", name="gpt")
    monkeypatch.setattr(publish, "measure", partial(measure, batches=(1,), rounds=1))
    text = some_text(tmp_path)

    def job(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["quantize.py", "--model", "gpt@1", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOB), run_name="__main__")
        return int(ended.value.code or 0)

    assert job("--variants", "bf16") == 2
    assert "RAYBURST_STORE" in capsys.readouterr().err
    monkeypatch.setenv("RAYBURST_STORE", str(tmp_path))
    assert job("--variants", "bf16") == 1
    assert "keeps no held-out text" in capsys.readouterr().err
    assert job("--variants", "bf16", "int8", "--text", str(text), "--threads", "1") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("RESULT "))
    assert (said["version"], list(said["variants"])) == ("gpt@2", ["fp32", "bf16", "int8"])
    assert said["variants"]["fp32"]["agreement"] == 1.0


def spread_of(text: bytes):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).numpy()
