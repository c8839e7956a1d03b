"""Pools that fail are left alone for longer and longer, the next one is asked, and it is told."""

from __future__ import annotations

import itertools
import json

from fleet_world import World, WorldJob, pool
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.fleet.backoff import FIRST_S, Rest, rest_of
from rayburst.fleet.failures import KEPT, Failures, read_failures, record_failure, recovered
from rayburst.fleet.jobs import Terms
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.spec import Market
from rayburst.fleet.stock import LONGEST_REST_S
from rayburst.fleet.view import ActionKind

LONGEST_S = LONGEST_REST_S[Market.ON_PREM]
times = st.lists(st.floats(0, 20_000, allow_nan=False), max_size=20)


def test_each_attempt_that_fails_doubles_the_rest_up_to_the_longest():
    asked, rests = [0.0], []
    for _ in range(8):
        rest = rest_of(asked, longest_s=LONGEST_S)
        rests.append(rest.until - asked[-1])
        asked.append(rest.until)
    assert rests == [30, 60, 120, 240, 480, 480, 480, 480]


def test_hosts_that_fail_together_are_one_attempt_and_a_long_silence_is_a_new_start():
    assert rest_of([100.0, 101.0, 129.0], longest_s=LONGEST_S) == Rest(until=159.0, attempts=1)
    first, second = 100.0, 131.0
    assert rest_of([first, second], longest_s=LONGEST_S).attempts == 2
    reopened = second + 2 * FIRST_S
    assert rest_of([first, second, reopened + LONGEST_S], longest_s=LONGEST_S).attempts == 3
    assert rest_of([first, second, reopened + LONGEST_S + 1], longest_s=LONGEST_S).attempts == 1


@given(times, st.sampled_from(list(LONGEST_REST_S.values())))
def test_a_rest_is_never_too_long_and_the_same_failures_give_the_same(failures, longest_s):
    rest = rest_of(failures, longest_s=longest_s)
    assert rest == rest_of(reversed(failures), longest_s=longest_s)
    if failures:
        assert max(failures) + FIRST_S <= rest.until <= max(failures) + longest_s
        assert 1 <= rest.attempts <= len(failures)
    else:
        assert rest == Rest()


def _attempts(world: World, name: str) -> list[float]:
    return [at for at, what, subject in world.log if (what, subject) == ("failed", name)]


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1.0, 5.0]))
def test_the_next_pool_is_asked_within_two_ticks_and_then_nothing_comes_and_goes(
    workers, dry, tick_s
):
    """`dry` pools have nothing, for good; one more has room."""
    names = [f"spot-{i}" for i in range(dry)]
    pools = [pool(n, Market.SPOT, 0.5 + i / 100, most=3) for i, n in enumerate(names)]
    pools.append(pool("last", Market.SPOT, 1.0, most=3))
    job = WorldJob("a", steps=1e9, least=workers, most=workers)
    world = World(pools, {"a": job}, dry=lambda name, now: name in names, tick_s=tick_s, start_s=5)
    world.run(100 * tick_s)
    asked = [at for at, what, _ in world.log if what == "failed"]
    asked += [at for at, what, _ in world.log if what == "launched"][:1]
    assert len(asked) == dry + 1, "a pool that failed is not asked again: the job has its hosts"
    assert all(later - at <= 2 * tick_s for at, later in itertools.pairwise(asked))
    assert world.held("a") == ["last"] * workers
    assert [what for _, what, _ in world.log] == ["failed"] * dry + ["launched"] * workers


def test_a_pool_that_is_all_there_is_is_asked_again_and_a_host_that_joins_ends_the_count():
    job = WorldJob("a", steps=1e9, terms=Terms())
    until = 800.0
    world = World(
        [pool("spot", Market.SPOT, 0.9)], {"a": job}, dry=lambda name, now: now < until, tick_s=1.0
    ).run(until)
    asked = _attempts(world, "spot")
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps == [30, 60, 120, 120, 120, 120, 120]
    assert world.held("a") == []
    whys = [a.why for plan in world.plans for a in plan.actions if a.kind is ActionKind.QUEUE]
    closed = "spot is closed until 00:13:30 UTC after 8 launches in a row failed: no capacity"
    assert any(closed in why for why in whys)
    assert len(dict.fromkeys(whys)) <= 2 * len(asked), "said once a failure, not once a tick"
    world.run(100)
    assert world.held("a") == ["spot"]
    assert world.failed["spot"] == []


def test_failures_stay_on_file_until_a_host_that_was_asked_for_later_joins(tmp_path):
    fleet = FleetDir(tmp_path)
    assert read_failures(fleet) == {}
    for at in (10.0, 12.0, 12.0, 11.0):
        record_failure(fleet, "spot", at=at, why=f"at {at:g}")
    assert read_failures(fleet) == {"spot": Failures(at=(10.0, 11.0, 12.0), why="at 12")}
    recovered(fleet, "spot", at=11.0)
    assert read_failures(fleet) == {"spot": Failures(at=(12.0,), why="at 12")}
    recovered(fleet, "spot", at=13.0)
    recovered(fleet, "spot", at=13.0)
    assert read_failures(fleet) == {}
    for at in range(2 * KEPT):
        record_failure(fleet, "spot", at=float(at), why="no")
    assert len(read_failures(fleet)["spot"].at) == KEPT
    (tmp_path / "failures" / "old.json").write_text(json.dumps({"at": 5.0, "why": "x"}))
    assert read_failures(fleet)["old"] == Failures(at=(5.0,), why="x")
