"""The Ray that the private hooks were tested with, and the versions a checkpoint records."""

from __future__ import annotations

import functools
import logging
import platform
from importlib.metadata import version

__all__ = ["TESTED_RAY", "is_tested_ray", "keep_to_public_api", "recorded"]

TESTED_RAY = "2.60.0"
_logger = logging.getLogger(__name__)


_kept_to_public_api: list[bool] = []


def keep_to_public_api() -> None:
    """In this process leave Ray's private parts alone, whatever Ray it is."""
    _kept_to_public_api[:] = [True]


def is_tested_ray() -> bool:
    """Whether the private hooks may be used here; warns once when the installed Ray is another."""
    return not _kept_to_public_api and _fits()


@functools.cache
def _fits() -> bool:
    installed = version("ray")
    if installed == TESTED_RAY:
        return True
    _logger.warning(
        "Ray %s is not the tested %s: training uses Ray's public API alone and recovers more "
        "slowly. Install ray==%s for fast recovery.",
        installed,
        TESTED_RAY,
        TESTED_RAY,
    )
    return False


def recorded() -> dict[str, str]:
    """Versions that say how a checkpoint was made."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("rayburst", "ray", "torch")},
    }
