"""What a run says about itself: throughput, lines, and words in between."""

from types import SimpleNamespace

import pytest

from rayburst.train.narrator import Narrator
from rayburst.train.progress import Meter, Progress, duration, line
from rayburst.train.teller import Teller


def at(t: float, step: int, **fields: object) -> Progress:
    known: dict[str, object] = {
        "t": t,
        "since": 100.0,
        "step": step,
        "steps": 50,
        "resumed_from": 0,
        "world": 3,
        "loss": 2.0,
        "val_bits_per_byte": None,
        "tokens_per_s": 1234.5,
        "eta_s": 75.0,
    }
    return Progress(**{**known, **fields})  # type: ignore[arg-type]


def test_throughput_and_time_left() -> None:
    meter = Meter(steps=100)
    assert meter.add(t=10.0, step=1, tokens=50) == (None, None)
    assert meter.add(t=10.5, step=2, tokens=50) == (100.0, 49.0)
    assert meter.add(t=12.0, step=5, tokens=50) == (50.0, 95 / 2)


def test_throughput_forgets_what_is_long_ago() -> None:
    meter = Meter(steps=100, window_s=10)
    meter.add(t=0.0, step=1, tokens=10)
    for t in (1000.0, 1001.0):
        rate = meter.add(t=t, step=int(t), tokens=10)
    assert rate == (10.0, -901.0)


def test_a_line_says_it_all() -> None:
    text = line(at(100, 7, val_bits_per_byte=3.25))
    assert text == (
        "step  7/50   14%  loss 2.000  2.89 bits/byte  validation 3.250  1,234 tokens/s  "
        "world 3  ETA 1 min 15 s"
    )
    bare = line(at(100, 50, tokens_per_s=None, eta_s=None))
    assert bare == "step 50/50  100%  loss 2.000  2.89 bits/byte  world 3"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_survives_the_way_to_the_driver() -> None:
    progress = at(100, 7)
    assert Progress.from_json(progress.to_json()) == progress


def hear(*published: tuple[float, Progress | None]) -> list[str]:
    said: list[str] = []
    narrator = Narrator(said.append)
    for now_s, progress in published:
        narrator.hear(progress.to_json() if progress else None, now_s)
    return said


def test_lines_are_few() -> None:
    said = hear(*[(100 + t / 2, at(100 + t / 2, t)) for t in range(1, 9)])
    assert said[0] == "training with 3 workers from the start"
    assert [text.split("/")[0] for text in said[1:]] == ["step  5"]


def test_never_silent_for_long() -> None:
    said = hear(*[(float(t), None) for t in range(30)])
    assert said == [f"waiting for workers ({t} s)" for t in (8, 16, 24)]


def test_a_restart_is_told_with_what_it_cost() -> None:
    before = at(110.0, 20)
    leaving = at(110.0, 20, state="saving and leaving: spot-1 is to be taken away")
    after = at(123.0, 19, since=123.0, resumed_from=18, world=2)
    said = hear((110.0, before), (111.0, leaving), (119.5, leaving), (123.0, after))
    assert said[0] == "training with 3 workers from the start"
    assert said[1:] == [
        "step 20: saving and leaving: spot-1 is to be taken away",
        "no step for 8 s: the group restarts",
        "training with 2 workers from step 18 after 13 s without a step, 2 steps again",
    ]


def test_a_change_in_place_is_told_by_what_rank_0_measured() -> None:
    after = at(111.0, 24, since=110.4, resumed_from=21, world=2, stopped_s=0.31)
    said = hear((110.0, at(110.0, 20)), (111.0, after))
    assert said[1] == "training with 2 workers from step 21 after 0.3 s without a step"


def test_how_long_a_change_in_place_stopped_the_group_is_told_until_the_next_one() -> None:
    published: list[Progress] = []
    clock = [0.0]

    def teller(before: Teller | None) -> Teller:
        return Teller(
            lambda body: published.append(Progress.from_json(body)),
            world=2,
            resumed_from=0,
            steps=9,
            tokens_per_step=0,
            clock=lambda: clock[0],
            before=before,
        )

    def steps(told: Teller, *times: float) -> float | None:
        for clock[0] in times:
            told.step(1, 1.0, {}, SimpleNamespace(blocked_s=None, between_s=600.0))
        told.tell()
        return published[-1].stopped_s

    first = teller(None)
    assert steps(first, 1.0, 1.5, 2.0) is None
    second = teller(first)
    assert steps(second, 4.0) == 1.5, "two seconds without a step, of which a step takes 0.5"
    assert steps(second, 4.5) == 1.5
    third = teller(second)
    assert steps(third, 5.0) == 0.0
    assert steps(teller(teller(third)), 6.0) == 1.0, "a group that broke before its first step"


def test_a_rank_0_that_has_just_joined_tells_the_stop_that_the_others_saw() -> None:
    published: list[Progress] = []
    told = Teller(
        lambda body: published.append(Progress.from_json(body)),
        world=2,
        resumed_from=7,
        steps=9,
        tokens_per_step=0,
        clock=lambda: 1.0,
    )
    costs = SimpleNamespace(blocked_s=None, between_s=600.0)
    told.step(8, 1.0, {}, costs)
    assert (told.seen_stop_s, published[-1].stopped_s) == (0.0, None)
    told.step(9, 1.0, {}, costs, stopped_s=1.25)
    assert published[-1].stopped_s == 1.25
    assert published[-1].between_s == 600.0
