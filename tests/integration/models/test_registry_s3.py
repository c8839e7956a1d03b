"""Model versions on a real S3 server: races have one winner, a killed publish leaves no version."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from published_models import save_run, some_text

from rayburst.errors import VersionConflictError, VersionDamagedError, VersionNotFoundError
from rayburst.models import ModelRegistry

HELPERS = Path(__file__).parents[2]
RIVALS = 6


@pytest.fixture
def models(s3_server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelRegistry]:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return ModelRegistry.open(f"{s3_server.uri}/{tmp_path.name}")


def at_once(work) -> list:
    """`work(0)`, `work(1)`, ... in threads that begin together; an error is a result."""
    begin = Barrier(RIVALS)

    def run(number: int):
        begin.wait()
        try:
            return work(number)
        except VersionConflictError as error:
            return error

    with ThreadPoolExecutor(RIVALS) as pool:
        return list(pool.map(run, range(RIVALS)))


def test_publishers_at_once_get_a_number_each_and_movers_one_winner(models) -> None:
    address = save_run(models.store.uri, "first", step=10)
    first = models.publish(address, name="gpt")
    made = at_once(lambda n: models.commit(first.model_copy(update={"metrics": {"n": n}})))
    assert sorted(v.version for v in made) == list(range(2, 2 + RIVALS))
    assert {v.version: v for v in models.versions("gpt")} == {v.version: v for v in [first, *made]}

    models.promote("gpt@1")
    moves = at_once(lambda n: models.promote(f"gpt@{n + 2}"))
    won = [m for m in moves if not isinstance(m, VersionConflictError)]
    assert len(won) + sum(isinstance(m, VersionConflictError) for m in moves) == RIVALS
    numbers = Counter(m.number for m in won)
    assert set(numbers.values()) == {1}, "two moves under one number"
    assert models.history("gpt")[1:] == sorted(won, key=lambda m: m.number)
    assert models.get("gpt").version == max(won, key=lambda m: m.number).version
    back = models.rollback("gpt")
    assert back.version == models.history("gpt")[-3].version


def test_a_publish_that_is_killed_leaves_no_version_and_can_be_done_again(
    models, tmp_path: Path
) -> None:
    save_run(models.store.uri, "first", step=10, text=some_text(tmp_path))
    child = subprocess.Popen(
        [sys.executable, str(HELPERS / "published_models.py"), models.store.uri, "first", "gpt"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdin is not None
    told = child.stdout.readline()
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert told == "weights are stored\n", "it was killed at another place"
    weights = [item.key for item in models.folder("gpt").list("weights")]
    assert len(weights) == 1 and models.names() == []
    with pytest.raises(VersionNotFoundError, match="no model 'gpt'"):
        models.get("gpt@1")

    version = models.publish("first", name="gpt")
    assert list(version.files) == weights  # what was stored is used, not stored again
    assert models.promote("gpt@1").version == 1
    assert models.verify("gpt").data.text is not None

    models.folder("gpt").put(weights[0], b"cut short")
    for call in (models.verify, models.load, models.promote):
        with pytest.raises(VersionDamagedError, match=weights[0]):
            call("gpt@1")
