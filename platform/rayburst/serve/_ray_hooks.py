"""Ray's private parts that serving touches. Tested against Ray 2.60."""

from __future__ import annotations

from typing import Any


def upload_local_folders(client: Any, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """Upload `working_dir` and `py_modules` of a runtime environment to the cluster.

    Serve's REST API takes only remote URIs. JobSubmissionClient uploads a job's folders to the
    cluster's own package store before it submits; the same two private methods are called here.
    """
    remote = dict(runtime_env)
    client._upload_working_dir_if_needed(remote)
    client._upload_py_modules_if_needed(remote)
    remote.pop("excludes", None)  # it was for the upload; a remote folder has none
    return remote
