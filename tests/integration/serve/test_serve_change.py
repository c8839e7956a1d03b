"""Versions change under load, and candidates are tried: on a real Ray Serve, no client sees it."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from support import wait_for
from trained_runs import CONFIG, save_model

from rayburst.models import ModelRegistry
from rayburst.models.judge import Limits
from rayburst.serve.deploy import delete, deploy
from rayburst.train.gpt import GPT

from .conftest import Head, Trained

pytestmark = pytest.mark.timeout(400)
LOOK_S = 0.1
DEEP = dataclasses.replace(CONFIG, n_layer=60)


class Load:
    """Clients that ask one after the other, as fast as they are answered."""

    def __init__(self, url: str, clients: int) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._url, self._stop = url, threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                try:
                    answer = ask(self._url, session)
                except requests.RequestException as error:
                    self.failed.append(repr(error))
                    continue
                with self._lock:
                    self.answered[answer.headers.get("x-rayburst-model", "nobody")] += 1
                if answer.status_code != 200:
                    self.failed.append(f"{answer.status_code}: {answer.text[:200]}")


def ask(url: str, session: requests.Session | None = None) -> requests.Response:
    body = {"prompt": "def f(x):", "max_new_tokens": 4, "temperature": 1.0}
    return (session or requests).post(f"{url}/generate", json=body, timeout=60)


@contextmanager
def followed(head: Head, name: str, replicas: int) -> Iterator[str]:
    """A deployment that follows the production of `name`; its address."""
    app = {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "rayburst.serve.lm_app:app",
        "args": {
            "version": f"{name}@production",
            "follow": True,
            "follow_s": LOOK_S,
            "cpus": 0.3,
            "replicas": replicas,
        },
    }
    http = {"host": "127.0.0.1", "port": head.serve_port}
    try:
        yield deploy(head.dashboard_url, head.token, app=app, http=http, timeout_s=150).url
    finally:
        delete(head.dashboard_url, head.token, name=name)


def spoil(model: GPT) -> None:
    next(model.parameters()).fill_(float("nan"))


def turn_round(model: GPT) -> None:
    """Its likeliest byte is the unlikeliest one."""
    model.get_parameter("norm.weight").neg_()


@pytest.mark.parametrize("moves", [10, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
def test_versions_change_under_load_and_no_request_fails(
    head: Head, trained: Trained, moves: int
) -> None:
    models = ModelRegistry.open(trained.store_uri)
    name = f"moved-{secrets.token_hex(4)}"
    refs = [models.publish(at, name=name).ref for at in (trained.older, trained.newer)]
    models.promote(refs[0])
    with followed(head, name, replicas=2) as url, Load(url, clients=4) as load:
        for number in range(moves):
            if number % 2:
                models.rollback(name, why=f"move {number}")
            else:
                models.promote(refs[1], why=f"move {number}")
            now = refs[1 - number % 2]
            seen = load.answered[now]
            wait_for(lambda n=now, s=seen: load.answered[n] > s or None, what=f"{now} to answer")
        assert not load.failed, load.failed[:5]
        told = requests.get(f"{url}/v1/model", timeout=30).json()
        assert (told["follows"], told["problem"]) == (f"{name}@production", None)
    assert set(load.answered) == set(refs), "each answer names who gave it"
    assert len(models.history(name)) == moves + 1


@pytest.fixture(scope="module")
def tried(head: Head, trained: Trained) -> Iterator[tuple[str, str]]:
    """The name of a model and the address of a replica that follows its production."""
    name = f"tried-{secrets.token_hex(4)}"
    models = ModelRegistry.open(trained.store_uri)
    models.promote(models.publish(trained.older, name=name).ref)
    with followed(head, name, replicas=1) as url:
        yield name, url


@pytest.mark.parametrize(
    ("given", "agreement", "outcome", "why"),
    [
        pytest.param(
            {"step": 10, "change": turn_round}, 0.9, "rolled back", "agrees at", id="disagrees"
        ),
        pytest.param({"step": 10, "change": spoil}, 0.9, "rolled back", "fails on", id="fails"),
        # as it is another model it disagrees, and only its time may decide here
        pytest.param({"step": 10, "shape": DEEP}, 0, "rolled back", "times as long", id="slow"),
        pytest.param({"step": 10}, 0.9, "promoted", "agrees at 100.0%", id="as good"),
    ],
)
def test_a_candidate_is_judged_by_what_it_does_and_no_client_sees_an_error(
    tried: tuple[str, str],
    trained: Trained,
    tmp_path: Path,
    given: dict[str, Any],
    agreement: float,
    outcome: str,
    why: str,
) -> None:
    name, url = tried
    models = ModelRegistry.open(trained.store_uri)
    trials = models.trials(name)
    # elsewhere: others serve the newest run of the store
    run, _ = save_model(f"file://{tmp_path}/runs/candidate", **given)
    candidate = models.publish(run, name=name).ref
    limits = Limits(agreement=agreement, errors=0.1, slower=3, risk=0.2)
    trial = trials.begin(candidate, weight=0.3, limits=limits)
    answers: list[requests.Response] = []
    while (ending := trials.ending(trial)) is None:
        answers.append(ask(url))
        assert answers[-1].status_code == 200, answers[-1].text
        assert len(answers) < 3000, requests.get(f"{url}/v1/model", timeout=30).json()
    assert ending.outcome == outcome and why in ending.why, ending
    by = Counter(answer.headers["x-rayburst-model"] for answer in answers)
    assert (by[candidate] > 0) == (why != "fails on"), "it answered its share, where it could"
    production = models.get(name).ref
    assert (production == candidate) == (outcome == "promoted")

    def is_over() -> bool | None:
        told = requests.get(f"{url}/v1/model", timeout=30).json()
        return (told["version"] == production and told["trial"] is None) or None

    wait_for(is_over, what="the trial to be over on the replica")
