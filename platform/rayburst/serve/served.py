"""A class with `predict` becomes a Ray Serve application that keeps a latency promise.

    import numpy as np
    import rayburst as rb

    @rb.serve.model(slo_ms=100, max_batch=32)
    class Doubler:
        example = np.zeros(3, np.float32)      # one input: its shape and dtype

        def load(self, factor: float = 2.0):   # once on each replica
            self.factor = factor

        def predict(self, batch: np.ndarray):  # one answer for each row
            return batch * self.factor

    app = Doubler.bind(factor=3.0)

`serve run module:app`, `serve deploy FILE` and `Platform.deploy("module:app")` run it. In an
application with an HTTP face of its own, `Front.bind(Doubler.part())` gives Front a handle:
`await handle.predict.remote(value)`. What `predict` may take and return is told in codec.py, what
the options mean in options.py. A class with `stream(value)` besides answers POST /stream piece by
piece. `predict` may be a coroutine. A class with `model_ids` holds several models, and
`predict(batch, model_id)` is told which one a batch is for. One with `variants`, forms of one model
with their agreement, degrades under overload before it refuses (ladder.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ModelError
from rayburst.serve import _ray_hooks, floor
from rayburst.serve.admission import Admission
from rayburst.serve.asgi import build_app
from rayburst.serve.codec import Codec
from rayburst.serve.controller import CALLBACK
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.keys import KeyGate, KeyStore
from rayburst.serve.lanes import Lane, protocol_for
from rayburst.serve.options import ModelOptions, Replicas
from rayburst.serve.rates_actor import rates_for
from rayburst.serve.scaling import DEMAND
from rayburst.train.versions import is_tested_ray

__all__ = ["Served", "actor_options", "key_gate", "model", "warn_of_floor"]

_log = logging.getLogger("ray.serve")
_UNBOUNDED = 1_000_000  # Serve's cap on ongoing requests: admission refuses long before


def model(**options: Any) -> Callable[[type], Served]:
    """Makes a class a served model. The options are the fields of `ModelOptions`.

    ModelError when an option or the class cannot be used.
    """
    try:
        parsed = ModelOptions(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(ModelOptions.model_fields)
        raise ModelError(
            f"option {'.'.join(map(str, first['loc']))}: {first['msg']}; there are: {known}"
        ) from None
    return lambda cls: Served(cls, parsed)


class Served:
    """A model class with its options; `bind` makes the application, `part` a part of another."""

    def __init__(self, cls: type, options: ModelOptions) -> None:
        Codec.of(cls)  # what is wrong with the class is said where it is written
        self.cls = cls
        self.model_options = options
        self.__name__, self.__doc__ = cls.__name__, cls.__doc__

    def options(self, **changes: Any) -> Served:
        """The same model with some options changed."""
        return model(**{**self.model_options.model_dump(exclude_unset=True), **changes})(self.cls)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """The Serve application; the arguments go to `load` on each replica."""
        return self._bound(serve.ingress()(ModelServer), args, kwargs)

    def part(self, *args: Any, **kwargs: Any) -> Any:
        """The model without HTTP, to be bound to another deployment and asked by handle."""
        return self._bound(ModelPart, args, kwargs)

    def _bound(self, server: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        options = self.model_options
        replicas = options.replicas
        scaling: dict[str, Any] = {"num_replicas": replicas.least}
        if replicas.most is not None:
            scaling = {"autoscaling_config": _autoscaling(options)}
        deployment = serve.deployment(
            server,
            name=self.cls.__name__,
            ray_actor_options=actor_options(replicas),
            max_ongoing_requests=_UNBOUNDED,
            health_check_period_s=5,
            logging_config=LoggingConfig(enable_access_log=options.access_log),
            max_constructor_retry_count=2,  # what does not load twice will not at the 20th try
            **scaling,
        )
        return deployment.bind(self.cls, options, args, kwargs)


def actor_options(replicas: Replicas) -> dict[str, Any]:
    """What one replica asks Ray for."""
    asked = {
        "num_cpus": replicas.cpus,
        "num_gpus": replicas.gpus,
        "resources": dict(replicas.resources),
    }
    if replicas.floor:
        asked["label_selector"] = floor.selector(replicas.floor)
    return asked


def _autoscaling(options: ModelOptions) -> dict[str, Any]:
    """As many replicas as the promise needs; see scaling.py."""
    return {
        "min_replicas": options.replicas.least,
        "max_replicas": options.replicas.most,
        "initial_replicas": max(
            1, options.replicas.least
        ),  # the first one learns what a batch costs
        "policy": {"policy_function": "rayburst.serve.scaling:replicas_wanted"},
        "metrics_interval_s": 1.0,
        "look_back_period_s": 5.0,
        "upscale_delay_s": options.replicas.up_after_s,
        "downscale_delay_s": options.replicas.down_after_s,
    }


class ModelPart:
    """One replica: the loaded model and its endpoint, asked by handle."""

    def __init__(
        self, cls: type, options: ModelOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._model = cls()
        if hasattr(self._model, "load"):
            self._model.load(*args, **kwargs)
        self._endpoint = Endpoint(
            self._model,
            options,
            Codec.of(cls),
            name=cls.__name__,
            admission=Admission(
                max_waiting=options.queue_limit,
                shares={name: limit.weight for name, limit in options.tenants.items()},
            ),
            rates=rates_for(options.tenants, model=cls.__name__),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._example = getattr(self._model, "example", None)  # load may have set it
        self._endpoint.warm_up(self._example)
        warn_of_floor(cls.__name__, options.replicas)

    async def predict(self, value: Any, *, deadline_ms: float | None = None) -> Any:
        """The answer to one value; what other deployments call by handle."""
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        model_id = serve.get_multiplexed_model_id()
        return await self._endpoint.ask(value, deadline_s=deadline_s, model_id=model_id)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks this each second."""
        return {DEMAND: self._endpoint.demand.rate(time.monotonic())}

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises; a model may have its own."""
        own = getattr(self._model, "check_health", None)
        if own is not None:
            await asyncio.to_thread(own)


class ModelServer(ModelPart):
    """One replica with HTTP, by the fast lane where it can be had."""

    def __init__(
        self, cls: type, options: ModelOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(cls, options, args, kwargs)
        self._endpoint.gate = key_gate(options, cls.__name__)
        slow = _why_stock(options)
        if slow is None:
            _ray_hooks.teach_own_server(self._lane_for)
        else:
            _log.warning("%s: predictions take Serve's stock path: %s", cls.__name__, slow)
        if options.idempotent and (not_again := _ray_hooks.why_not_again(CALLBACK)):
            _log.warning("%s: what a dead replica held fails: %s", cls.__name__, not_again)

    def __serve_build_asgi_app__(self) -> Any:
        """Serve calls this once the model is loaded."""
        return build_app(self._endpoint, example=self._example)

    def record_replica_metadata(self) -> dict[str, bool]:
        """Serve asks this once; its HAProxy asks again where all replicas of a model allow it."""
        return {"idempotent": self._endpoint.options.idempotent}

    async def Predict(self, request: Any, grpc_context: Any) -> Any:
        """rayburst.serve.v1.Model/Predict, where Serve has gRPC."""
        from rayburst.serve import grpc_call  # needs no grpc where nobody asks for it

        return await grpc_call.predict(self._endpoint, request, grpc_context)

    def _lane_for(self, server: _ray_hooks.ReplicaServer) -> type | None:
        """Called on the loop that will serve HTTP, just before it does."""
        self._endpoint.attach()
        if server.has_middlewares:
            _log.warning("predictions take the stock path: Serve has HTTP middlewares")
            return None
        path = f"{server.prefix}/predict"

        def seen(status: int, took_s: float, request_id: str) -> None:
            server.record(path, status, took_s)
            if self._endpoint.options.access_log:
                server.log(path, status, took_s, request_id)

        lane = Lane(
            self._endpoint,
            frozenset({path.encode()}),
            timeout_s=server.request_timeout_s,
            ongoing=server.count,
            seen=seen,
        )
        self._tasks.add(asyncio.get_running_loop().create_task(lane.watch()))
        _log.info("POST %s takes the fast lane", path)
        return protocol_for(lane)


def key_gate(options: ModelOptions, name: str) -> KeyGate | None:
    """Who may ask, by `options.keys`; None: everybody. ModelError where no store has the keys."""
    if options.keys == "off":
        return None
    host = _ray_hooks.listening_host()
    if options.keys == "auto" and host is not None and _is_loopback(host):
        return None
    store = os.environ.get("RAYBURST_STORE")
    if store is None:
        why = "asks for keys" if options.keys == "required" else f"is served on {host}"
        raise ModelError(
            f"{name} {why}, and RAYBURST_STORE does not say where keys are: set it where Ray "
            "starts, for example RAYBURST_STORE=s3://fleet, and make one with `rayburst keys "
            f"create TENANT --model {name} --store s3://fleet`; or let Serve listen on 127.0.0.1 "
            "(http_options), or open the model to everybody with keys='off'"
        )
    return KeyGate(KeyStore(ObjectStore.open(f"{store.rstrip('/')}/serve/keys")), model=name)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def warn_of_floor(name: str, replicas: Replicas) -> None:
    """Says in a replica's log why nothing above the floor of its deployment is on spot."""
    if not replicas.floor:
        return
    why: str | None = "this Ray is not the tested one"
    if is_tested_ray():
        why = _ray_hooks.why_plain_controller(CALLBACK)
    if why is not None:
        _log.warning("%s: no replica may be on spot, floor or not: %s", name, why)


def _why_stock(options: ModelOptions) -> str | None:
    """Why the fast lane cannot be had; None when it can."""
    if options.lane == "stock":
        return "lane='stock' was asked for"
    if not is_tested_ray():
        return "this Ray is not the tested one"
    if not _ray_hooks.has_own_server():
        return (
            "a request costs about ten times the CPU there; start Ray with "
            "RAY_SERVE_ENABLE_HA_PROXY=1 to have the fast lane"
        )
    if _ray_hooks.is_tracing():
        return "Serve traces requests, and spans are made there"
    return None
