"""Grants on their way: each host keeps one promise; age and failure end the rest."""

from __future__ import annotations

from rayburst.fleet.pools.base import Host
from rayburst.fleet.promises import PROMISE_S, Promises


def host(name: str) -> Host:
    return Host(
        id=name,
        pool=name.rsplit("-", 1)[0],
        address="127.1.1.2",
        requested_at=0.0,
        price_usd_per_hour=None,
        why="w",
    )


def test_each_new_host_keeps_one_promise_of_its_pool():
    promises = Promises()
    old = [host("rack-0")]
    assert promises.count(old, {}, 0.0) == {}
    promises.add("rack", 2, 1.0)
    promises.add("spot-a", 1, 1.0)
    assert promises.count(old, {}, 2.0) == {"rack": 2, "spot-a": 1}
    now_there = [*old, host("rack-1")]
    assert promises.count(now_there, {}, 3.0) == {"rack": 1, "spot-a": 1}
    assert promises.count(now_there, {}, 4.0) == {"rack": 1, "spot-a": 1}


def test_age_and_failure_end_a_promise():
    promises = Promises()
    promises.add("rack", 1, 1.0)
    promises.add("spot-a", 1, 5.0)
    assert promises.count([], {"spot-a": 4.0}, 6.0) == {"rack": 1, "spot-a": 1}
    assert promises.count([], {"spot-a": 6.0}, 7.0) == {"rack": 1}
    assert promises.count([], {}, 1.0 + PROMISE_S) == {}
