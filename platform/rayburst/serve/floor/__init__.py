"""A floor of replicas that no spot market takes away, and more on spot above it.

    asked = selector(2)                            # goes into a deployment's ray_actor_options
    floor_of(asked)                                # 2
    placement(asked, off_spot=True)                # what a replica of the floor asks Ray for

Serve 2.60 makes all replicas of a deployment alike. So the deployment asks for nodes off spot, and
carries its floor in the same selector, as a term that every node meets. Serve's controller
(_ray_hooks.py) gives each new replica a selector of its own: off spot while fewer than the floor
hold one there, else spot, and any node where no spot node is free. Where the hook is not, the
deployment's own selector holds: all replicas stay off spot.

It goes by Ray's own label for markets, which every host of a fleet carries; an on-prem host is not
taken away, so to Ray it is on-demand.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from rayburst.train.versions import is_tested_ray

__all__ = ["MARKET", "floor_of", "install", "is_off_spot", "placement", "selector"]

MARKET = "ray.io/market-type"
_OFF_SPOT, _SPOT = "on-demand", "spot"
_MARK = "rayburst.io/serve-floor"
_log = logging.getLogger("ray.serve")


def selector(floor: int) -> dict[str, str]:
    """The label selector of a deployment with so many replicas off spot."""
    return {MARKET: _OFF_SPOT, _MARK: f"!{floor}"}  # no node has the label, so each one meets it


def floor_of(asked: Mapping[str, str] | None) -> int:
    """The floor that a deployment's label selector carries; 0 for none."""
    found = re.fullmatch(r"!(\d+)", (asked or {}).get(_MARK, ""))
    return int(found[1]) if found else 0


def is_off_spot(labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is known not to be spot."""
    return labels.get(MARKET) == _OFF_SPOT


def placement(asked: Mapping[str, str], *, off_spot: bool) -> dict[str, Any]:
    """Actor options of one replica: where it may run, within what its deployment asks besides."""
    others = {key: value for key, value in asked.items() if key not in (MARKET, _MARK)}
    if off_spot:
        return {"label_selector": {**others, MARKET: _OFF_SPOT}}
    return {
        "label_selector": {**others, MARKET: _SPOT},
        "fallback_strategy": [{"label_selector": others}],
    }


def install() -> None:
    """Serve's controller calls this before it knows its deployments; see serve/controller.py."""
    if not is_tested_ray():
        _log.warning("deployments with a floor stay off spot: this Ray is not the tested one")
        return
    from rayburst.serve.floor import _ray_hooks  # loads Serve's controller

    _ray_hooks.use_floors()
