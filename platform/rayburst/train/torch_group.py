"""Torch's process group as Ray Train sets it up, ended though a worker was ended for its memory.

Before a group restarts, Ray asks each worker to leave torch's process group. One that Ray itself
ended for the memory of its node answers with OutOfMemoryError, which Ray 2.60 does not expect
there: it takes that for a failure of its controller, at each try anew, and the run ends.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig

__all__ = ["TorchGroupConfig"]

_logger = logging.getLogger(__name__)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        except OutOfMemoryError as error:
            _logger.warning("a worker was ended for its memory: %s", str(error).splitlines()[0])


class TorchGroupConfig(TorchConfig):  # type: ignore[misc]
    """As `ray.train.torch.TorchConfig`."""

    @property
    def backend_cls(self) -> type:
        return _Backend
