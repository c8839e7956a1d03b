"""The choice among variants follows from what was measured, and never breaks the floor."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.errors import VariantError
from rayburst.models.manifest import Host, Latency, Measured, StoredFile, Variant
from rayburst.serve.variants import WORTH, Wanted, choose, ladder

HOST = Host(cpu="a", vector_instructions="AVX2", cores=2, threads=1, torch="2.13.0")


def variant(name: str, agreement: float, ms: dict[int, float], mb: float = 1.0) -> Variant:
    rows = tuple(Latency(batch=b, median_ms=t, p95_ms=t * 1.2, runs=11) for b, t in ms.items())
    measured = Measured(
        agreement=agreement, bits_per_byte=2.0, positions=1000, tokens=64, latency=rows, host=HOST
    )
    file = StoredFile(key=name, sha256="0" * 64, size_bytes=int(mb * 1e6))
    return Variant(name=name, files=(file,), measured=measured)


FP32 = variant("fp32", 1.0, {1: 4, 8: 20, 32: 70}, mb=4)
BF16 = variant("bf16", 0.997, {1: 3, 8: 12, 32: 40}, mb=2)
INT8 = variant("int8", 0.985, {1: 2, 8: 7, 32: 24}, mb=1)
ROUGH = variant("rough", 0.9, {1: 1, 8: 2, 32: 6}, mb=0.5)
ALL = (FP32, BF16, INT8, ROUGH)


def test_the_fastest_that_agrees_enough_is_taken_with_its_batch() -> None:
    choice = choose(ALL, Wanted(slo_ms=100, agreement=0.98))
    assert (choice.variant, choice.batch) == ("int8", 32)
    assert choice.per_s == pytest.approx(32 / 0.024)
    assert choose(ALL, Wanted(slo_ms=100, agreement=0.99)).variant == "bf16"
    assert choose(ALL, Wanted(slo_ms=100, agreement=1.0)).variant == "fp32"
    assert choose(ALL, Wanted(slo_ms=100, agreement=0.5)).variant == "rough"


def test_the_promise_bounds_the_batch() -> None:
    assert choose((FP32,), Wanted(slo_ms=50)).batch == 8
    assert choose((FP32,), Wanted(slo_ms=10)).batch == 1
    assert choose((FP32,), Wanted(slo_ms=1000, max_batch=8)).batch == 8


def test_a_little_faster_is_no_reason_to_answer_differently() -> None:
    twin = variant("twin", 0.999, {1: 3.8, 8: 19, 32: 66})
    assert choose((twin, FP32), Wanted(slo_ms=200)).variant == "fp32"


def test_what_does_not_fit_in_memory_is_left_out() -> None:
    assert choose(ALL, Wanted(slo_ms=100, agreement=0.99, most_bytes=2_500_000)).variant == "bf16"


def test_none_that_keeps_it_is_an_error_that_says_what_each_lacks() -> None:
    with pytest.raises(VariantError) as refused:
        choose(ALL, Wanted(slo_ms=5, agreement=0.99, most_bytes=3_000_000))
    for part in (
        "fp32 has 4000000 bytes",
        "bf16 takes twice 3.6 ms alone",
        "int8 agrees 98.50%",
        "jobs/quantize.py",
    ):
        assert part in str(refused.value)
    for wrong in ({"slo_ms": 0}, {"slo_ms": 1, "agreement": 98}, {"slo_ms": 1, "max_batch": 0}):
        with pytest.raises(VariantError, match="give"):
            Wanted(**wrong)


def test_what_was_not_measured_is_not_trusted() -> None:
    unknown = INT8.model_copy(update={"measured": None})
    assert choose((FP32, unknown), Wanted(slo_ms=200)).variant == "fp32"
    bare = FP32.model_copy(update={"measured": None})
    choice = choose((bare, unknown), Wanted(slo_ms=1))
    assert (choice.variant, choice.per_s) == ("fp32", None)
    assert ladder((bare, unknown), Wanted(slo_ms=1)) == (choice,)


def test_overload_goes_down_to_faster_ones_above_the_floor() -> None:
    told = [r.variant for r in ladder(ALL, Wanted(slo_ms=200, agreement=0.98))]
    assert told == ["fp32", "bf16", "int8"]
    slow = variant("slow", 0.99, {1: 9, 8: 70, 32: 300})
    near = variant("near", 0.999, {1: 3.9, 8: 19.5, 32: 65})
    told = [r.variant for r in ladder((FP32, slow, near), Wanted(slo_ms=200))]
    assert told == ["fp32"]  # neither is faster by enough


def test_what_another_beats_in_speed_and_agreement_is_no_rung() -> None:
    beaten = variant("beaten", 0.99, {1: 2.9, 8: 11, 32: 35}, mb=1.5)  # faster than fp32 and bf16
    best = variant("best", 0.995, {1: 2, 8: 7, 32: 24}, mb=1.5)
    as_faithful = variant("as faithful", 0.995, {1: 2.8, 8: 10, 32: 34}, mb=0.1)
    table = (as_faithful, ROUGH, beaten, FP32, best)
    told = [r.variant for r in ladder(table, Wanted(slo_ms=200, agreement=0.5))]
    assert told == ["fp32", "best", "rough"]
    told = [r.variant for r in ladder((FP32, BF16, beaten), Wanted(slo_ms=200))]
    assert told == ["fp32", "bf16", "beaten"], "nobody is better than it in both"


@st.composite
def tables(draw: st.DrawFn) -> list[Variant]:
    found = []
    for n in range(draw(st.integers(1, 5))):
        base = draw(st.floats(0.5, 50))
        growth = draw(st.floats(1.0, 30))
        found.append(
            variant(
                f"v{n}",
                draw(st.floats(0.9, 1.0)),
                {1: base, 8: base * growth**0.6, 32: base * growth},
                mb=draw(st.floats(0.1, 10)),
            )
        )
    return found


@given(tables(), st.floats(1, 500), st.floats(0.9, 1.0))
def test_a_choice_keeps_everything_that_is_wanted(table, slo_ms, floor) -> None:
    wanted = Wanted(slo_ms=slo_ms, agreement=floor)
    by = {v.name: v for v in table}
    able = [
        v
        for v in table
        if v.measured.agreement >= floor and any(2 * r.p95_ms <= slo_ms for r in v.measured.latency)
    ]
    if not able:
        with pytest.raises(VariantError):
            choose(table, wanted)
        return
    rungs = ladder(table, wanted)
    for rung in rungs:
        row = next(r for r in by[rung.variant].measured.latency if r.batch == rung.batch)
        assert by[rung.variant].measured.agreement >= floor
        assert 2 * row.p95_ms <= slo_ms
    speeds = [rung.per_s for rung in rungs]
    assert all(b >= WORTH * a for a, b in pairwise(speeds))
    agrees = [by[rung.variant].measured.agreement for rung in rungs]
    assert agrees[0] == max(v.measured.agreement for v in able)
    assert all(b < a for a, b in pairwise(agrees))
    assert choose(table, wanted) == choose(list(reversed(table)), wanted)
