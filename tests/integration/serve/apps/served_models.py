"""Models that the serving tests deploy: small, and each shows one thing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve

import rayburst as rb


@rb.serve.model(slo_ms=20_000, max_batch=16)
class Scaler:
    """Multiplies, and says which process did."""

    example = np.zeros(3, np.float32)

    def load(self, factor: float = 2.0, seconds: float = 0.0) -> None:
        self.factor, self.seconds = factor, seconds

    def predict(self, batch: np.ndarray) -> list[Any]:
        time.sleep(self.seconds)
        return [{"pid": os.getpid(), "out": row.tolist()} for row in batch * self.factor]

    def stream(self, value: Any) -> Iterator[Any]:
        yield from value


@rb.serve.model(slo_ms=1500, max_batch=4, agreement=0.98, back_after_s=1.0)
class Forms:
    """Three forms, each ten times as fast as the one before; the last one agrees too seldom."""

    example = np.zeros(3, np.float32)
    variants = {"fp32": 1.0, "int8": 0.985, "tiny": 0.5}  # noqa: RUF012  as users write it

    def predict(self, batch: np.ndarray, variant: str) -> list[Any]:
        time.sleep({"fp32": 0.1, "int8": 0.01, "tiny": 0.001}[variant] * len(batch))
        return [{"variant": variant} for _ in batch]


api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Front:
    """An application of its own that asks the model by handle."""

    def __init__(self, scaler: Any) -> None:
        self.scaler = scaler

    @api.get("/sum/{n}")
    async def total(self, n: int) -> float:
        made = await self.scaler.predict.remote([float(n)] * 3)
        return float(sum(made["out"]))


def scaler(args: dict[str, str]) -> Any:
    """`serve run served_models:scaler factor=3`; `options` is JSON for Scaler.options."""
    replicas = {"least": int(args.get("replicas", 1)), "cpus": 0.1}
    served = Scaler.options(**{"replicas": replicas, **json.loads(args.get("options", "{}"))})
    return served.bind(float(args.get("factor", 2)), float(args.get("seconds", 0)))


def forms(args: dict[str, str]) -> Any:
    """The model with variants."""
    return Forms.options(replicas={"cpus": 0.1}, **json.loads(args.get("options", "{}"))).bind()


def composed(args: dict[str, str]) -> Any:
    """The model behind another deployment."""
    return Front.bind(Scaler.options(replicas={"cpus": 0.1}).part(5.0))
