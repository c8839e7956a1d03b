"""From a notice to Ray's drain: what the watcher on every node does.

A source says whether this machine was given notice. The watcher asks it, and turns the notice into
Ray's drain with the notice's own deadline, so that Ray places nothing more here and Ray Train
learns of the loss before it happens. It does not decide what to do about the loss, and it does not
end the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import requests

from rayburst.fleet.files import read_json
from rayburst.fleet.pools.base import OWNERS_WISH, Notice

IMDS = "http://169.254.169.254"
"""Where EC2 tells an instance about itself."""

_TOKEN_S = 21_600
_ANSWER_S = 0.4  # it is on the same machine; three answers stay within the second of `poll`


class NoticeSource(Protocol):
    """Where notices of one machine appear: a metadata service, a file, an owner's calendar."""

    def poll(self) -> Notice | None:
        """The notice given to this machine, or None; blocks for little more than a second."""
        ...


class ProcessNoticeSource:
    """Notices of a process host: a file in its folder, written once by whoever takes the host."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "notice.json"

    def poll(self) -> Notice | None:
        record = read_json(self._file)
        return Notice(**record) if record else None


class OwnerNoticeSource:
    """Notices of a machine that its owner wants back: a file that holds how many seconds they give.

    The deadline is so long after the file was written, whenever it is seen.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def poll(self) -> Notice | None:
        try:
            given_s, at = float(self._file.read_text()), self._file.stat().st_mtime
        except (OSError, ValueError):  # not there, or not written yet
            return None
        return Notice(given_at=at, deadline=at + given_s, why=OWNERS_WISH)


class InstanceMetadata:
    """What EC2 tells an instance about itself, asked with a token (IMDSv2).

    Raises requests.RequestException when it does not answer.
    """

    def __init__(self, endpoint: str = IMDS) -> None:
        self._endpoint = endpoint
        self._token = ""
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between a machine and itself

    def text(self, path: str) -> str:
        """A document below `/latest/meta-data/`; empty when there is none now."""
        url = f"{self._endpoint}/latest/meta-data/{path}"
        try:
            for _ in range(2):  # a token may have run out
                headers = {"X-aws-ec2-metadata-token": self._token or self._new_token()}
                answer = self._session.get(url, headers=headers, timeout=_ANSWER_S)
                if answer.status_code != 401:
                    break
                self._token = ""
        except requests.RequestException:
            self._token = ""
            raise
        if answer.status_code == 404:
            return ""
        answer.raise_for_status()
        return answer.text

    def _new_token(self) -> str:
        answer = self._session.put(
            f"{self._endpoint}/latest/api/token",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)},
            timeout=_ANSWER_S,
        )
        answer.raise_for_status()
        self._token = answer.text
        return self._token


class ImdsNoticeSource:
    """Notices of an EC2 spot instance, from its metadata service.

    Sources: "Spot Instance interruption notices" and "EC2 instance rebalance recommendations" in
    the EC2 User Guide. A service that does not answer gives no notice.

    Args:
        endpoint: where the service is.
        rebalance_s: how long work has to leave after a rebalance recommendation, which comes
            earlier than a notice or instead of none; None: it is not heeded.
    """

    def __init__(
        self,
        *,
        endpoint: str = IMDS,
        rebalance_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._metadata = InstanceMetadata(endpoint)
        self._rebalance_s = rebalance_s
        self._clock = clock
        self._first_seen: dict[str, float] = {}

    def poll(self) -> Notice | None:
        try:
            if told := self._get("spot/instance-action"):
                action = str(told.get("action", "terminate"))
                why = f"EC2 takes the spot instance back ({action})"
                return self._notice(why, deadline=_unix_s(told["time"]), reclaim=True)
            if self._rebalance_s is None:
                return None
            if told := self._get("events/recommendations/rebalance"):
                deadline = _unix_s(told["noticeTime"]) + self._rebalance_s
                return self._notice("EC2 recommends to rebalance", deadline=deadline, reclaim=False)
        except requests.RequestException:
            return None
        return None

    def _notice(self, why: str, *, deadline: float, reclaim: bool) -> Notice:
        seen_at = self._first_seen.setdefault(why, self._clock())
        return Notice(given_at=seen_at, deadline=deadline, why=why, reclaim=reclaim)

    def _get(self, path: str) -> dict[str, str]:
        """A document of the service; empty when there is none now."""
        told: dict[str, str] = json.loads(self._metadata.text(path) or "{}")
        return told


class Watcher:
    """Asks a source and drains the node. Call `step` once a second or more often.

    A notice with an earlier deadline replaces the one in force; a later one changes nothing.

    Args:
        source: where this machine's notices appear.
        drain: tells Ray; takes the notice, returns True when Ray accepted it. Tried again until
        then.
    """

    def __init__(self, source: NoticeSource, drain: Callable[[Notice], bool]) -> None:
        self._source = source
        self._drain = drain
        self._drained = False
        self.notice: Notice | None = None

    def step(self) -> Notice | None:
        """Look once; returns the notice in force."""
        seen = self._source.poll()
        if seen is not None and (self.notice is None or seen.deadline < self.notice.deadline):
            self.notice, self._drained = seen, False
        if self.notice is not None and not self._drained:
            self._drained = self._drain(self.notice)
        return self.notice


def _unix_s(text: str) -> float:
    """The moment that an ISO 8601 text like 2026-01-31T18:02:00Z names."""
    return datetime.fromisoformat(text).timestamp()
