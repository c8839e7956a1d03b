"""When a call to the store is tried again, and when: errors that pass, and throttling.

What passes (a broken connection, a time-out, a server error) is tried again after a random time
that grows. A store that throttles (429, 503) is left alone by every thread of this process until it
wants requests again: one of them asks it, by one HEAD, for its Retry-After, because the client
library (obstore) retries without reading that header and does not show it. So its own retries are
off and these are on.

Deliberately does not know what is called, and retries nothing on a local disk.
"""

from __future__ import annotations

import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)

from rayburst.checkpoint._store_errors import is_refusal
from rayburst.errors import StoreError

__all__ = ["Limits", "Patience", "asked_wait_s", "trouble"]

T = TypeVar("T")
_FINAL = (
    AlreadyExistsError,
    InvalidPathError,
    NotFoundError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
_STATUS = re.compile(r"status code: (\d{3})")
_NO_ROLE_TRIES = 2  # where neither the environment nor an instance role has credentials
_GROWTH = 3.0


def trouble(error: BaseException) -> Literal["final", "passing", "throttled"]:
    """PURE: what kind of failure it is, from the client's error."""
    if not isinstance(error, BaseError) or isinstance(error, _FINAL):
        return "final"
    text = str(error)
    found = _STATUS.search(text)
    if found is None:  # no status: objects of one request that are refused, or no answer at all
        return "final" if is_refusal(text) else "passing"
    status = int(found[1])
    if status in (429, 503):
        return "throttled"
    if status >= 500 or status == 408 or "ConditionalRequestConflict" in text:
        return "passing"
    return "final"


def asked_wait_s(header: str | None, date: str | None, now: datetime) -> float | None:
    """PURE: seconds that a Retry-After asks for; its date is compared with the reply's `date`."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
        since = parsedate_to_datetime(date) if date else now
    except ValueError:
        return None
    return max(0.0, (until - since).total_seconds())


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """`retry_s` bounds one call with all its retries; the other times are between two of them."""

    retries: int
    retry_s: float
    first_s: float
    most_s: float
    ask_s: float


class Patience:
    """Shared by all threads that call one store.

    `question` gives a signed URL whose HEAD shows what the store wants now.
    """

    def __init__(
        self,
        limits: Limits,
        question: Callable[[str], str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = limits
        self._question = question
        self._monotonic = monotonic
        self._sleep = sleep
        self._closed_until = 0.0
        self._asking = threading.Lock()

    def call(self, path: str, action: Callable[[], T]) -> T:
        """Run `action` until it succeeds, fails for good, or patience is at its end."""
        limits = self._limits
        end, pause = self._monotonic() + limits.retry_s, limits.first_s
        tries = 0
        while True:
            self._wait_for_the_store()
            begun = self._monotonic()
            try:
                return action()
            except BaseError as error:
                kind, tries = trouble(error), tries + 1
                most = min(limits.retries, _NO_ROLE_TRIES) if _no_role(error) else limits.retries
                if kind == "final" or tries > most:
                    raise
                pause = min(limits.most_s, random.uniform(limits.first_s, pause * _GROWTH))
                if kind == "throttled":
                    self._close(path, begun, pause, end)
                elif self._monotonic() + pause > end:
                    raise
                else:
                    self._sleep(pause)

    def _wait_for_the_store(self) -> None:
        while (left := self._closed_until - self._monotonic()) > 0:
            self._sleep(left + random.uniform(0.0, self._limits.first_s))  # not all at one moment

    def _close(self, path: str, begun: float, pause: float, end: float) -> None:
        """Let nobody through for as long as the store wants, or for `pause` where it says nothing.

        StoreError if that is longer than this call may take.
        """
        with self._asking:
            if self._closed_until <= begun:  # else another thread has asked since
                wait = self._ask(path)
                self._closed_until = self._monotonic() + max(pause, wait or 0.0)
            left = self._closed_until - self._monotonic()
        if self._closed_until > end:
            raise StoreError(
                f"{path}: the store throttles and wants no request for another {left:.0f} s, which "
                f"is more than StoreOptions(retry_s={self._limits.retry_s:.0f}) leaves. Try later, "
                f"or raise it."
            )

    def _ask(self, path: str) -> float | None:
        try:
            request = urllib.request.Request(self._question(path), method="HEAD")
        except BaseError:  # these credentials cannot sign a URL
            return None
        try:
            with urllib.request.urlopen(request, timeout=self._limits.ask_s):
                return None
        except urllib.error.HTTPError as reply:
            with reply:
                if reply.code not in (429, 503):
                    return None
                header, date = reply.headers.get("Retry-After"), reply.headers.get("Date")
            return asked_wait_s(header, date, datetime.now(UTC))
        except OSError:
            return None


def _no_role(error: BaseError) -> bool:
    return "169.254.169.254" in str(error)
