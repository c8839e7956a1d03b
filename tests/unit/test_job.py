"""A job without a name is unknown: to Ray an empty one means all jobs."""

from __future__ import annotations

import pytest
from ray.job_submission import JobSubmissionClient

from rayburst.errors import JobError
from rayburst.job import Job


@pytest.mark.parametrize("name", ["", " "])
def test_a_job_without_a_name_is_unknown(name: str) -> None:
    nobody_asked = JobSubmissionClient.__new__(JobSubmissionClient)
    with pytest.raises(JobError, match=r"see them with `p\.jobs\(\)`"):
        _ = Job(name, nobody_asked).status
