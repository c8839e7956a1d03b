"""Search over how the language model learns: `jobs/tune_lm.py`.

    found = search_lm(what, say=print)              # `what.fixed`: preset, data, column, ...

The value is the held-out text's bits a byte. Each trial is one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import torch

from rayburst.checkpoint.store import ObjectStore
from rayburst.report.search_page import search_page
from rayburst.train.gpt import GPT, PRESETS
from rayburst.train.learner import CLIP_NORM, loss_of, make_optimizer
from rayburst.train.lm_config import TRAINING, Training
from rayburst.train.search.found import Found
from rayburst.train.search.searcher import search
from rayburst.train.search.settings import Search
from rayburst.train.search.space import Choice
from rayburst.train.search.trial import Trial
from rayburst.train.sources import DEFAULT_COLUMN, find_sources
from rayburst.train.text_windows import text_windows

__all__ = ["PAGE", "TUNABLE", "search_lm", "train_lm"]

PAGE = "search.html"
"""In the search's folder."""

TUNABLE = ("lr", "global_batch", "micro_batch", "preset", "seed")
"""What a space may name."""


def search_lm(what: Search, say: Callable[[str], None]) -> Found:
    """Search to the end. ValueError for a setting that there is not, DataError for the data."""
    unknown = sorted(what.space.keys() - set(TUNABLE))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such setting. There are: {', '.join(TUNABLE)}")
    presets = what.space.get("preset", Choice((what.fixed.get("preset", "micro"),)))
    for preset in presets.values if isinstance(presets, Choice) else ("a number",):
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r} is not known. Known: {', '.join(PRESETS)}")
    find_sources(tuple(what.fixed.get("data", ())), what.fixed.get("column", DEFAULT_COLUMN))
    found = search(train_lm, what, say=say)
    page = search_page(found, value="bits a byte of held-out text")
    ObjectStore.open(what.folder).put(PAGE, page.encode())
    return found


def train_lm(settings: Mapping[str, Any], trial: Trial) -> None:
    """The training function of a trial."""
    preset = settings.get("preset", "micro")
    shape, how = PRESETS[preset], _training(preset, settings)
    run = trial.start_run(config={"model": shape.to_dict(), "settings": dict(settings)})
    data = text_windows(
        tuple(settings.get("data", ())),
        column=settings.get("column", DEFAULT_COLUMN),
        block=shape.block_size,
    )
    seed = int(settings.get("seed", 0))
    torch.manual_seed(seed)
    model = GPT(shape)
    optimizer, schedule = make_optimizer(model, lr=how.lr, steps=trial.steps)
    wrapped = run.prepare(model, optimizer, schedule, clip_norm=CLIP_NORM)

    def held_out() -> float:
        return data.bits_per_byte(lambda inputs, targets: loss_of(model, inputs, targets))

    batches = run.batches(data, global_batch=how.global_batch, seed=seed, steps=trial.steps)
    for inputs, targets in batches:
        run.backward(loss_of(wrapped, inputs, targets))
        if run.step():
            trial.reached(run.steps_done, held_out)


def _training(preset: str, settings: Mapping[str, Any]) -> Training:
    """The preset's settings, and over them the trial's, each as its field's type."""
    kinds = get_type_hints(Training)
    given = {f.name: settings[f.name] for f in fields(Training) if f.name in settings}
    usual = TRAINING[preset]
    chosen = {f.name: given.get(f.name, getattr(usual, f.name)) for f in fields(Training)}
    return Training(**{name: kinds[name](value) for name, value in chosen.items()})
