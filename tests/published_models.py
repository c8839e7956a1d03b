"""Runs with a checkpoint and held-out text, as the training job leaves them; a publish to kill."""

from __future__ import annotations

import sys
from pathlib import Path

from trained_runs import save_model

from rayburst.checkpoint.store import ObjectStore
from rayburst.models.registry import ModelRegistry
from rayburst.train.corpus import keep_text
from rayburst.train.sources import find_sources


def save_run(store_uri: str, run: str, *, step: int, text: Path | None = None) -> str:
    """A checkpoint of a small random model, and the text of `text` split as the job splits it."""
    run_uri = f"{store_uri}/runs/{run}"
    if text is not None:
        keep_text(ObjectStore.open(run_uri), find_sources((str(text),), "text"))
    return save_model(run_uri, step=step)[0]


def some_text(folder: Path) -> Path:
    """A file of text that is long enough to hold some out."""
    file = folder / "text.py"
    lines = (f"def f{n}(x):\n    return x * {n} + f{n // 2}(x)\n" for n in range(999))
    file.write_text("".join(lines))
    return file


class Stopped(ModelRegistry):
    """Stops for ever where the weights are stored and the version is not."""

    def commit(self, version):
        """Tells that it is there, and waits to be killed."""
        sys.stdout.write("weights are stored\n")
        sys.stdout.flush()
        sys.stdin.read()
        raise AssertionError("nobody killed this process")


if __name__ == "__main__":
    Stopped.open(sys.argv[1]).publish(sys.argv[2], name=sys.argv[3])
