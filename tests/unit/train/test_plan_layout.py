"""Which layout is chosen on which machines, and which mesh is left after losses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.errors import LayoutError
from rayburst.train import plan_layout
from rayburst.train.gpt import PRESETS, GPTConfig
from rayburst.train.parallel import Layout, Node
from rayburst.train.parallel.elastic import next_mesh
from rayburst.train.parallel.fit import FitOptions
from rayburst.train.parallel.layout import DIMENSIONS
from rayburst.train.parallel.topology import Device, assemble

GIB = 2**30
LARGE = GPTConfig(vocab_size=50_304, block_size=2048, n_layer=32, n_head=32, n_embd=4096)
"""6.8 billion parameters."""


def nodes(count: int, devices: int, gib: float, racks: int = 1) -> list[Node]:
    return [
        Node(name=f"n{i}", devices=devices, memory_bytes=int(gib * GIB), rack=f"r{i % racks}")
        for i in range(count)
    ]


def chosen(count: int, devices: int, gib: float, **options: object) -> Layout:
    given = {"global_batch": 64, "micro_batch": 1, **options}
    return plan_layout(LARGE, nodes(count, devices, gib), "bf16", **given).layout  # type: ignore[arg-type]


def test_what_fits_one_device_is_copied() -> None:
    plan = plan_layout(PRESETS["gpt2"], nodes(2, 4, 80), "bf16", global_batch=64)
    assert plan.layout == Layout(data=8)
    assert plan.memory.total_bytes <= plan.room_bytes


def test_what_does_not_is_sharded_over_as_few_as_it_takes() -> None:
    assert chosen(2, 8, 192) == Layout(data=16)
    assert chosen(2, 8, 80) == Layout(data=8, shard=2)
    assert chosen(2, 8, 45) == Layout(data=4, shard=4)


def test_tensor_groups_come_when_sharding_is_not_enough_and_stay_in_a_node() -> None:
    layout = chosen(2, 8, 16)
    assert layout.tensor > 1
    assert layout.pipeline == 1
    plan = plan_layout(LARGE, nodes(2, 8, 16), "bf16", global_batch=64, micro_batch=1)
    for group in layout.groups(("tensor",)):
        assert len({plan.devices[rank].node for rank in group}) == 1


def test_a_pipeline_over_racks_comes_last() -> None:
    plan = plan_layout(LARGE, nodes(8, 2, 24), "bf16", global_batch=16, micro_batch=1)
    assert plan.layout.pipeline == 1
    apart = plan_layout(LARGE, nodes(8, 2, 24, racks=8), "bf16", global_batch=16, micro_batch=1)
    assert apart.layout.pipeline > 1
    for group in apart.layout.groups(("pipeline",)):
        assert len({apart.devices[rank].node for rank in group}) == apart.layout.pipeline
    for group in apart.layout.groups(("shard", "tensor")):
        assert len({apart.devices[rank].rack for rank in group}) == 1


def test_shard_groups_stay_in_a_rack_where_they_can() -> None:
    plan = plan_layout(LARGE, nodes(4, 4, 45, racks=2), "bf16", global_batch=64, micro_batch=1)
    assert plan.layout.shard == 4
    for group in plan.layout.groups(("shard", "tensor")):
        assert len({plan.devices[rank].rack for rank in group}) == 1


def test_a_refusal_says_what_is_short_and_each_way_out_works() -> None:
    few = nodes(1, 2, 24)
    with pytest.raises(LayoutError, match=r"does not fit 2 devices of 21\.60 GiB") as refused:
        plan_layout(LARGE, few, "bf16", global_batch=64, micro_batch=1)
    text = str(refused.value)
    assert "What would fit" in text
    many = int(text.split(" nodes like n0")[0].rsplit(" ", 1)[1])
    plan_layout(LARGE, nodes(many, 2, 24), "bf16", global_batch=64, micro_batch=1)
    gib = float(text.rsplit("devices of ", 1)[1].split(" ")[0])
    plan_layout(LARGE, nodes(1, 2, gib + 0.01), "bf16", global_batch=64, micro_batch=1)
    with pytest.raises(LayoutError, match="What would fit: micro_batch=1"):
        plan_layout(PRESETS["gpt2"], nodes(1, 1, 4), "bf16", global_batch=8, micro_batch=8)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(LayoutError, match="no nodes"):
        plan_layout(LARGE, [], "bf16", global_batch=8)
    with pytest.raises(LayoutError, match="precision"):
        FitOptions(precision="int8", global_batch=8)
    with pytest.raises(LayoutError, match="devices"):
        Node(name="a", devices=0, memory_bytes=1)


def places(layout: Layout, per_node: int) -> list[Device]:
    return [Device(node=f"n{r // per_node}", index=r % per_node) for r in range(layout.world)]


def test_a_broken_group_is_left_out() -> None:
    layout = Layout(data=4, tensor=2)
    after = next_mesh(layout, places(layout, 2), lost={3})
    assert after.layout == Layout(data=3, tensor=2)
    assert after.ranks == (0, 1, 4, 5, 6, 7)
    assert after.spare == (2,)
    assert after.rebuilt == 0


def test_two_broken_groups_make_a_whole_one_in_one_node_only() -> None:
    layout = Layout(data=2, tensor=2)
    together = next_mesh(layout, places(layout, 4), lost={1, 2})
    assert together.ranks == (0, 3)
    assert together.rebuilt == 1
    with pytest.raises(LayoutError, match="0 whole groups"):
        next_mesh(layout, places(layout, 2), lost={1, 2})


def test_stages_of_broken_pipelines_make_a_whole_one() -> None:
    layout = Layout(pipeline=2, data=2)
    after = next_mesh(layout, places(layout, 1), lost={0, 3})
    assert after.layout == Layout(pipeline=2)
    assert sorted(after.ranks) == [1, 2]


def test_shards_keep_their_number_while_they_can() -> None:
    layout = Layout(data=2, shard=4)
    assert next_mesh(layout, places(layout, 8), lost={7}).layout == Layout(shard=4)
    assert next_mesh(layout, places(layout, 8), lost={1, 2, 3, 4, 5}).layout == Layout(shard=3)
    with pytest.raises(LayoutError, match="4 are needed"):
        next_mesh(layout, places(layout, 8), lost={1, 2, 3, 4, 5}, least_shard=4)


COUNTS = st.builds(Layout, **{name: st.integers(1, 3) for name in DIMENSIONS})


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 4), st.data())
def test_the_next_mesh_is_whole_and_no_worse_than_leaving_groups_out(
    layout: Layout, per_node: int, data: st.DataObject
) -> None:
    devices = places(layout, per_node * layout.tensor)
    lost = data.draw(st.sets(st.integers(0, layout.world - 1), max_size=layout.world))
    whole = [g for g in layout.groups(("pipeline", "tensor")) if not lost & set(g)]
    try:
        after = next_mesh(layout, devices, lost=lost)
    except LayoutError:
        assert not whole
        return
    assert (after.layout.tensor, after.layout.pipeline) == (layout.tensor, layout.pipeline)
    assert len(after.ranks) == len(set(after.ranks)) == after.layout.world
    assert not set(after.ranks) & lost
    assert set(after.ranks) | set(after.spare) | lost == set(range(layout.world))
    used = len(whole) - len(whole) % layout.shard if len(whole) >= layout.shard else len(whole)
    assert after.layout.copies >= used
    for group in after.layout.groups(("tensor",)):
        assert len({devices[after.ranks[rank]].node for rank in group}) == 1


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_devices_are_given_once_and_tensor_groups_stay_in_a_node(
    layout: Layout, sizes: list[int]
) -> None:
    devices = [
        Device(rack=f"r{n % 2}", node=f"n{n}", index=i)
        for n, s in enumerate(sizes)
        for i in range(s)
    ]
    found = assemble(layout, devices)
    if found is None:
        racks = [sum(s // layout.tensor for s in sizes[rack::2]) for rack in (0, 1)]
        cells = sum(groups // layout.shard for groups in racks)
        assert cells < layout.pipeline * layout.data
        return
    placed, spare = found
    assert sorted([*placed, *spare]) == sorted(devices)
    for group in layout.groups(("tensor",)):
        assert len({placed[rank].node for rank in group}) == 1
    for group in layout.groups(("shard", "tensor")):
        assert len({placed[rank].rack for rank in group}) == 1
