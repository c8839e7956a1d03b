"""A checkpoint peer in this process instead of an actor: the holder is real, Ray is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from rayburst.checkpoint import peers
from rayburst.checkpoint.holder import Holder


class Call:
    """`method.remote(...)`, run when `ray.get` asks for it."""

    def __init__(self, peer: FakePeer, method: Callable[..., Any]) -> None:
        self._peer, self._method = peer, method

    def remote(self, *args: Any) -> Any:
        if self._peer.dead:
            return RayActorError()
        return self._method(*args)


class FakePeer:
    """An actor handle over a Holder in this process; it can die."""

    def __init__(self, uri: str) -> None:
        self.holder, self.dead = Holder(uri), False

    @classmethod
    def installed(cls, uri: str, monkeypatch: pytest.MonkeyPatch) -> FakePeer:
        """One that `rayburst.checkpoint.peers` can ask."""
        monkeypatch.setattr(peers.ray, "get", fake_get)
        monkeypatch.setattr(peers.ray, "wait", fake_wait)
        return cls(uri)

    def __getattr__(self, name: str) -> Call:
        return Call(self, getattr(self.holder, name))


def fake_get(answers: Any, timeout: float | None = None) -> Any:
    for answer in answers if isinstance(answers, list) else [answers]:
        if isinstance(answer, Exception):
            raise answer
    return answers


def fake_wait(answers: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
    return list(answers), []
