"""What rayburst adds to Serve's controller, which takes one callback.

    export RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH=rayburst.serve.controller:install
    ray start --head ...

Serve calls it when its controller starts, before it knows nodes or deployments. retry/ has requests
of dead replicas asked again (behind Serve's HAProxy), floor/ keeps replicas off spot.
"""

from __future__ import annotations

from rayburst.serve import floor, retry

__all__ = ["CALLBACK", "install"]

CALLBACK = "rayburst.serve.controller:install"


def install() -> None:
    """Serve's controller calls this; see CALLBACK."""
    retry.install()
    floor.install()
