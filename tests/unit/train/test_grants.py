"""Asks and grants: what travels, what a run may use, what it has measured."""

from __future__ import annotations

from dataclasses import replace

from rayburst.train.grants import Ask, Grant, Measured, claimed, outside
from rayburst.train.progress import Progress

NODES = {"n1": "rack-1", "n2": "spot-1", "n3": "spot-2"}
RUNNING = Progress(
    t=110.0,
    since=112.0,
    step=10,
    steps=50,
    resumed_from=0,
    world=2,
    loss=1.0,
    val_bits_per_byte=None,
    tokens_per_s=None,
    eta_s=20.0,
)


def test_what_is_published_is_what_is_read():
    ask = Ask(
        t=1.5,
        run="r",
        least=1,
        most=4,
        resources={"CPU": 2.0},
        hosts=("rack-1",),
        steps_left=7,
        speeds={2: 3.5},
        changeover_s=9.0,
        checkpoint_s=0.5,
        stop_s=0.9,
    )
    assert Ask.from_json(ask.to_json()) == ask
    grant = Grant(hosts=("rack-1",), pools={"rack": 2}, why="one is on its way")
    assert Grant.from_json(grant.to_json()) == grant


def test_a_job_may_use_the_hosts_of_its_grant_only():
    grant = Grant(hosts=("rack-1", "spot-2"))
    assert outside(grant, NODES, frozenset(), is_job=True) == {"n2"}
    assert outside(None, NODES, frozenset(), is_job=True) == set(NODES)


def test_a_driver_without_a_grant_keeps_off_the_hosts_of_jobs():
    assert outside(None, NODES, claimed(b'["spot-1"]'), is_job=False) == {"n2"}


def test_without_a_planner_nothing_is_forbidden():
    for is_job in (True, False):
        assert outside(None, NODES, claimed(None), is_job=is_job) == set()
        assert outside(Grant(), NODES, claimed(None), is_job=is_job) == set()


def test_speeds_are_kept_by_size_and_a_changeover_runs_from_start_to_first_step():
    measured = Measured()
    measured.hear(None)
    assert measured.steps_left is None
    measured.started(100.0)
    measured.hear(RUNNING.to_json())
    assert (measured.steps_left, measured.speeds, measured.changeover_s) == (40, {2: 2.0}, 12.0)
    measured.started(130.0)
    measured.hear(RUNNING.to_json())  # still what the group before has left
    assert measured.changeover_s == 12.0
    grown = replace(RUNNING, since=137.0, world=4, step=20, eta_s=10.0, checkpoint_s=0.3)
    measured.hear(grown.to_json())
    assert measured.speeds == {2: 2.0, 4: 3.0}
    assert (measured.changeover_s, measured.checkpoint_s) == (7.0, 0.3)


def test_a_change_in_place_is_no_changeover():
    measured = Measured()
    measured.started(100.0)
    measured.hear(RUNNING.to_json())
    assert measured.stop_s is None
    rebuilt = replace(RUNNING, since=150.0, world=3, stopped_s=0.7)
    measured.hear(rebuilt.to_json())
    measured.started(200.0)  # a restart after all: what it will take is not what a rebuild took
    measured.hear(replace(RUNNING, since=209.0).to_json())
    assert (measured.changeover_s, measured.stop_s) == (9.0, 0.7)


def test_progress_that_cannot_be_read_changes_nothing():
    measured = Measured()
    measured.hear(RUNNING.to_json())
    for broken in (b"", b"{", b"[]", b'{"step": 1}'):
        measured.hear(broken)
    assert measured.steps_left == 40
