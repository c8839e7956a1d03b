"""A served language model that moves with its alias, and tries candidates on some of its requests.

    service = FollowingModel(models, "gpt@production", load, report)
    with service.turn(request_id) as turn:          # one request; rayburst.serve.lm_api
        written = await turn.generate(request, seed)
    turn.info.version                               # who answered

A candidate that raises costs its client nothing but time: production answers in its place. What was
asked is then computed by both, where a trial wants it and the replica is idle (pairs.py).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from fastapi import FastAPI
from torch import Tensor

from rayburst.errors import RefusedError, RequestFailedError
from rayburst.models.judge import Pair
from rayburst.models.moves import parse_ref
from rayburst.models.registry import ModelRegistry
from rayburst.serve.follow import Follower
from rayburst.serve.judge_actor import Reporter
from rayburst.serve.lineup import Turn
from rayburst.serve.lm import LanguageModel, LMArgs
from rayburst.serve.lm_api import GenerateRequest, ModelInfo, Scored, TrialInfo, build_api
from rayburst.serve.pairs import Pairs, Report
from rayburst.serve.published import registry_of

__all__ = ["FollowingModel", "FollowingReplica"]

_log = logging.getLogger("ray.serve")


class FollowingModel:
    """`load` gives a version, proven and ready. What cannot be loaded at first raises."""

    def __init__(
        self,
        models: ModelRegistry,
        version: str,
        load: Callable[[str], LanguageModel],
        report: Report,
        *,
        poll_s: float = 1.0,
    ) -> None:
        self._version, self._turns = version, 0
        self._follower = Follower(models, parse_ref(version), load, poll_s=poll_s)
        self._pairs = Pairs(
            lineup=self._follower.lineup,
            compare=compare,
            report=report,
            name=lambda model: model.label,
            is_idle=lambda: self._turns == 0,
        )
        self._follower.start()
        self._pairs.start()

    @property
    def info(self) -> ModelInfo:
        """Production, what it follows, and the trial beside it."""
        trial = self._follower.lineup.trial
        told = None
        if trial is not None:
            told = TrialInfo(
                version=f"{parse_ref(self._version).name}@{trial.version}",
                weight=trial.weight,
                shadow=trial.shadow,
                pairs=self._pairs.taken,
                dropped=self._pairs.dropped,
            )
        changes = {"follows": self._version, "problem": self._follower.problem, "trial": told}
        return self._follower.lineup.production.info.model_copy(update=changes)

    @contextmanager
    def turn(self, request_id: str = "") -> Iterator[FollowingTurn]:
        """One request."""
        self._turns += 1
        answering = None
        try:
            with self._follower.lineup.turn(request_id) as turn:
                answering = FollowingTurn(self, turn)
                yield answering
        finally:
            self._turns -= 1
            if answering is not None and answering.text:
                self._pairs.offer(answering.text, turn.trial)

    async def check(self) -> None:
        """Raises when production no longer computes."""
        with self._follower.lineup.turn("") as turn:
            await turn.production.check_health()

    def failed(self, turn: Turn[LanguageModel], error: Exception) -> LanguageModel:
        """The candidate raised: production, which answers now."""
        if turn.trial is not None and not isinstance(error, RefusedError):
            _log.warning("trial %d: %s failed: %r", turn.trial.number, turn.model.label, error)
            self._pairs.failed(turn.trial)
        return turn.fall_back()


class FollowingTurn:
    """One request of a FollowingModel. `text` is what may be compared afterwards."""

    def __init__(self, service: FollowingModel, turn: Turn[LanguageModel]) -> None:
        self._service, self._turn = service, turn
        self._is_told = False
        self.text = b""

    @property
    def info(self) -> ModelInfo:
        """Who answers; the whole of what there is to tell where nothing was asked of a model."""
        return self._turn.model.info if self.text else self._service.info

    def figures(self) -> bytes:
        """Metrics of production."""
        return self._turn.production.figures()

    async def generate(self, request: GenerateRequest, seed: int) -> bytes:
        """The bytes that follow the prompt."""
        written = None
        if self._turn.trial is not None:
            try:
                written = await self._turn.model.generate(request, seed)
            except Exception as error:  # noqa: BLE001  # a candidate raises what it likes
                self._service.failed(self._turn, error)
        if written is None:
            written = await self._turn.model.generate(request, seed)
        self.text = request.prompt.encode() + written
        return written

    async def score(self, text: bytes) -> Scored:
        """Bits per byte and bytes scored."""
        found = None
        if self._turn.trial is not None:
            try:
                found = await self._turn.model.score(text)
                if not math.isfinite(found.bits_per_byte):
                    raise RequestFailedError(f"{found.bits_per_byte} bits per byte")
            except Exception as error:  # noqa: BLE001  # a candidate raises what it likes
                self._service.failed(self._turn, error)
                found = None
        if found is None:
            found = await self._turn.model.score(text)
        self.text = text
        return found


def compare(
    production: LanguageModel, candidate: LanguageModel, text: bytes, candidate_first: bool
) -> Pair | None:
    """One pass of both over the end of a text; None where production cannot do it.

    RequestFailedError: the candidate's numbers are not finite.
    """
    text = text[-min(production.info.block_size, candidate.info.block_size) :]
    if candidate_first:
        theirs, theirs_s = _timed(candidate, text)
        ours, ours_s = _timed(production, text)
    else:
        ours, ours_s = _timed(production, text)
        theirs, theirs_s = _timed(candidate, text)
    if not torch.isfinite(ours).all():
        return None
    if not torch.isfinite(theirs).all():
        raise RequestFailedError(f"{candidate.label} computes numbers that are not finite")
    same = (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean()
    return Pair(failed=False, agreement=float(same), ratio=theirs_s / max(ours_s, 1e-9))


def _timed(model: LanguageModel, text: bytes) -> tuple[Tensor, float]:
    began_s = time.perf_counter()
    logits = model.read(text)
    return logits, time.perf_counter() - began_s


class FollowingReplica:
    """One replica of a deployment that follows an alias; rayburst.serve.lm builds it."""

    def __init__(self, args: LMArgs) -> None:
        version = args.version or ""  # LMArgs has seen that it is an alias
        ref = parse_ref(version)
        root = os.environ.get("RAYBURST_STORE", "")
        self._model = FollowingModel(
            registry_of(os.environ),
            version,
            lambda found: _warm(LanguageModel(args.model_copy(update={"version": found}))),
            Reporter(root, ref.name, ref.alias or ""),
            poll_s=args.follow_s,
        )

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: production must still compute."""
        await self._model.check()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once the model is loaded."""
        return build_api(self._model)


def _warm(model: LanguageModel) -> LanguageModel:
    """The first pass of a model pays for allocations; a comparison should not."""
    model.read(b"\n" * model.info.block_size)
    return model
