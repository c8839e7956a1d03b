"""The watcher: the first notice becomes one drain, tried until Ray takes it."""

from __future__ import annotations

import json
from dataclasses import asdict

from rayburst.fleet.files import write_atomically
from rayburst.fleet.interruptions import ProcessNoticeSource, Watcher
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
