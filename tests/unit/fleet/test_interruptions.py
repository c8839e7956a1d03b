"""The watcher: a notice becomes one drain, tried until Ray takes it; EC2's notices are read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

from rayburst.dev.cloud.imds import ImdsServer
from rayburst.fleet.files import write_atomically
from rayburst.fleet.interruptions import (
    ImdsNoticeSource,
    OwnerNoticeSource,
    ProcessNoticeSource,
    Watcher,
)
from rayburst.fleet.pools.base import Notice

NOTICE = Notice(given_at=10.0, deadline=40.0, why="spot reclaim")


def test_a_notice_is_drained_once_and_retried_until_accepted(tmp_path):
    answers = [False, False, True]
    seen: list[Notice] = []

    def drain(notice: Notice) -> bool:
        seen.append(notice)
        return answers.pop(0)

    watcher = Watcher(ProcessNoticeSource(tmp_path), drain)
    assert watcher.step() is None
    assert seen == []
    write_atomically(tmp_path / "notice.json", json.dumps(asdict(NOTICE)))
    for _ in range(5):
        assert watcher.step() == NOTICE
    assert seen == [NOTICE] * 3


def test_a_nearer_deadline_is_drained_again_and_a_later_one_changes_nothing():
    told = [NOTICE, replace(NOTICE, deadline=90.0), replace(NOTICE, deadline=20.0), None]

    class Source:
        def poll(self) -> Notice | None:
            return told.pop(0)

    seen: list[float] = []
    watcher = Watcher(Source(), lambda notice: seen.append(notice.deadline) or True)
    for _ in range(4):
        watcher.step()
    assert seen == [40.0, 20.0]
    assert watcher.notice is not None
    assert watcher.notice.deadline == 20.0


def test_an_owners_notice_counts_from_when_it_was_written(tmp_path):
    file = tmp_path / "reclaim"
    source = OwnerNoticeSource(file)
    assert source.poll() is None
    file.write_text("")
    assert source.poll() is None, "it is still being written"
    file.write_text("90\n")
    os.utime(file, (0, 1_000.25))
    expected = Notice(given_at=1_000.25, deadline=1_090.25, why="its owner wants it back")
    assert source.poll() == expected


def test_a_spot_notice_has_ec2s_own_deadline(imds: ImdsServer):
    source = ImdsNoticeSource(endpoint=imds.url, clock=lambda: 50.0)
    assert source.poll() is None
    imds.give_notice(deadline=170.0)
    why = "EC2 takes the spot instance back (terminate)"
    assert source.poll() == Notice(given_at=50.0, deadline=170.0, why=why)


def test_a_token_that_ran_out_is_renewed(imds: ImdsServer):
    source = ImdsNoticeSource(endpoint=imds.url)
    assert source.poll() is None
    imds.tokens.clear()
    imds.give_notice(deadline=170.0)
    assert source.poll() is not None
    assert len(imds.tokens) == 1


def test_a_rebalance_recommendation_is_heeded_where_asked_for_and_a_notice_goes_before_it(
    imds: ImdsServer,
):
    imds.recommend_rebalance(at=100.0)
    assert ImdsNoticeSource(endpoint=imds.url).poll() is None
    source = ImdsNoticeSource(endpoint=imds.url, rebalance_s=600.0)
    advice = source.poll()
    assert advice is not None
    assert (advice.deadline, advice.reclaim) == (700.0, False)
    imds.give_notice(deadline=220.0)
    notice = source.poll()
    assert notice is not None
    assert (notice.deadline, notice.reclaim) == (220.0, True)


def test_a_metadata_service_that_does_not_answer_is_no_notice(imds: ImdsServer):
    url = imds.url
    source = ImdsNoticeSource(endpoint=url)
    imds.give_notice(deadline=170.0)
    assert source.poll() is not None
    assert ImdsNoticeSource(endpoint="http://127.0.0.1:9").poll() is None
    imds.documents.clear()
    assert source.poll() is None
