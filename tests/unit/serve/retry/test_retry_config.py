"""HAProxy's configuration with retries for some applications, and its counts."""

import pytest

from rayburst.serve.retry.haproxy import ARRIVED, count_retries, with_retries

CONFIG = """global
    maxconn 10
defaults
    retry-on conn-failure
frontend http_frontend
    use_backend http-lm if is_http-lm
backend default_backend
    http-request return status 404
backend http-lm
    log global
    server a 127.0.0.1:1 check
backend http-lm-2
    log global
    server a 127.0.0.1:2 check
"""
INFO = "Name: HAProxy\nPid: 4711\nUptime: 1\n\n"
STATS = """# pxname,svname,qcur,wretr,wredis,
http-lm,a,0,2,1,
http-lm,BACKEND,0,3,1,
http_frontend,FRONTEND,0,,,
grpc-lm,BACKEND,0,0,0,

"""


def policy_of(config: str, backend: str) -> list[str]:
    """What was written into one backend before Serve's own first line."""
    return (
        config.partition(f"\nbackend {backend}\n")[2].partition("    log global\n")[0].splitlines()
    )


def test_only_what_is_idempotent_is_asked_again_and_each_node_is_probed():
    made = with_retries(CONFIG, {"http-lm": True, "http-lm-2": False}, node="3f2c")
    retried, probed = policy_of(made, "http-lm"), policy_of(made, "http-lm-2")
    assert "    retry-on conn-failure empty-response" in retried
    assert f"    http-request set-header {ARRIVED} 3f2c/%[date(0,ms)]" in retried
    assert made.count("empty-response") == 1
    assert "    option srvtcpka" in retried
    assert "    option srvtcpka" in probed
    added = [*retried, *probed]
    assert [line for line in made.splitlines() if line not in added] == CONFIG.splitlines()


def test_nothing_named_leaves_serves_text_as_it_is():
    assert with_retries(CONFIG, {}, node="x") == CONFIG


def test_a_backend_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="has 0 backends 'http-lmm'"):
        with_retries(CONFIG, {"http-lmm": True}, node="x")


def test_retries_are_counted_by_process_and_backend():
    assert count_retries(INFO + STATS) == ("4711", {"http-lm": 3, "grpc-lm": 0})
    with pytest.raises(ValueError, match="not enough values"):
        count_retries("")  # between two processes
