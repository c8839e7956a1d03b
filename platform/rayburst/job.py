"""A Ray job that was submitted to a fleet: its state, its log, its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rayburst.errors import JobError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Job:
    """A submitted job."""

    def __init__(self, job_id: str, client: JobSubmissionClient) -> None:
        self.id = job_id
        self._client = client

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. Raises JobError for an unknown job."""
        unknown = f"no job {self.id!r} here; see them with `p.jobs()`"
        if not self.id.strip():  # Ray would answer with the list of all jobs
            raise JobError(unknown)
        try:
            return str(self._client.get_job_status(self.id).value)
        except RuntimeError as error:
            raise JobError(unknown) from error

    @property
    def message(self) -> str:
        """Ray's word on how the job stands or ended."""
        return str(self._client.get_job_info(self.id).message or "")

    @property
    def entrypoint(self) -> str:
        return str(self._client.get_job_info(self.id).entrypoint)

    def logs(self) -> str:
        """Everything the job printed so far."""
        return str(self._client.get_job_logs(self.id))

    def tail(
        self, *, poll_s: float = 0.5, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[str]:
        """The job's lines as they come, until it ends."""
        seen = 0
        while True:
            ended = self.status in _ENDED
            text = self.logs()
            complete = text.rfind("\n") + 1 if not ended else len(text)
            if complete > seen:
                yield from text[seen:complete].splitlines()
                seen = complete
            if ended:
                return
            sleep(poll_s)

    def wait(self, *, timeout_s: float | None = None) -> str:
        """Wait for the end; returns the final status.

        Raises:
            JobError: the job failed (the message holds the end of its log), or time ran out.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (status := self.status) not in _ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise JobError(f"job {self.id} is still {status} after {timeout_s:.0f} s")
            time.sleep(0.5)
        if status == "FAILED":
            tail = "\n".join(self.logs().splitlines()[-20:])
            raise JobError(f"job {self.id} failed: {self.message}\n{tail}")
        return status

    def stop(self) -> None:
        """Ask Ray to stop the job."""
        self._client.stop_job(self.id)

    def __repr__(self) -> str:
        return f"<job {self.id} {self.status}>"

    def _repr_html_(self) -> str:
        return f"<p>job <b>{self.id}</b>: {self.status}</p>"
