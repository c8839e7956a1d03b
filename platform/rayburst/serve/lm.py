"""The language model as a Ray Serve application; `serve_apps/lm.py` hands it to Serve.

    serve run serve_apps.lm:app checkpoint=s3://bucket/runs/demo
    serve run serve_apps.lm:app version=gpt@production slo_ms=500
    serve deploy serve_apps/lm.yaml

Each replica loads a checkpoint by its address, or a published version in the variant that its table
says (docs/models.md). Texts are written together, token by token (rayburst.serve.generate); those
to score are computed in batches, under overload by cheaper variants if that is asked for. Serve's
access log is off: it costs more than a small model does.
Who may ask is not decided here; the proxy listens on loopback unless its options say otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.schema import LoggingConfig
from torch import Tensor

from rayburst.errors import RequestFailedError
from rayburst.models.moves import parse_ref
from rayburst.serve import decode
from rayburst.serve.codec import Codec
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.generate.engine import Engine, EngineOptions
from rayburst.serve.generate.request import Request
from rayburst.serve.generate.service import GenerationService
from rayburst.serve.lm_api import GenerateRequest, ModelInfo, RungInfo, Scored, build_api
from rayburst.serve.options import ModelOptions, Replicas
from rayburst.serve.published import Asked, Overload, ServedModel, load_served, settled
from rayburst.serve.scoring import Scorer
from rayburst.serve.served import actor_options, warn_of_floor

__all__ = ["LMArgs", "LanguageModel", "build"]

_log = logging.getLogger("ray.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")
_UNBOUNDED = 1_000_000  # where requests are refused, the replica does it, not a queue before it


class LMArgs(BaseModel):
    """Arguments of the application, from `args:` in its YAML or `key=value` words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str | None = Field(
        default=None,
        description="address of a checkpoint or a run; else RAYBURST_MODEL; else the newest run",
    )
    version: str | None = Field(
        default=None, description="a published one instead: gpt@3, gpt@production, or gpt"
    )
    variant: str | None = Field(default=None, description="of the version; else by its table")
    slo_ms: float = Field(default=1000.0, gt=0, description="by the table a text is read within")
    agreement: float = Field(
        default=0.98, ge=0, le=1, description="least share of fp32's answers, by the table"
    )
    max_batch: int = Field(
        default=32, ge=1, le=1024, description="texts written together, texts scored together"
    )
    overload: Overload = Field(
        default="wait",
        description="texts to score, when there are more than slo_ms allows: all wait; or are shed "
        "(503); or degrade: answered by cheaper variants of the version first",
    )
    lazy: bool = Field(
        default=False, description="degrade: a cheaper variant is loaded when it is first missed"
    )
    batch_wait_ms: float = Field(
        default=5.0, ge=0, le=1000, description="a text to score waits for others"
    )
    follow: bool = Field(
        default=False,
        description="stay at what the alias points to, and try its candidates (docs/models.md)",
    )
    follow_s: float = Field(
        default=1.0, gt=0, le=3600, description="follow: seconds between two looks at the store"
    )
    replicas: int = Field(default=1, ge=1, description="copies of the model")
    floor: int = Field(
        default=0, ge=0, description="so many of them never on spot; the others want spot"
    )
    cpus: float = Field(default=1.0, ge=0, description="CPUs a replica asks Ray for")
    gpus: float = Field(default=0.0, ge=0, description="GPUs a replica asks Ray for")

    @model_validator(mode="after")
    def _one_model(self) -> LMArgs:
        if self.version is not None and self.checkpoint is not None:
            raise ValueError(
                f"version={self.version!r} and checkpoint={self.checkpoint!r} name two models: "
                "give one of them"
            )
        if self.variant is not None and self.version is None:
            raise ValueError(f"variant={self.variant!r} is of no version: add version=NAME@NUMBER")
        if self.overload == "degrade" and (self.version is None or self.variant is not None):
            given = f"variant={self.variant!r}" if self.version else "no version"
            raise ValueError(
                f"overload='degrade' goes along the variants of a version, and {given} was given: "
                "give version=NAME@NUMBER without variant, or overload='shed'"
            )
        if self.follow and (self.version is None or parse_ref(self.version).alias is None):
            raise ValueError(
                f"follow=True stays at an alias, and version={self.version!r} is none: give "
                "version=NAME@production, or leave follow out"
            )
        if self.floor > self.replicas:
            raise ValueError(
                f"floor={self.floor} is more than replicas={self.replicas}: give floor at most "
                f"{self.replicas}, or replicas={self.floor}"
            )
        return self

    @property
    def size(self) -> Replicas:
        """How many replicas, where, and what each asks Ray for."""
        return Replicas(least=self.replicas, floor=self.floor, cpus=self.cpus, gpus=self.gpus)

    @property
    def asked(self) -> Asked:
        """What of it says which model."""
        return Asked(**{f.name: getattr(self, f.name) for f in fields(Asked)})


class LanguageModel:
    """One replica: a loaded model behind HTTP."""

    def __init__(self, args: LMArgs) -> None:
        torch.set_num_threads(max(1, int(args.cpus)))
        served = load_served(args.asked, os.environ)
        warn_of_floor("LanguageModel", args.size)
        _log.info("%s answers as %s: %s", served.label, served.variant, served.why)
        self._served, self._args = served, args
        self._device = "cuda" if args.gpus and torch.cuda.is_available() else "cpu"
        self._model = served.model.to(self._device)
        self._info = _model_info(served)
        self._rows_at_once = args.max_batch
        engine = Engine(self._model, EngineOptions(max_running=args.max_batch))
        # Serve lets so many in, so none is refused here.
        self._texts = GenerationService(engine, max_waiting=_ongoing(args))
        self._score = _batched(self._score_all, args)
        self._scorer = Scorer(
            variants=served.rungs,
            load=lambda name: served.load(name).to(self._device),
            block_size=self._info.block_size,
            rows_at_once=args.max_batch,
        )
        self._endpoint = Endpoint(
            self._scorer, _options(args), Codec.of(Scorer), name="LanguageModel"
        )
        if args.overload != "wait":
            _log.info("under overload: %s", self._told_rungs())
            self._endpoint.warm_up(self._scorer.example)

    @property
    def info(self) -> ModelInfo:
        """The model that answers, and where on its ladder it stands."""
        if self._args.overload == "wait" or self._endpoint.rungs is None:
            return self._info
        served, ladder = self._served, self._endpoint.rungs.ladder
        rungs = [
            RungInfo(
                variant=rung.name,
                agreement=rung.agreement,
                size_bytes=served.sizes.get(rung.name),
                is_loaded=rung.name in self._scorer.loaded,
            )
            for rung in ladder.rungs
        ]
        changes = {
            "overload": self._args.overload,
            "rungs": rungs,
            "rung": ladder.level(time.monotonic()),
        }
        return self._info.model_copy(update=changes)

    def figures(self) -> bytes:
        """Metrics of the texts that were scored under the promise."""
        return self._endpoint.metrics.render()

    def _told_rungs(self) -> str:
        rungs = [
            f"{name} ({self._served.sizes.get(name, 0) / 1e6:.1f} MB, agrees {agreement:.2%})"
            for name, agreement in self._served.rungs.items()
        ]
        return f"{self._args.overload}, {', then '.join(rungs)}"

    @property
    def label(self) -> str:
        """Its version."""
        return self._info.version

    @contextmanager
    def turn(self, request_id: str = "") -> Iterator[LanguageModel]:
        """One request: this model answers all of them."""
        yield self

    async def generate(self, request: GenerateRequest, seed: int) -> bytes:
        """The bytes that follow the prompt; a caller that leaves frees its place at once."""
        written = await self._texts.write(
            Request(
                prompt=request.prompt.encode(),
                max_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_k=request.top_k,
                seed=seed,
            )
        )
        return written.data

    async def score(self, text: bytes) -> Scored:
        """Bits per byte and bytes scored, computed together with other requests."""
        if self._args.overload == "wait" or self._endpoint.rungs is None:
            result = await self._score(text)
            return Scored(result.bits_per_byte, result.scored_bytes)
        result, variant = await self._endpoint.ask_told(text)
        told = self._endpoint.rungs.told(variant)
        headers = {name.decode(): value.decode("latin-1") for name, value in told}
        return Scored(result.bits_per_byte, result.scored_bytes, headers)

    @torch.inference_mode()
    def read(self, text: bytes) -> Tensor:
        """Scores of the next byte, (bytes of the text, 256); the text fits in one block."""
        tokens = torch.tensor([list(text)], device=next(self._model.parameters()).device)
        logits: Tensor = self._model(tokens)[0]
        return logits[0]

    def close(self) -> None:
        """Frees the model; texts that are being written fail."""
        self._texts.close()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: the model must still compute."""
        await self._texts.check()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once the model is loaded."""
        return build_api(self)

    def _score_all(self, texts: list[bytes]) -> list[decode.Score]:
        return decode.score(self._model, texts, rows_at_once=self._rows_at_once)


def build(args: LMArgs) -> Any:
    """The Serve application for `args`.

    Where the fleet's store is known, "newest" and aliases are settled here, for all replicas alike;
    those that follow an alias settle it themselves, and again whenever it moves.
    """
    replica: type = LanguageModel
    if args.follow:
        from rayburst.serve.following import FollowingReplica

        replica = FollowingReplica
    else:
        asked = settled(args.asked, os.environ)
        args = args.model_copy(update={"checkpoint": asked.checkpoint, "version": asked.version})
    deployment = serve.deployment(
        serve.ingress()(replica),
        name="LanguageModel",
        num_replicas=args.replicas,
        ray_actor_options=actor_options(args.size),
        max_ongoing_requests=_ongoing(args) if args.overload == "wait" else _UNBOUNDED,
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False),
        max_constructor_retry_count=2,  # what does not load twice will not at the 20th try
    )
    return deployment.bind(args)


def _ongoing(args: LMArgs) -> int:
    """Requests on a replica: some are written, others wait for their place."""
    return 4 * args.max_batch


def _options(args: LMArgs) -> ModelOptions:
    """Of the texts to score."""
    return ModelOptions(
        slo_ms=args.slo_ms,
        max_batch=args.max_batch,
        agreement=args.agreement,
        eager=not args.lazy,
    )


def _batched(
    work: Callable[[list[Item]], list[Result]], args: LMArgs
) -> Callable[[Item], Awaitable[Result]]:
    """`work` for one item at a time, batched by Serve and run off the event loop."""

    # Serve keeps what it batches for as long as its process lives, and a replica that follows an
    # alias has one after the other.
    method = weakref.WeakMethod(work)

    async def run(items: list[Item]) -> list[Result]:
        if (work := method()) is None:
            raise RequestFailedError("the model was replaced: ask again")
        return await asyncio.to_thread(work, items)

    run.__name__ = work.__name__  # Serve's metrics name the batch by it
    batched: Callable[[Item], Awaitable[Result]] = serve.batch(
        max_batch_size=args.max_batch, batch_wait_timeout_s=args.batch_wait_ms / 1000
    )(run)
    return batched


def _model_info(served: ServedModel) -> ModelInfo:
    meta = served.meta
    return ModelInfo(
        version=served.label,
        variant=served.variant,
        uri=meta["uri"],
        run=meta.get("run"),
        step=meta.get("step"),
        data=served.data or None,
        bits_per_byte=meta.get("val_bits_per_byte"),
        order0_bits_per_byte=meta.get("order0_bits_per_byte"),
        parameters=served.model.parameter_count,
        block_size=meta["config"]["block_size"],
    )
