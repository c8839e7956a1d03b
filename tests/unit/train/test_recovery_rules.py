"""Pure rules of recovery: liveness, losses, growth."""

import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.exceptions import RayActorError

from rayburst.train.inplace.roster import InPlaceOptions
from rayburst.train.liveness import connects, unreachable
from rayburst.train.losses import (
    LossBudget,
    LossOptions,
    is_peer_loss,
    is_planned,
    leave,
    surviving,
)
from rayburst.train.resizing import Growth, GrowthOptions, growth
from rayburst.train.trainer import ElasticOptions

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] "
    "Connection closed by peer [127.0.0.1]:5432"
)


def test_a_closed_port_is_unreachable_and_an_open_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert connects("127.0.0.1", port, 5)
    assert not connects("127.0.0.1", port, 5)


def test_unreachable_names_what_does_not_answer() -> None:
    asked: list[str] = []

    def answers(host: str, port: int, timeout_s: float) -> bool:
        asked.append(host)
        return host != "dead"

    addresses = {"a": ("alive", 1), "b": ("dead", 2), "c": ("alive", 3)}
    assert unreachable(addresses, 1.0, answers) == {"b"}
    assert sorted(asked) == ["alive", "alive", "dead"]
    assert unreachable({}, 1.0, answers) == set()


@pytest.mark.parametrize(
    "text",
    [
        GLOO,
        "[../gloo/transport/tcp/pair.cc:525] Read error [127.0.1.2]:1: Connection reset by peer",
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 300000ms for recv operation",
        "Application timeout caused pair closure",
        "NCCL error: remote process exited or there was a network error, connection refused",
    ],
)
def test_a_broken_connection_in_a_collective_is_a_loss(text: str) -> None:
    assert is_peer_loss(RuntimeError(text))


def test_what_caused_an_error_counts() -> None:
    try:
        try:
            raise RuntimeError(GLOO)
        except RuntimeError as error:
            raise RuntimeError("DDP could not reduce") from error
    except RuntimeError as error:
        assert is_peer_loss(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("[gloo/transport/tcp/pair.cc:445] op.preamble.length <= op.nbytes. 8 vs 4"),
        ConnectionResetError("Connection reset by peer"),
        ValueError(GLOO),
        RuntimeError("the data base closed: connection reset by peer"),
    ],
)
def test_mistakes_and_other_connections_are_no_loss(error: Exception) -> None:
    assert not is_peer_loss(error)


def test_leaving_is_charged_to_preemption() -> None:
    with pytest.raises(RayActorError) as planned:
        leave("node x is to be taken away")
    assert planned.value.preempted
    assert is_planned(planned.value)
    with pytest.raises(RayActorError) as lost:
        leave("a peer was lost", RuntimeError(GLOO))
    assert lost.value.preempted
    assert not is_planned(lost.value)


def test_surviving_leaves_on_a_loss_and_lets_mistakes_through() -> None:
    def lose(config: dict[str, int]) -> None:
        raise RuntimeError(GLOO)

    def err() -> None:
        raise KeyError("mine")

    with pytest.raises(RayActorError):
        surviving(lose)({})
    with pytest.raises(KeyError, match="mine"):
        surviving(err)()
    assert surviving(lambda: 3)() == 3


def test_losses_in_a_row_are_bounded_and_a_pause_forgives() -> None:
    budget = LossBudget(LossOptions(rapid_losses=2, rapid_within_s=10))
    assert budget.spend(100)
    assert budget.spend(105)
    assert not budget.spend(110)
    assert budget.spend(200)
    assert budget.spend(211)
    assert budget.spend(222)


def progress(eta_s: object, **more: object) -> bytes:
    return json.dumps({"eta_s": eta_s, **more}).encode()


def test_growth_must_pay_for_the_restart() -> None:
    options = GrowthOptions(restart_s=15)
    assert growth(2, 4, progress(100), options).gain_s == pytest.approx(50 - 15)
    assert not growth(2, 4, progress(20), options).pays
    assert not growth(3, 4, progress(60), options).pays
    assert growth(3, 4, progress(61), options).pays


def test_what_a_restart_took_counts_unless_the_user_says_what_it_costs() -> None:
    left = progress(100)
    assert growth(2, 4, left, GrowthOptions(), restart_s=49).pays
    assert not growth(2, 4, left, GrowthOptions(), restart_s=51).pays
    assert growth(2, 4, left, GrowthOptions(restart_s=1), restart_s=51).stop_s == 1


def test_growth_that_will_not_last_does_not_pay() -> None:
    # two workers are interrupted every 100 s, so four are every 50 s: they save 50 s of work
    calm, rough = (progress(3600, world=2, between_s=s) for s in (1e6, 100))
    options = GrowthOptions()
    assert growth(2, 4, calm, options, restart_s=60).pays
    refused = growth(2, 4, rough, options, restart_s=60)
    assert (refused.stay_s, refused.gain_s, refused.pays) == (50, 50 - 60, False)
    assert "does not pay: 3600 s are left, 4 workers are expected to last 50 s" in str(refused)


def test_in_place_a_change_costs_what_the_last_one_did_once_the_new_workers_are_ready() -> None:
    options = GrowthOptions()
    first = growth(2, 4, progress(30), options, restart_s=20, in_place_s=2)
    assert (first.ready_s, first.stop_s, first.gain_s) == (20, 2, pytest.approx(10 / 2 - 2))
    later = growth(2, 4, progress(30, stopped_s=6), options, restart_s=20, in_place_s=2)
    assert (later.stop_s, later.pays) == (6, False)
    assert not growth(2, 4, progress(19), options, restart_s=20, in_place_s=2).pays


def test_a_decision_is_read_back_from_the_run_log() -> None:
    found = growth(2, 4, progress(100), GrowthOptions())
    record = json.loads(json.dumps({"t": 1.0, "kind": "growth", "rank": -1, **found.to_json()}))
    assert Growth.from_json(record) == found


@pytest.mark.parametrize("unknown", [None, b"{", b"[]", b"{}", progress(None), progress("x")])
def test_growth_without_known_progress_is_taken(unknown: bytes | None) -> None:
    assert growth(2, 3, unknown, GrowthOptions()).pays


@pytest.mark.parametrize("possible", [1, 2])
def test_a_group_is_never_made_smaller_by_growth(possible: int) -> None:
    assert not growth(2, possible, progress(1e9), GrowthOptions()).pays


def test_options_refuse_negative_times() -> None:
    with pytest.raises(ValueError, match="restart_s=-1"):
        GrowthOptions(restart_s=-1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LossOptions(rapid_losses=-1), "rapid_losses=-1"),
        (lambda: LossOptions(rapid_within_s=0), "rapid_within_s=0"),
        (lambda: InPlaceOptions(rebuild_s=-1), "rebuild_s=-1"),
        (lambda: InPlaceOptions(hung_after_s=0), "hung_after_s=0"),
        (lambda: ElasticOptions(recovery="fast"), "one of in-place, restart, public"),  # type: ignore[arg-type]
    ],
)
def test_options_say_what_is_allowed(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def test_many_nodes_are_asked_at_once() -> None:
    barrier_size = 8

    def answers(host: str, port: int, timeout_s: float) -> bool:
        # would never end if they were asked one after the other
        return barrier.wait(20) >= 0

    import threading

    barrier = threading.Barrier(barrier_size)
    addresses = {str(i): ("h", i) for i in range(barrier_size)}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(unreachable, addresses, 1.0, answers).result(30) == set()
