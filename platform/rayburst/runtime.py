"""The runtime environment of a job: one helper, so that no job forgets the package.

client.submit_job(entrypoint="python jobs/train_lm.py", runtime_env=runtime_env(working_dir="."))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rayburst
from rayburst.errors import JobError

_LEFT_OUT = (".venv", ".git", ".rayburst", "__pycache__", "*.pyc", "benchmarks/out", "node_modules")


def runtime_env(
    *,
    working_dir: str | Path | None = ".",
    env: Mapping[str, str] | None = None,
    pip: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A Ray runtime environment that holds the rayburst package and, if named, a working folder.

    Args:
        working_dir: a folder whose files the job needs; None for none. Virtual environments, git
            data and fleets are left out. Ray takes up to 500 MiB.
        env: environment variables for the job's processes.
        pip: requirements to install on the nodes.

    Raises:
        JobError: `working_dir` is no folder.
    """
    result: dict[str, Any] = {"py_modules": [str(Path(rayburst.__path__[0]).resolve())]}
    if working_dir is not None:
        folder = Path(working_dir)
        if not folder.is_dir():
            raise JobError(f"working_dir={str(working_dir)!r} is no folder; give one that exists")
        result |= {"working_dir": str(folder.resolve()), "excludes": list(_LEFT_OUT)}
    if env:
        result["env_vars"] = dict(env)
    if pip:
        result["pip"] = list(pip)
    return result
