"""What was submitted to Ray, kept on the object store until it has ended: for a head that is lost.

    journal = SubmissionJournal(store, gcs)
    journal.keep()                      # by the agent, at every tick
    resubmit(store, gcs, submit)        # on the new head

Ray keeps submitted jobs, and the packages that go with them, in the memory of the head. The agent
copies both within a tick or two of the submission; from then on a job outlives its head under the
same id. One object a job, `submissions/jobs/ID.json`, gone when the job has ended; packages lie in
`submissions/packages/`, named by their content, and stay. Environment variables of a job are part
of it and are kept too.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import JobError, ObjectExistsError, ObjectNotFoundError, StoreError
from rayburst.fleet._ray_hooks import Gcs

JOBS, PACKAGES = "submissions/jobs/", "submissions/packages/"
_PACKAGE = "gcs://"
_GIVEN = (
    "entrypoint",
    "metadata",
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
)
_LOG = logging.getLogger("rayburst.agent")
Submit = Callable[..., object]


class SubmissionJournal:
    """The agent's copy of the head's jobs."""

    def __init__(self, store: ObjectStore, gcs: Gcs) -> None:
        self._store = store
        self._gcs = gcs
        self._kept: set[str] = set()
        self._ended: set[str] = set()

    def keep(self) -> None:
        """Write down what is new, and take out what has ended. What fails is tried again.

        Raises:
            ray.exceptions.RpcError: Ray's head does not answer.
        """
        living = {job.id for job in self._gcs.jobs()}
        try:
            for job in sorted(living - self._kept):
                if (record := self._gcs.submission(job)) is not None:
                    self._write(job, record)
                self._kept.add(job)
            for job in sorted(self._gcs.ended() - self._ended):
                self._store.delete(_key(job))
                self._ended.add(job)
        except StoreError as error:
            _LOG.warning("submissions wait for the object store: %s", error)

    def _write(self, job: str, record: Mapping[str, Any]) -> None:
        runtime_env = json.loads(record.get("runtime_env_json") or "{}")
        for uri in packages_of(runtime_env):
            data = self._gcs.package(uri)
            if data is not None:
                self._put(PACKAGES + quote(uri, safe=""), data)
        given = {name: record[name] for name in _GIVEN if record.get(name) is not None}
        self._put(_key(job), json.dumps({**given, "runtime_env": runtime_env}).encode())

    def _put(self, key: str, data: bytes) -> None:
        with contextlib.suppress(ObjectExistsError):  # it was written before
            self._store.put(key, data, if_absent=True)


def resubmit(store: ObjectStore, gcs: Gcs, submit: Submit) -> list[str]:
    """Submit again what had not ended; the ids. What this head knows already is left alone.

    Args:
        submit: takes `entrypoint`, `submission_id`, `runtime_env` and so on, as
            `JobSubmissionClient.submit_job` does.

    Raises:
        StoreError: the object store does not answer.
        JobError: Ray does not take a job.
    """
    known = {job.id for job in gcs.jobs()} | gcs.ended()
    again = []
    for info in sorted(store.list(JOBS), key=lambda info: info.key):
        job = unquote(info.key.removeprefix(JOBS).removesuffix(".json"))
        if job in known:
            continue
        given = json.loads(store.get(info.key))
        for uri in packages_of(given["runtime_env"]):
            try:
                gcs.restore_package(uri, store.get(PACKAGES + quote(uri, safe="")))
            except ObjectNotFoundError:
                raise JobError(f"job {job} was journalled without its package {uri}") from None
        try:
            submit(submission_id=job, **given)
        except (RuntimeError, ValueError) as error:
            raise JobError(f"Ray did not take the job {job} again: {error}") from error
        again.append(job)
    return again


def forget_all(store: ObjectStore) -> None:
    """Take out every job: the cluster is ended on purpose, and with it what runs."""
    for info in list(store.list(JOBS)):
        store.delete(info.key)


def packages_of(runtime_env: object) -> Iterator[str]:
    """The packages that a runtime environment has in the head's memory."""
    if isinstance(runtime_env, str):
        if runtime_env.startswith(_PACKAGE):
            yield runtime_env
    elif isinstance(runtime_env, Mapping):
        for value in runtime_env.values():
            yield from packages_of(value)
    elif isinstance(runtime_env, list | tuple):
        for value in runtime_env:
            yield from packages_of(value)


def _key(job: str) -> str:
    return f"{JOBS}{quote(job, safe='')}.json"
