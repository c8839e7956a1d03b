"""A run is the same run whatever happened to it: real process groups, declared interruptions.

.venv/bin/python -m pytest tests/integration/train/test_exact_mode.py
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from training_ranks import (
    CUT,
    EPOCHS,
    GLOBAL_BATCH,
    SAMPLES,
    Case,
    Phase,
    play,
    run_phase,
    samples_by_step,
    weights_of,
)

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.order import Order
from rayburst.train.runlog import read_folder

pytestmark = pytest.mark.timeout(400)
STEPS = -(-SAMPLES * EPOCHS // GLOBAL_BATCH)
EXACT = {"mode": "exact", "shards": 8}


def schedule(seed: int, events: int) -> list[Phase]:
    """A seeded history: groups of one to four that leave, or lose one, rank 0 or two at once."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, STEPS - 1), events))
    phases = []
    for step in steps:
        world = draw.randint(1, 4)
        event = draw.choice(["leave", "cut"])
        lost = draw.sample(range(world), min(world, draw.randint(1, 2)))
        phases.append(Phase(world, event, step, tuple(lost) if event == "cut" else ()))
    return [*phases, Phase(draw.randint(1, 4))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of the final weights of one worker that nobody disturbs, by optimizer."""
    found = {}
    for name in ("adamw", "sgd"):
        log = play(Case(options=EXACT, optimizer=name), [Phase(1)], tmp_path_factory.mktemp(name))
        (found[name],) = weights_of(log)
    assert found["adamw"] != found["sgd"]
    return found


@pytest.mark.parametrize("world", [2, 3, 4, 9])
def test_every_world_ends_with_the_same_weights(
    world: int, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Three does not divide the eight shards, and nine is more than there are."""
    for name, weights in undisturbed.items():
        log = play(Case(options=EXACT, optimizer=name), [Phase(world)], tmp_path / name)
        assert weights_of(log) == {weights}
        assert max(r["step"] for r in log if r["kind"] == "step") == STEPS


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(s, marks=pytest.mark.soak) for s in range(2, 20))]
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_any_history_ends_with_the_same_weights(
    seed: int, optimizer: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    case = Case(options=EXACT, optimizer=optimizer)
    log = play(case, schedule(seed, events=5), tmp_path)
    assert weights_of(log) == {undisturbed[optimizer]}


def test_fast_mode_trains_on_each_sample_once_an_epoch_whatever_happens(tmp_path: Path) -> None:
    case = Case(options={"mode": "fast", "micro_batch": 2})
    play(case, schedule(5, events=5), tmp_path)
    steps = samples_by_step(tmp_path)
    order = Order(samples=SAMPLES, global_batch=GLOBAL_BATCH, seed=3, limit=EPOCHS * SAMPLES)
    expected = {
        number + 1: order.indices(order.batch(number * GLOBAL_BATCH))[1] for number in range(STEPS)
    }
    assert {step: sorted(s) for step, s in steps.items()} == {
        step: sorted(indices.tolist()) for step, indices in expected.items()
    }
    counts = Counter(sample for samples in steps.values() for sample in samples)
    assert counts == dict.fromkeys(range(SAMPLES), EPOCHS)


def test_fast_mode_is_close_to_exact_mode(tmp_path: Path) -> None:
    """The same samples in the same order: only rounding and dropout's draws differ."""
    losses = {}
    for name, options in (("exact", EXACT), ("fast", {"mode": "fast"})):
        log = play(Case(options=options), [Phase(2)], tmp_path / name)
        last = [r["loss"] for r in log if r["kind"] == "step" and r["step"] > STEPS - 4]
        losses[name] = sum(last) / len(last)
    assert losses["fast"] == pytest.approx(losses["exact"], rel=0.15)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    for mode in ("exact", "fast"):
        case = Case(options={"mode": mode}, poison=20)
        codes = run_phase(case, Phase(2), _made(tmp_path / mode), 0)
        assert codes == [1, 1], "every rank stops"
        told = (tmp_path / mode / "error-0-0.json").read_text()
        assert "NonFiniteError" in told
        assert "on_nonfinite='skip'" in told


def test_such_steps_are_left_out_when_asked_for_and_told(tmp_path: Path) -> None:
    log = play(
        Case(options={"mode": "exact", "on_nonfinite": "skip"}, poison=20), [Phase(2)], tmp_path
    )
    left_out = {r["step"] for r in log if r["kind"] == "nonfinite"}
    assert len(left_out) == EPOCHS, "the sample comes once an epoch"
    assert len(weights_of(log)) == 1


def test_a_cut_without_any_checkpoint_starts_again(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    case = Case(options=EXACT, checkpoint_every_s=1e6)
    codes = run_phase(case, Phase(2, "cut", 3, (1,)), _made(tmp_path), 0)
    assert CUT in codes
    folder = ObjectStore.open(str(tmp_path / "run"))
    assert not [r for r in read_folder(folder) if r["kind"] == "committed"]
    assert weights_of(play(case, [Phase(3)], tmp_path, first=1)) == {undisturbed["adamw"]}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
