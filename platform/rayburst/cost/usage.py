"""Who holds what on which node, as Ray reports it, kept on the object store.

    seen = read_holds(actors, tasks, jobs, nodes, now_ms=now_ms)    # pure
    log = UsageLog(store)
    log.update(seen, now_ms=now_ms)     # writes what began and what ended since the last call
    log.holds()                         # everything that was ever seen

Ray has no record of it that lasts: what is dead is soon forgotten, and all of it with the head. So
it is looked at every few seconds; a hold begins when it is first seen and ends when it is seen no
more. Work shorter than the time between two looks may be missed, and is then paid by nobody.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.entries import Owner
from rayburst.cost.facts import Hold
from rayburst.cost.spent import DEFAULT_TENANT
from rayburst.errors import ObjectExistsError

PREFIX = "usage/"
_READERS = 16
_GROUP = "_group_"
_SERVE = "ServeReplica:"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSeen:
    """A living node: rayburst's name of it, and all that Ray says it has."""

    host: str
    total: Mapping[str, float]


def read_holds(
    actors: Iterable[Row],
    tasks: Iterable[Row],
    jobs: Iterable[Row],
    nodes: Mapping[str, NodeSeen],
    *,
    now_ms: int,
) -> dict[str, Hold]:
    """What is held now, by id, from the rows of Ray's state API.

    Args:
        actors, tasks: with details; those that are not alive or hold nothing are passed over.
        jobs: of the jobs API; they name the submission and its `tenant` (in its metadata).
        nodes: by Ray's node id.
    """
    owners = {str(job["job_id"]): _submitted(job) for job in jobs if job.get("job_id")}
    found: dict[str, Hold] = {}
    for row in (*_alive(actors), *_running(tasks)):
        node = nodes.get(str(row.get("node_id")))
        resources = _resources(row.get("required_resources") or {})
        if node is None or not resources:
            continue
        hold = Hold(
            id=f"{row.get('actor_id') or row['task_id']}-{node.host}",
            node=node.host,
            owner=_owner(row, owners),
            start_ms=now_ms,
            resources=resources,
            total=node.total,
        )
        found[hold.id] = hold
    return found


def _alive(actors: Iterable[Row]) -> list[Row]:
    return [row for row in actors if row.get("state") == "ALIVE"]


def _running(tasks: Iterable[Row]) -> list[Row]:
    """Plain tasks; what an actor runs is in what the actor holds."""
    return [
        {**row, "actor_id": None}
        for row in tasks
        if row.get("type") == "NORMAL_TASK" and str(row.get("state", "")).startswith("RUNNING")
    ]


def _submitted(job: Row) -> Owner:
    name = job.get("submission_id") or job.get("job_id")
    tenant = str((job.get("metadata") or {}).get("tenant", ""))
    return Owner(job=str(name), tenant="" if tenant == DEFAULT_TENANT else tenant)


def _owner(row: Row, owners: Mapping[str, Owner]) -> Owner:
    kind = str(row.get("class_name") or "")
    if kind.startswith(_SERVE):  # "ServeReplica:application:deployment"
        _, application, deployment = kind.split(":", 2)
        return Owner(job=f"serve {application}", model=deployment)
    job = str(row.get("job_id") or "")
    return owners.get(job, Owner(job=job))


def _resources(required: Mapping[str, float]) -> dict[str, float]:
    """Resources by their plain names: in a placement group Ray names each twice over."""
    found: dict[str, float] = {}
    for name, amount in required.items():
        plain = name.split(_GROUP)[0]
        if amount > 0 and plain != "bundle" and not plain.startswith("node:"):
            found[plain] = max(float(amount), found.get(plain, 0.0))
    return found


class UsageLog:
    """Holds on the object store: one object when one begins, one when it ends."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open: dict[str, Hold] | None = None
        self._known: dict[str, dict[str, Any]] = {}

    def update(self, seen: Mapping[str, Hold], *, now_ms: int) -> int:
        """Write what changed since the last call, or since the last writer; how many objects.

        Raises:
            StoreError: the store is away; what was not written is written by a later call.
        """
        if self._open is None:
            self._open = {hold.id: hold for hold in self.holds() if hold.end_ms is None}
        written = 0
        for ended in [hold for key, hold in self._open.items() if key not in seen]:
            self._put(f"{now_ms:015d}-{ended.id}-released", {"id": ended.id, "t_ms": now_ms})
            del self._open[ended.id]
            written += 1
        for begun in [hold for key, hold in seen.items() if key not in self._open]:
            self._put(f"{begun.start_ms:015d}-{begun.id}-held", asdict(begun))
            self._open[begun.id] = begun
            written += 1
        return written

    def holds(self) -> list[Hold]:
        """Every hold that was ever seen, by its beginning. What was read stays in memory."""
        keys = sorted({info.key for info in self._store.list(PREFIX)} - set(self._known))
        with ThreadPoolExecutor(_READERS) as pool:
            for key, data in zip(keys, pool.map(self._store.get, keys), strict=True):
                self._known[key] = json.loads(data)
        return sorted(_paired(self._known), key=lambda hold: (hold.start_ms, hold.id))

    def _put(self, name: str, content: Mapping[str, Any]) -> None:
        # one that is there was written before, and its answer was lost
        with contextlib.suppress(ObjectExistsError):
            self._store.put(f"{PREFIX}{name}.json", json.dumps(content).encode(), if_absent=True)


def _paired(objects: Mapping[str, dict[str, Any]]) -> Iterator[Hold]:
    """Holds with their ends. The keys begin with the time, so their order is that of events."""
    open_: dict[str, Hold] = {}
    for key in sorted(objects):
        raw = objects[key]
        if key.endswith("-held.json"):
            if earlier := open_.pop(raw["id"], None):
                yield replace(earlier, end_ms=raw["start_ms"])
            open_[raw["id"]] = Hold(**{**raw, "owner": Owner(**raw["owner"])})
        elif held := open_.pop(raw["id"], None):
            yield replace(held, end_ms=raw["t_ms"])
    yield from open_.values()


def rows_of(reply: Row) -> Sequence[Row]:
    """The rows of an answer of Ray's state API."""
    rows = reply.get("data", {}).get("result", {}).get("result", [])
    return rows if isinstance(rows, list) else []
