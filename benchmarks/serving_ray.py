"""The benchmark's model on Ray Serve: with `@serve.batch`, and as a rayburst model."""

from __future__ import annotations

from typing import Any

import numpy as np
import serving_model
from ray import serve
from starlette.requests import Request

import rayburst as rb


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
class Batched:
    """What Serve's documentation shows for batching."""

    def __init__(self) -> None:
        self.model = serving_model.load()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def answer(self, rows: list[Any]) -> list[Any]:
        made: list[Any] = serving_model.run(self.model, rows).tolist()
        return made

    async def __call__(self, request: Request) -> Any:
        return await self.answer(await request.json())


class Model:
    """The same model for rayburst."""

    example = np.zeros(serving_model.INPUTS, np.float32)

    def load(self) -> None:
        self.model = serving_model.load()

    def predict(self, batch: np.ndarray) -> Any:
        return serving_model.run(self.model, batch)


def batched(*, access_log: bool) -> Any:
    """The `@serve.batch` application; Serve as installed logs every request."""
    return Batched.options(logging_config={"enable_access_log": access_log}).bind()


def rayburst_app(max_batch: int) -> Any:
    """The rayburst application. The promise is wide, so that nothing is refused at saturation."""
    served = rb.serve.model(
        slo_ms=5_000, max_batch=max_batch, max_waiting=1024, replicas={"cpus": 0.1}
    )
    return served(type(f"Model{max_batch}", (Model,), {})).bind()
