"""Holds are read from what Ray reports, and outlive the process that writes them."""

from __future__ import annotations

from obstore.store import MemoryStore

from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.cost.entries import Owner
from rayburst.cost.usage import NodeSeen, UsageLog, read_holds, rows_of

NODES = {"aa": NodeSeen(host="rack-1", total={"CPU": 4.0, "GPU": 1.0, "memory": 100.0})}
JOBS = [
    {"job_id": "01000000", "submission_id": "trains", "metadata": {"tenant": "blue"}},
    {"job_id": "02000000", "submission_id": None, "metadata": None},
    {"job_id": None, "submission_id": "waits"},
]


def actor(name: str, **rest) -> dict:
    base = {
        "actor_id": name,
        "state": "ALIVE",
        "job_id": "01000000",
        "node_id": "aa",
        "class_name": "Worker",
        "required_resources": {"CPU": 1.0},
    }
    return base | rest


def owners(actors: list[dict], tasks: list[dict] | None = None) -> dict[str, Owner]:
    found = read_holds(actors, tasks or [], JOBS, NODES, now_ms=5)
    return {key.removesuffix("-rack-1"): hold.owner for key, hold in found.items()}


def test_an_actor_belongs_to_its_submission_and_its_tenant():
    assert owners([actor("a")]) == {"a": Owner(job="trains", tenant="blue")}
    assert owners([actor("a", job_id="02000000")]) == {"a": Owner(job="02000000")}


def test_a_replica_belongs_to_its_application():
    replica = actor("r", class_name="ServeReplica:default:LM", job_id="02000000")
    assert owners([replica]) == {"r": Owner(job="serve default", model="LM")}


def test_what_is_dead_holds_nothing_or_is_elsewhere_is_passed_over():
    rows = [
        actor("dead", state="DEAD"),
        actor("none", required_resources={}),
        actor("zero", required_resources={"CPU": 0.0}),
        actor("away", node_id="bb"),
    ]
    assert owners(rows) == {}


def test_a_placement_groups_names_are_those_of_its_resources():
    group = {
        "CPU_group_0_abc": 2.0,
        "CPU_group_abc": 2.0,
        "bundle_group_0_abc": 0.001,
        "bundle_group_abc": 0.001,
        "GPU_group_abc": 1.0,
        "node:10.0.0.1": 0.001,
    }
    (hold,) = read_holds([actor("a", required_resources=group)], [], JOBS, NODES, now_ms=5).values()
    assert hold.resources == {"CPU": 2.0, "GPU": 1.0}
    assert hold.total == NODES["aa"].total


def test_running_tasks_hold_and_actors_tasks_do_not_hold_twice():
    task = {"task_id": "t", "type": "NORMAL_TASK", "state": "RUNNING", "job_id": "01000000"}
    task |= {"node_id": "aa", "required_resources": {"CPU": 1.0}, "actor_id": None}
    assert set(owners([], [task])) == {"t"}
    assert set(owners([], [task | {"state": "RUNNING_IN_RAY_GET"}])) == {"t"}
    assert owners([], [task | {"state": "FINISHED"}]) == {}
    assert owners([], [task | {"type": "ACTOR_TASK", "actor_id": "a"}]) == {}


def test_rows_of_an_answer():
    assert rows_of({"data": {"result": {"result": [{"a": 1}]}}}) == [{"a": 1}]
    assert rows_of({"result": False, "data": {}}) == []


def log_on(backend: MemoryStore) -> UsageLog:
    return UsageLog(ObjectStore("memory://", backend, "", None, StoreOptions()))


def test_holds_outlive_the_writer_and_end_when_they_are_seen_no_more():
    backend = MemoryStore()
    seen = read_holds([actor("a"), actor("b")], [], JOBS, NODES, now_ms=1000)
    first = log_on(backend)
    assert first.update(seen, now_ms=1000) == 2
    assert first.update(seen, now_ms=2000) == 0
    later = read_holds([actor("b"), actor("c")], [], JOBS, NODES, now_ms=3000)
    second = log_on(backend)  # the first one died
    assert second.update(later, now_ms=3000) == 2
    times = {h.id[0]: (h.start_ms, h.end_ms) for h in log_on(backend).holds()}
    assert times == {"a": (1000, 3000), "b": (1000, None), "c": (3000, None)}
    assert [h.owner for h in second.holds()] == [Owner(job="trains", tenant="blue")] * 3


def test_two_writers_make_no_hold_twice_at_once():
    backend = MemoryStore()
    seen = read_holds([actor("a")], [], JOBS, NODES, now_ms=1000)
    first, second = log_on(backend), log_on(backend)
    second.update({}, now_ms=500)
    first.update(seen, now_ms=1000)
    second.update(read_holds([actor("a")], [], JOBS, NODES, now_ms=1500), now_ms=1500)
    first.update({}, now_ms=4000)
    second.update({}, now_ms=4100)
    assert [(h.start_ms, h.end_ms) for h in log_on(backend).holds()] == [(1000, 1500), (1500, 4000)]
