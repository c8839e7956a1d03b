"""Submissions outlive their head: what is kept, what is submitted again, what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import JobError
from rayburst.fleet.book import SubmittedJob
from rayburst.fleet.submissions import SubmissionJournal, forget_all, packages_of, resubmit

PACKAGE = "gcs://_ray_pkg_0123456789abcdef.zip"


class Head:
    """The memory of one head: jobs and packages, gone with it."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.over: set[str] = set()
        self.packages: dict[str, bytes] = {}

    def jobs(self) -> list[SubmittedJob]:
        living = self.records.keys() - self.over
        return [SubmittedJob(id=job, submitted_at=0.0, metadata={}) for job in sorted(living)]

    def ended(self) -> set[str]:
        return set(self.over)

    def submission(self, job: str) -> dict[str, Any] | None:
        return self.records.get(job)

    def package(self, uri: str) -> bytes | None:
        return self.packages.get(uri)

    def restore_package(self, uri: str, data: bytes) -> None:
        self.packages[uri] = data

    def submit_job(self, *, submission_id: str, entrypoint: str, **given: Any) -> None:
        given["runtime_env_json"] = json.dumps(given.pop("runtime_env"))
        self.records[submission_id] = {"entrypoint": entrypoint, **given}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(tmp_path)


@pytest.fixture
def head() -> Head:
    """A head with a job that has a package, terms and a name that is no file name."""
    head = Head()
    head.packages[PACKAGE] = b"zip"
    head.submit_job(
        submission_id="a/b",
        entrypoint="python train.py",
        metadata={"rayburst.deadline": "9"},
        runtime_env={"working_dir": PACKAGE, "env_vars": {"A": "1"}},
        entrypoint_num_cpus=None,
    )
    head.submit_job(submission_id="done", entrypoint="true", runtime_env={})
    return head


def test_what_had_not_ended_runs_again_under_its_id_with_all_it_was_given(
    store: ObjectStore, head: Head
) -> None:
    journal = SubmissionJournal(store, head)
    journal.keep()
    head.over.add("done")
    journal.keep()
    journal.keep()
    new = Head()
    assert resubmit(store, new, new.submit_job) == ["a/b"]
    assert new.packages == {PACKAGE: b"zip"}
    expected = {key: value for key, value in head.records["a/b"].items() if value is not None}
    assert new.records == {"a/b": expected}
    assert resubmit(store, new, new.submit_job) == [], "a second run changes nothing"


def test_an_agent_that_starts_on_a_new_head_forgets_nothing(store: ObjectStore, head: Head) -> None:
    SubmissionJournal(store, head).keep()
    new = Head()
    SubmissionJournal(store, new).keep()  # before anybody asked to recover
    assert resubmit(store, new, new.submit_job) == ["a/b", "done"]
    new.over = {"a/b", "done"}
    SubmissionJournal(store, new).keep()
    assert resubmit(store, Head(), new.submit_job) == []


def test_a_cluster_that_is_ended_on_purpose_leaves_no_job(store: ObjectStore, head: Head) -> None:
    SubmissionJournal(store, head).keep()
    forget_all(store)
    new = Head()
    assert resubmit(store, new, new.submit_job) == []


def test_a_job_without_its_package_is_told(store: ObjectStore, head: Head) -> None:
    del head.packages[PACKAGE]
    SubmissionJournal(store, head).keep()
    with pytest.raises(JobError, match="a/b was journalled without its package"):
        resubmit(store, Head(), head.submit_job)


def test_packages_are_found_wherever_they_stand() -> None:
    env = {"working_dir": PACKAGE, "py_modules": [PACKAGE + "1", "s3://b/m.zip"], "pip": ["x"]}
    assert list(packages_of(env)) == [PACKAGE, PACKAGE + "1"]
