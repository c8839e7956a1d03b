"""Every touch of Ray's private parts by serving, in one place. Tested against Ray 2.60.

Serve takes only remote addresses in a runtime environment, and Ray has a public call to upload
local folders for jobs but none for Serve applications.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.job_submission import JobSubmissionClient


def upload_local_folders(client: JobSubmissionClient, runtime_env: Mapping[str, Any]) -> Any:
    """`runtime_env` with its local folders uploaded to the cluster and named by gcs:// addresses.

    What is already uploaded is not sent again; addresses pass through unchanged.
    """
    # What JobSubmissionClient.submit_job calls before it sends a job: it zips a folder, names
    # it by its hash and PUTs it to /api/packages. Both change the dict they are given.
    uploaded = {**runtime_env}
    if "py_modules" in uploaded:
        uploaded["py_modules"] = list(uploaded["py_modules"])
    client._upload_working_dir_if_needed(uploaded)
    client._upload_py_modules_if_needed(uploaded)
    uploaded.pop("excludes", None)  # has done its work; Serve would keep it in every status
    return uploaded
