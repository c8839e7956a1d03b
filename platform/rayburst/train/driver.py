"""What drivers of runs share: where a run goes on, what it has saved at its end, how a job ends.

sys.exit(exit_code("finetune.py", lambda: finetune(config, ...), wrong=(TrainError,)))
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ray.train import TrainingFailedError

from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, RayburstError, StoreError
from rayburst.train.ray_list import mend_list
from rayburst.train.run_report import RunReport, run_report
from rayburst.train.runlog import read_folder
from rayburst.train.trained import address, newest_manifest

__all__ = ["exit_code", "last_checkpoint", "tell_report", "tell_where"]
_logger = logging.getLogger(__name__)


def tell_where(folder: ObjectStore, say: Callable[[str], None]) -> None:
    """Before a run: from which checkpoint it resumes, or where it will save. Mends Ray's list."""
    problem = mend_list(folder)
    if problem is not None:
        say(f"Ray's list of checkpoints is unusable ({problem}); moved aside, nothing is lost")
    found = newest_manifest(folder)
    where = address(folder.uri, found.step) if found else ""
    say(f"resumes from {where}" if found else f"checkpoints go to {folder.uri}")


def last_checkpoint(folder: ObjectStore) -> Manifest:
    """After a run: the newest whole checkpoint. CheckpointError when there is none."""
    newest = newest_manifest(folder)
    if newest is None:
        raise CheckpointError(f"training ended, but {folder.uri} holds no whole checkpoint")
    return newest


def tell_report(folder: ObjectStore, say: Callable[[str], None]) -> RunReport:
    """After a run: what it did with its time. An empty one where its log cannot be read."""
    try:
        records = read_folder(folder)
    except StoreError as error:
        _logger.warning("the run log cannot be read: %s", error)
        records = []
    report = run_report(records)
    for line in str(report).splitlines():
        say(line)
    return report


def exit_code(
    script: str,
    work: Callable[[], Mapping[str, Any]],
    *,
    wrong: tuple[type[RayburstError], ...] = (),
) -> int:
    """Do the work of a job script and print `RESULT {json}`; 0 done, 1 failed, 2 wrong input.

    `wrong`: the errors that, with ValueError, mean wrong input.
    """
    of_input: tuple[type[Exception], ...] = (ValueError, *wrong)
    try:
        result = work()
    except of_input as error:
        sys.stderr.write(f"{script}: {error}\n")
        return 2
    except (TrainingFailedError, RayburstError) as error:
        sys.stderr.write(f"{script}: failed\n{error}\n")
        return 1
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")
    sys.stdout.flush()
    return 0
