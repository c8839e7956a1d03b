"""Memory by layout: the formulas beside what torch's own tracker sees, stage by stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from rayburst.errors import LayoutError
from rayburst.train.gpt import GPT, PRESETS, GPTConfig
from rayburst.train.parallel import Layout, Parallel, ParallelOptions, Plan
from rayburst.train.parallel.memory import Batch, memory_of, stage_memory
from rayburst.train.parallel.plan import GPT_PLAN
from rayburst.train.parallel.saved import SavedBytes
from rayburst.train.parallel.shape import gpt_shape, module_shape
from rayburst.train.parallel.stage import Stage

torch.set_num_threads(1)
CONFIG = GPTConfig(vocab_size=256, block_size=64, n_layer=4, n_head=4, n_embd=128)
SHAPE = gpt_shape(CONFIG)
ROWS = 8


def tokens(rows: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, CONFIG.block_size))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_in_one_process_peaks_where_the_formulas_say(
    precision: str, recompute: bool
) -> None:
    options = ParallelOptions(precision=precision, recompute=recompute)  # type: ignore[arg-type]
    parallel = Parallel(GPT(CONFIG), options, torch.optim.AdamW)
    parallel.step(tokens(ROWS), tokens(ROWS))
    tracker = MemTracker()
    tracker.track_external(parallel.stage, parallel.optimizer)
    with tracker:
        parallel.step(tokens(ROWS), tokens(ROWS))
    by_kind = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    measured = by_kind[next(kind for kind in by_kind if str(kind) == "Total")]
    expected = memory_of(SHAPE, Layout(), Batch(rows=ROWS, recompute=recompute), precision)
    assert expected.total_bytes == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("stage", range(4))
def test_a_stage_keeps_what_the_formulas_say(stage: int) -> None:
    part = Stage(GPT(CONFIG), GPT_PLAN, index=stage, count=4)
    x = tokens(2) if stage == 0 else torch.randn(2, 64, 128, requires_grad=True)
    with SavedBytes(part) as saved:
        out = part(x)
        if stage == 3:
            GPT_PLAN.loss(out, tokens(2))
    batch, layout = Batch(rows=16, micro_batch=2), Layout(pipeline=4)
    use = stage_memory(SHAPE, layout, batch, "fp32", stage=stage)
    held = sum(p.numel() for p in part.parameters())
    assert use.weights_bytes == 4 * held
    assert use.optimizer_bytes == 8 * held
    in_flight = 4 - stage
    working = 2 * 4 * out.numel() if stage == 3 else 0
    assert use.activations_bytes == pytest.approx(saved.bytes * in_flight + working, rel=0.02)


def test_each_way_of_splitting_takes_less_of_what_it_splits() -> None:
    one = memory_of(SHAPE, Layout(), Batch(rows=ROWS), "bf16")
    shard = memory_of(SHAPE, Layout(shard=4), Batch(rows=ROWS), "bf16")
    assert shard.weights_bytes * 4 == one.weights_bytes
    assert shard.optimizer_bytes * 4 == one.optimizer_bytes
    tensor = memory_of(SHAPE, Layout(tensor=4), Batch(rows=ROWS), "bf16")
    assert one.weights_bytes / 4 < tensor.weights_bytes < one.weights_bytes / 3.5
    assert one.activations_bytes / 4 < tensor.activations_bytes < one.activations_bytes / 1.5
    again = memory_of(SHAPE, Layout(), Batch(rows=ROWS, recompute=True), "bf16")
    assert again.activations_bytes < one.activations_bytes / 2
    assert replace(again, activations_bytes=one.activations_bytes) == one


def test_bfloat16_keeps_at_most_six_tenths_of_the_activations() -> None:
    kept = {}
    for precision in ("fp32", "bf16"):
        options = ParallelOptions(precision=precision)  # type: ignore[arg-type]
        parallel = Parallel(GPT(PRESETS["tiny"]), options, torch.optim.AdamW)
        idx = torch.randint(0, 256, (16, 256))
        with SavedBytes(parallel.stage) as saved:
            GPT_PLAN.loss(parallel.stage(idx), idx)
        kept[precision] = saved.bytes
    assert kept["bf16"] <= 0.6 * kept["fp32"]


def test_a_models_shape_is_counted_where_it_is_not_known() -> None:
    found = module_shape(GPT(CONFIG), GPT_PLAN, tokens(1))
    assert found.parameters == SHAPE.parameters == GPT(CONFIG).parameter_count
    layout, batch = Layout(shard=2), Batch(rows=ROWS)
    counted, known = (memory_of(s, layout, batch, "fp32").total_bytes for s in (found, SHAPE))
    assert counted == pytest.approx(known, rel=0.03)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 4))
    plain = module_shape(net, Plan(loss=nn.functional.mse_loss), torch.randn(1, 64))
    assert plain.parameters == sum(p.numel() for p in net.parameters())
    assert plain.block.kept_whole == 64 + 256  # inputs of both layers; ReLU's output is one of them


def test_a_batch_has_samples() -> None:
    with pytest.raises(LayoutError, match="1 or more"):
        Batch(rows=0)
