"""Notices: when a rank wants to leave, and how the verdict comes about."""

import threading

import pytest
import torch

from rayburst.train import notices
from rayburst.train.notices import Agreement, Notice, NoticeWatcher, Verdict


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def agreement_with(notice: Notice | None, clock: Clock) -> Agreement:
    watcher = NoticeWatcher(lambda: notice)
    watcher.poll()
    return Agreement(watcher, clock=clock, margin_s=8)


def verdict(agreement: Agreement, *, wants_checkpoint: bool = False) -> Verdict:
    agreement.begin(wants_checkpoint=wants_checkpoint)
    return agreement.end()


def test_without_a_notice_nothing_happens() -> None:
    agreement = agreement_with(None, Clock())
    assert verdict(agreement) == Verdict(leave=False, checkpoint=False)
    assert verdict(agreement, wants_checkpoint=True) == Verdict(leave=False, checkpoint=True)
    assert verdict(agreement) == Verdict(leave=False, checkpoint=False)


def test_a_node_is_used_until_the_margin_before_its_deadline() -> None:
    clock = Clock()
    agreement = agreement_with(Notice(deadline_s=1030, reason="spot"), clock)
    assert not verdict(agreement).leave
    clock.now = 1021.9
    assert not verdict(agreement).leave
    clock.now = 1022.0
    assert verdict(agreement).leave
    assert agreement.reason == "spot"


def test_a_notice_without_a_deadline_means_now() -> None:
    assert verdict(agreement_with(Notice(deadline_s=None, reason="grow"), Clock())).leave


def test_the_flags_of_other_ranks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[torch.Tensor] = []

    class Work:
        def wait(self) -> None:
            started[-1][0] = 1.0  # a peer has a notice
            started[-1][3] = 0.75  # and stood still for longer

    def all_reduce(flags: torch.Tensor, **options: object) -> Work:
        assert options["async_op"]
        started.append(flags)
        return Work()

    monkeypatch.setattr(notices.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(notices.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(notices.dist, "all_reduce", all_reduce)
    agreement = agreement_with(None, Clock())
    agreement.begin(wants_checkpoint=False, stopped_s=0.5)
    assert agreement.end() == Verdict(leave=True, checkpoint=False, stopped_s=0.75)
    assert agreement.reason == "a peer has to go"
    assert len(started) == 1


def test_the_watcher_polls_and_outlives_a_source_that_fails() -> None:
    seen = threading.Event()
    calls: list[int] = []

    def source() -> Notice | None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the head is busy")
        seen.set()
        return Notice(deadline_s=None, reason="late")

    watcher = NoticeWatcher(source, interval_s=0.001).start()
    assert seen.wait(10)
    watcher.stop()
    assert len(calls) >= 2


def test_a_shared_source_is_asked_at_the_same_step_on_all_ranks() -> None:
    asked: list[int] = []
    watcher = NoticeWatcher(lambda: asked.append(1))
    agreement = Agreement(watcher, clock=Clock(), poll_every_steps=3)
    for _ in range(7):
        verdict(agreement)
    assert len(asked) == 2
