"""The driver of a search: Ray Tune runs its trials, and the journal decides about them.

    found = search(train, Search(run="search-1", storage="s3://bucket/runs", ...), say=print)
    found.best.settings, found.table()

`train(settings, trial)` runs in one process a trial, see `rayburst.train.search.trial`. A trial
that is interrupted starts again on whatever node there is and resumes from its own checkpoint. A
search that was killed begins with what the journal knows, and trains only what is still open.
What the function itself raises ends the search.
"""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import tune

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import NonFiniteError, RunLeftError, SearchError, StoreError
from rayburst.train.notices import Notice, NoticeWatcher
from rayburst.train.search.found import Found
from rayburst.train.search.journal import Journal
from rayburst.train.search.progress import FAILED, Progress, Say
from rayburst.train.search.settings import Search
from rayburst.train.search.trial import Trial
from rayburst.train.telling import connect_to_ray
from rayburst.train.versions import is_tested_ray

__all__ = ["search"]

TrainFunction = Callable[[dict[str, Any], Trial], None]
RESULT = "result.json"


def search(train: TrainFunction, what: Search, *, say: Say) -> Found:
    """Search to the end; `say` gets one line at a time.

    SearchError: `train` raised, or the run was begun with other words. StoreError: the storage
    cannot be reached.
    """
    journal = Journal(ObjectStore.open(what.folder))
    goes_on = journal.begin(what.identity())
    progress = Progress(what, journal, say)
    say(
        f"search {what.run}: {what.trials} trials of {what.rungs.steps} steps, compared at "
        f"{', '.join(map(str, what.rungs.milestones))}; over "
        + "; ".join(f"{name} in {among}" for name, among in what.space.items())
    )
    left = progress.left()
    if goes_on:
        say(f"goes on from {what.folder}: {len(left)} of {what.trials} trials are left")
    if left:
        connect_to_ray(os.environ)
        _run(train, what, progress, left)
    found = Found(search=what, values=journal.values())
    journal.put(RESULT, found.to_json())
    return found


class _TrialOrder(tune.schedulers.FIFOScheduler):  # type: ignore[misc]
    """Trials in their order; what becomes of one is the journal's to say."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP for a trial that was beaten; one that is done has its last checkpoint to save."""
        is_over = self._progress.hear(int(trial.config["trial"]), result)
        return str(self.STOP if is_over else self.CONTINUE)


class _UntilFailure(tune.Stopper):  # type: ignore[misc]
    """Ends all trials when one has raised."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked after each result."""
        return bool(self._progress.failure)


def _run(train: TrainFunction, what: Search, progress: Progress, left: list[int]) -> None:
    resources = {"CPU": what.cpus, **({"GPU": 1} if what.use_gpu else {})}
    # what was submitted with the job is found by its name there, as in any other job
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # trials tell what they know themselves: Tune's own files are worth nothing afterwards
    with (
        tempfile.TemporaryDirectory(prefix="rayburst-tune-", ignore_cleanup_errors=True) as scratch,
        _quiet(),
    ):
        tuner = tune.Tuner(
            tune.with_resources(_trainable(train, what), resources),
            param_space={"trial": tune.grid_search(left)},
            tune_config=tune.TuneConfig(
                scheduler=_TrialOrder(progress),
                max_concurrent_trials=what.at_once or None,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=what.run,
                storage_path=scratch,
                stop=_UntilFailure(progress),
                # a lost machine never fails a trial; what the function raises is told, not thrown
                failure_config=tune.FailureConfig(max_failures=-1),
                verbose=0,
            ),
        )
        tuner.fit()
    if progress.failure:
        raise SearchError(progress.failure)


class _quiet:
    """Tune tells of every loss with a traceback, and of its files; here losses are expected."""

    _NAMES = ("ray.tune", "ray.train")

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in self._NAMES}
        for name in self._NAMES:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

    def __exit__(self, *error: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)


def _trainable(train: TrainFunction, what: Search) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        number = int(config["trial"])
        watcher = NoticeWatcher(_drain_of_this_node).start()
        one = Trial(
            what,
            number,
            journal=Journal(ObjectStore.open(what.folder)),
            tell=tune.report,
            notices=lambda: watcher.latest,
        )
        try:
            train(what.settings_of(number), one)
            one.ended()
        except NonFiniteError:
            one.diverged()
        except (RunLeftError, StoreError):
            raise  # Tune starts it again, on another node or a little later
        except Exception:  # noqa: BLE001 - the user's own mistake; a retry would repeat it
            tune.report({"step": 0, FAILED: traceback.format_exc()})
        finally:
            watcher.stop()

    return trial


def _drain_of_this_node() -> Notice | None:
    if not is_tested_ray():
        return None
    from rayburst.train import _ray_hooks

    node = ray.get_runtime_context().get_node_id()
    draining = _ray_hooks.draining_nodes()
    if node not in draining:
        return None
    return Notice(deadline_s=draining[node], reason=f"{node} is to be taken away")
