"""A request that a dead replica held is asked again of another, where its model allows that.

    export RAY_SERVE_ENABLE_HA_PROXY=1
    export RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH=rayburst.serve.controller:install
    ray start --head ...

HAProxy can ask again (`retry-on empty-response`), but Serve 2.60 has one policy for all models, and
a request that is computed twice does harm in some. So each replica declares what its model says
(`@rb.serve.model(idempotent=True)`), by Serve's own `record_replica_metadata`, and Serve's HAProxy
manager writes the policy for those applications alone whose replicas all declared it. haproxy.py
has the text, spent.py what of the deadline is left, _ray_hooks.py the touch of Serve.

It deliberately does not ask again: a request larger than HAProxy's buffer, a response that had
begun, gRPC (its clients have retry policies of their own), calls by handle.
"""

from __future__ import annotations

import logging

from rayburst.train.versions import is_tested_ray

__all__ = ["install"]

_log = logging.getLogger("ray.serve")


def install() -> None:
    """Serve's controller calls this before it starts its proxies; see serve/controller.py."""
    if not is_tested_ray():
        _log.warning(
            "requests of dead replicas are not asked again: this Ray is not the tested one"
        )
        return
    from rayburst.serve.retry import _ray_hooks  # loads Serve's controller

    _ray_hooks.use_retrying_haproxy()
