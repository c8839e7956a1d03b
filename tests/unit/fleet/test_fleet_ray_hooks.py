"""Ray's private parts that the fleet reads jobs from: fails loudly when Ray changes."""

from __future__ import annotations

from ray._private import ray_constants
from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus

from rayburst.fleet import _ray_hooks as hooks


def test_submitted_jobs_are_kept_where_the_hooks_look():
    assert hooks._JOB_PREFIX.decode() == JobInfoStorageClient.JOB_DATA_KEY_PREFIX
    assert hooks._JOB_NAMESPACE == ray_constants.KV_NAMESPACE_JOB


def test_every_status_that_ends_a_job_is_known():
    ended = {str(status) for status in JobStatus if status.is_terminal()}
    assert ended == set(hooks._ENDED)


def test_a_job_is_read_as_ray_writes_it(monkeypatch):
    import json

    running = JobInfo(
        status=JobStatus.RUNNING,
        entrypoint="python a.py",
        start_time=5_000,
        metadata={"deadline": "6h"},
    )
    done = JobInfo(status=JobStatus.SUCCEEDED, entrypoint="python b.py", start_time=1_000)
    stored = {
        f"{JobInfoStorageClient.JOB_DATA_KEY_PREFIX}{name}".encode(): json.dumps(
            info.to_json()
        ).encode()
        for name, info in (("first", running), ("second", done))
    }

    class Client:
        asked: list[bytes]

        def internal_kv_keys(self, prefix, namespace, timeout):
            return list(stored)

        def internal_kv_multi_get(self, keys, namespace, timeout):
            self.asked = list(keys)
            return {key: stored[key] for key in keys}

    client = Client()
    gcs = hooks.Gcs("nowhere:1")
    monkeypatch.setattr(gcs, "_client", lambda: client)
    (job,) = gcs.jobs()
    assert (job.id, job.submitted_at, job.metadata) == ("first", 5.0, {"deadline": "6h"})
    gcs.jobs()
    assert len(client.asked) == 1, "what has ended is not read again"


def test_a_node_can_be_told_of_as_gone():
    from ray.core.generated import common_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    fields = gcs_service_pb2.UnregisterNodeRequest.DESCRIPTOR.fields_by_name
    assert {"node_id", "node_death_info"} == set(fields)
    assert common_pb2.NodeDeathInfo.Reason.Value("UNEXPECTED_TERMINATION") == 2
    assert hasattr(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer, "UnregisterNode")
