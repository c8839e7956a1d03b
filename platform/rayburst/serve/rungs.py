"""The forms of one model on a replica: which there are, when each is loaded, what an answer says.

    rungs = Rungs.of(model, options, work_s=demand.work_s)    # None: the model has no variants
    rungs.load()                                              # the forms that shall be there
    rungs.told("int8")                                        # headers of an answer in that form

A class says what it can be in `variants`, a name and its agreement each, the most faithful first;
`load` may set it on the instance. Where the class has `load_variant(name)` as well, it is called
once for each form: before the first request, or (`eager=False`) in a thread when the replica is
first short, from when on that form costs memory. What cannot be loaded then is left out and told
in the log; nothing else changes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from rayburst.serve.costs import CostCurve
from rayburst.serve.ladder import Ladder
from rayburst.serve.options import ModelOptions

__all__ = ["DEGRADED", "VARIANT", "Headers", "Rungs"]

VARIANT = b"x-rayburst-variant"
DEGRADED = b"x-rayburst-degraded"  # the agreement, on answers that are not the best form's

Headers = tuple[tuple[bytes, bytes], ...]

_log = logging.getLogger("ray.serve")


class Rungs:
    """A ladder, and the model whose forms it orders."""

    def __init__(self, model: Any, ladder: Ladder, *, eager: bool) -> None:
        self.ladder = ladder
        self._load: Callable[[str], Any] | None = getattr(model, "load_variant", None)
        self._eager = eager
        self._loading: set[str] = set()  # or tried already
        self._told = {rung.name: _headers(rung.name, ladder) for rung in ladder.rungs}

    @classmethod
    def of(
        cls, model: Any, options: ModelOptions, *, work_s: Callable[[CostCurve], float]
    ) -> Rungs | None:
        """Of a model that is loaded. ModelError when its variants cannot be used."""
        variants = getattr(model, "variants", None)
        if variants is None:
            return None
        ladder = Ladder(
            variants, floor=options.agreement, work_s=work_s, back_s=options.back_after_s
        )
        return cls(model, ladder, eager=options.eager)

    @property
    def names(self) -> list[str]:
        """The forms that may answer, the most faithful first."""
        return [rung.name for rung in self.ladder.rungs]

    def told(self, variant: str) -> Headers:
        """Headers of an answer in this form."""
        return self._told[variant]

    def load(self) -> list[str]:
        """Loads what is to be there before the first request, and says what is."""
        if self._load is None:
            return self.names
        first = self.names if self._eager else self.names[:1]
        for name in first:
            self._load(name)
        for name in self.names[len(first) :]:
            self.ladder.hold_back(name)
        return first

    def load_when_short(self, ready: Callable[[str], None]) -> None:
        """From now on a form that is missed is loaded; `ready(name)` is called in a thread."""

        def short(name: str) -> None:
            if name not in self._loading:
                self._loading.add(name)
                threading.Thread(
                    target=self._load_one, args=(name, ready), name=f"load {name}", daemon=True
                ).start()

        self.ladder.short = short

    def _load_one(self, name: str, ready: Callable[[str], None]) -> None:
        try:
            if self._load is not None:
                self._load(name)
            ready(name)
            _log.warning("short of time: %s is loaded, and answers when it must", name)
        except Exception:  # noqa: BLE001  whatever a model raises costs this form only
            _log.exception("%s cannot be loaded and is left out", name)


def _headers(name: str, ladder: Ladder) -> Headers:
    made: Headers = ((VARIANT, name.encode("latin-1", "replace")),)
    if name == ladder.best:
        return made
    return (*made, (DEGRADED, b"%.4f" % ladder.agreement(name)))
