"""Layouts: ranks and groups, what a plan says, how blocks and batches are cut."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rayburst.errors import LayoutError
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.parallel import Layout, Parallel, ParallelOptions, Plan
from rayburst.train.parallel.layout import DIMENSIONS
from rayburst.train.parallel.pipe import equal_parts
from rayburst.train.parallel.plan import GPT_PLAN, plan_for
from rayburst.train.parallel.precision import LossScale
from rayburst.train.parallel.stage import Stage, blocks_of

torch.set_num_threads(1)
SMALL = GPTConfig(vocab_size=32, block_size=8, n_layer=3, n_head=2, n_embd=16)
COUNTS = st.builds(Layout, **{name: st.integers(1, 3) for name in DIMENSIONS})


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@given(COUNTS)
def test_every_rank_has_a_place_of_its_own(layout: Layout) -> None:
    places = [layout.place_of(rank) for rank in range(layout.world)]
    assert len(set(places)) == layout.world
    assert [layout.rank_of(place) for place in places] == list(range(layout.world))
    copies = [layout.copy_of(rank) for rank in range(layout.world)]
    assert {copies.count(copy) for copy in range(layout.copies)} == {
        layout.pipeline * layout.tensor
    }


@given(COUNTS)
def test_groups_part_the_ranks_and_tensor_groups_are_neighbours(layout: Layout) -> None:
    for along in (("tensor",), ("pipeline",), ("pipeline", "shard", "tensor")):
        groups = layout.groups(along)
        assert sorted(rank for group in groups for rank in group) == list(range(layout.world))
    for group in layout.groups(("tensor",)):
        assert list(group) == list(range(group[0], group[0] + layout.tensor))


def test_a_layout_is_read_from_text_and_says_what_is_wrong_with_it() -> None:
    assert Layout.parse("shard=2, tensor=4") == Layout(shard=2, tensor=4)
    assert Layout.parse("") == Layout()
    assert str(Layout(tensor=2, data=3)) == "data=3,tensor=2"
    for wrong in ("shard", "shards=2", "shard=2,shard=3", "data=0", "tensor=-1"):
        with pytest.raises(LayoutError, match="for example"):
            Layout.parse(wrong)
    with pytest.raises(LayoutError, match="ranks 0 to 3"):
        Layout(data=4).place_of(4)


@given(st.integers(1, 40), st.integers(1, 12))
def test_stages_divide_the_blocks_evenly_and_in_order(blocks: int, stages: int) -> None:
    parts = [blocks_of(blocks, index=i, stages=stages) for i in range(stages)]
    assert [i for part in parts for i in part] == list(range(blocks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 64), st.integers(0, 16), st.integers(1, 8))
def test_parts_of_a_batch_are_equal_and_enough(rows: int, most: int, stages: int) -> None:
    if rows < stages:
        with pytest.raises(LayoutError, match="larger global batch"):
            equal_parts(rows, most, stages)
        return
    parts = equal_parts(rows, most, stages)
    assert parts >= stages
    assert rows % parts == 0
    assert most == 0 or rows // parts <= most


def test_stages_hold_the_model_between_them_and_compute_what_it_computes() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    idx = torch.randint(0, 32, (2, 8))
    expected, _ = model(idx)
    names = set(dict(model.named_parameters()))
    x, held = idx, set()
    for index in range(3):
        torch.manual_seed(0)
        stage = Stage(GPT(SMALL), GPT_PLAN, index=index, count=3)
        x = stage(x)
        held |= {GPT_PLAN.canonical(name) for name, _ in stage.model.named_parameters()}
    assert torch.equal(x, expected)
    assert held == names


def test_what_cannot_be_laid_out_is_refused_with_a_way_out() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(LayoutError, match="no plan for Sequential"):
        plan_for(net)
    with pytest.raises(LayoutError, match="counts multiply to 1"):
        Parallel(GPT(SMALL), ParallelOptions(layout=Layout(data=2)), sgd)
    with pytest.raises(LayoutError, match="cuts between blocks"):
        Stage(net, Plan(loss=nn.functional.cross_entropy), index=0, count=2)
    with pytest.raises(LayoutError, match="has 3 blocks"):
        Stage(GPT(SMALL), GPT_PLAN, index=0, count=4)
    with pytest.raises(LayoutError, match="column, row"):
        Plan(loss=nn.functional.cross_entropy, tensor={"a": "rows"})  # type: ignore[dict-item]
    with pytest.raises(LayoutError, match="bf16"):
        ParallelOptions(precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="blocks, embed and unembed"):
        plan = Plan(loss=nn.functional.cross_entropy)
        Parallel(net, ParallelOptions(recompute=True), sgd, plan=plan)


def test_any_module_learns_as_in_a_plain_loop_with_a_plan_that_only_names_its_loss() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    plain = copy.deepcopy(net)
    optimizer = sgd(list(plain.parameters()))
    loss_of = nn.functional.cross_entropy
    parallel = Parallel(net, ParallelOptions(micro_batch=16), sgd, plan=Plan(loss=loss_of))
    for _ in range(5):
        x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        loss = loss_of(plain(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(parallel.step(x, y), loss.detach())
    for mine, expected in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_norm_is_clipped_to_its_limit() -> None:
    net = nn.Linear(2, 1, bias=False)
    options = ParallelOptions(clip_norm=0.5)
    parallel = Parallel(net, options, sgd, plan=Plan(loss=lambda out, _: out.sum()))
    before = net.weight.detach().clone()
    parallel.backward(torch.tensor([[3.0, 4.0]]), torch.zeros(1))
    assert parallel.update().item() == pytest.approx(5.0)
    assert (net.weight - before).norm().item() == pytest.approx(0.1 * 0.5)


def test_a_half_precision_step_that_overflows_is_skipped_and_the_scale_halved() -> None:
    net = nn.Linear(2, 1, bias=False)
    options = ParallelOptions(precision="fp16")
    parallel = Parallel(net, options, sgd, plan=Plan(loss=lambda out, _: out.sum()))
    before = net.weight.detach().clone()
    scale = parallel.state()["scale"]["value"]
    parallel.backward(torch.tensor([[6e4, 6e4]]), torch.zeros(1))  # times the scale: infinite
    parallel.update()
    assert torch.equal(net.weight, before)
    assert parallel.state()["scale"]["value"] == scale / 2


def test_the_scale_grows_again_after_a_quiet_time() -> None:
    scale = LossScale("fp16", start=8.0, quiet_steps=2)
    for is_finite in (False, True, True):
        scale.update(is_finite=is_finite)
    assert scale.value == 8.0
    other = LossScale("fp16")
    other.load(scale.state())
    assert other.value == 8.0
    full = LossScale("fp32")
    full.load(scale.state())
    assert full.value == 1.0
