"""A training function from a notebook as a Ray job: packed here, run there.

    pack(fn, config, settings, folder)                            # what `Platform.train` ships
    python -m rayburst.train.submitted [FOLDER]                   # the job's driver, in that folder

The function travels by value, with whatever else its module defines and it uses; packages that it
imports must be installed on the nodes. The last line that the driver prints is `RESULT {json}`.
Exit code: 0 done, 1 training failed.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import JobError

__all__ = ["ENTRYPOINT", "main", "pack"]

ENTRYPOINT = "python -m rayburst.train.submitted"
FUNCTION = "function.pkl"
SETTINGS = "settings.json"


def pack(
    fn: Callable[..., Any], config: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
) -> None:
    """Write the function and its settings into `folder`.

    `settings`: run, workers (least, most), storage (None: the fleet's), use_gpu. JobError when the
    function cannot travel.
    """
    from ray import cloudpickle

    module = inspect.getmodule(fn)
    by_value = module is not None and module.__name__ != "__main__" and not _is_installed(module)
    try:
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        body = cloudpickle.dumps((fn, dict(config)))
    except (TypeError, AttributeError, ValueError) as error:
        raise JobError(
            f"the function {getattr(fn, '__name__', fn)!r} cannot be sent to the cluster: {error}. "
            "Make inside of it what cannot be pickled, such as open files, locks and connections"
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    (folder / FUNCTION).write_bytes(body)
    (folder / SETTINGS).write_text(json.dumps(dict(settings)))


def _is_installed(module: Any) -> bool:
    """Whether a node that has the same packages can import it."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.split(".")[0] == "rayburst":
        return True
    paths = sysconfig.get_paths()
    return any(Path(file).is_relative_to(paths[name]) for name in ("stdlib", "purelib", "platlib"))


def main(arguments: list[str]) -> int:
    """Train what lies in the folder; everything worth knowing is printed."""
    from ray import cloudpickle
    from ray.train import TrainingFailedError

    from rayburst.train.driver import tell_report
    from rayburst.train.lm import default_storage
    from rayburst.train.telling import Telling, connect_to_ray
    from rayburst.train.trainer import ElasticTrainer, Workers

    folder = Path(arguments[0] if arguments else ".")
    settings = json.loads((folder / SETTINGS).read_text())
    fn, config = cloudpickle.loads((folder / FUNCTION).read_bytes())
    storage = settings["storage"] or default_storage(os.environ, _say)
    least, most = settings["workers"]
    connect_to_ray(os.environ)
    trainer = ElasticTrainer(
        fn,
        config=config,
        run=settings["run"],
        storage=storage,
        workers=Workers(least=least, most=most, use_gpu=settings["use_gpu"]),
    )
    try:
        with Telling(settings["run"], _say):
            trainer.fit()
    except TrainingFailedError as error:
        logging.getLogger(__name__).error("training failed\n%s", error)
        return 1
    where = f"{storage.rstrip('/')}/{settings['run']}"
    report = tell_report(ObjectStore.open(where), _say)
    _say(f"RESULT {json.dumps({'run': settings['run'], 'folder': where, **report.to_json()})}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
