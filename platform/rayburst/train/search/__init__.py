"""Search over settings of a training function, on machines that may be taken away.

    from rayburst.train.search import Search, Trial, search

Names are loaded when used: `Search` alone needs neither Ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.train.search.rungs import Rungs
    from rayburst.train.search.searcher import search
    from rayburst.train.search.settings import Search
    from rayburst.train.search.space import Choice, Range
    from rayburst.train.search.trial import Trial

__all__ = ["Choice", "Range", "Rungs", "Search", "Trial", "search"]

_HOMES = {
    "Choice": "space",
    "Range": "space",
    "Rungs": "rungs",
    "Search": "settings",
    "Trial": "trial",
    "search": "searcher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
