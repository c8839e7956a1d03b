"""What is tried again and when, by a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from obstore.exceptions import BaseError, GenericError, NotFoundError

from rayburst.checkpoint.patience import Limits, Patience, asked_wait_s, trouble
from rayburst.errors import StoreError

LIMITS = Limits(retries=5, retry_s=60, first_s=0.1, most_s=10, ask_s=5)


def answer(status: int, words: str = "") -> BaseError:
    return GenericError(f"Server returned non-2xx status code: {status}: {words}")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def busy() -> Iterator[str]:
    """An endpoint that answers every HEAD with 503 and Retry-After: 7."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "7")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x"
    server.shutdown()
    thread.join()
    server.server_close()


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def patience(clock: Clock, url: str, limits: Limits = LIMITS) -> Patience:
    return Patience(limits, lambda _: url, monotonic=lambda: clock.now, sleep=clock.sleep)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(429), "throttled"),
        (answer(503, "SlowDown"), "throttled"),
        (answer(500), "passing"),
        (answer(408), "passing"),
        (answer(409, "ConditionalRequestConflict"), "passing"),
        (answer(409, "BucketNotEmpty"), "final"),
        (answer(400, "BadDigest"), "final"),
        (GenericError("HTTP error: error sending request"), "passing"),
        (NotFoundError("no"), "final"),
        (OSError("disk"), "final"),
        (
            GenericError("DeleteObjects failed for key a: Access Denied. (code: AccessDenied)"),
            "final",
        ),
        (GenericError("DeleteObjects failed for key a: busy (code: InternalError)"), "passing"),
    ],
)
def test_kinds_of_trouble(error: Exception, kind: str) -> None:
    assert trouble(error) == kind


def test_retry_after_is_seconds_or_a_date_by_the_stores_clock() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert asked_wait_s(None, None, now) is None
    assert asked_wait_s("17", None, now) == 17.0
    date, later = "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:09 GMT"
    assert asked_wait_s(later, date, now) == 9.0
    assert asked_wait_s(date, later, now) == 0.0
    assert asked_wait_s("soon", None, now) is None


def test_what_passes_is_tried_again_and_what_does_not_is_not(busy: str) -> None:
    clock = Clock()
    assert patience(clock, busy).call("k", failing(answer(500), answer(502))) == "done"
    assert len(clock.slept) == 2
    assert all(0.1 <= pause <= 0.9 for pause in clock.slept)
    with pytest.raises(NotFoundError):
        patience(clock, busy).call("k", failing(NotFoundError("no")))
    with pytest.raises(GenericError):
        patience(clock, busy).call("k", failing(*[answer(500)] * 6))
    assert len(clock.slept) == 2 + 5


def test_one_call_has_its_time(busy: str) -> None:
    clock = Clock()
    limits = Limits(retries=10**6, retry_s=60, first_s=1, most_s=10, ask_s=5)
    with pytest.raises(GenericError):
        patience(clock, busy, limits).call("k", failing(*[answer(500)] * 1000))
    assert clock.now <= 160.0


def test_a_throttled_call_holds_all_others_back(busy: str) -> None:
    clock = Clock()
    shared = patience(clock, busy)
    assert shared.call("k", failing(answer(503))) == "done"
    assert 7.0 <= sum(clock.slept) <= 7.2
    shared._closed_until = clock.now + 3.0
    assert shared.call("other", failing()) == "done"
    assert 10.0 <= sum(clock.slept) <= 10.3


def test_a_store_that_wants_too_long_is_told_of_at_once(busy: str) -> None:
    clock = Clock()
    limits = Limits(retries=5, retry_s=5, first_s=0.1, most_s=10, ask_s=5)
    with pytest.raises(StoreError, match=r"wants no request for another 7 s.*retry_s=5\)"):
        patience(clock, busy, limits).call("k", failing(answer(503)))
    assert clock.slept == []


def test_credentials_that_cannot_ask_wait_as_for_any_trouble() -> None:
    def question(path: str) -> str:
        raise GenericError("no key to sign with")

    clock = Clock()
    shared = Patience(LIMITS, question, monotonic=lambda: clock.now, sleep=clock.sleep)
    assert shared.call("k", failing(answer(429))) == "done"
    assert 0.1 <= sum(clock.slept) <= 0.5
