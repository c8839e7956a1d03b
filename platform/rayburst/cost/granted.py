"""Grants as the ledger takes them: whole hosts, whether their job works on them or not.

    holds = granted_holds(decision_log.read())

Pure. The planner reserves hosts for a job before the job starts on them and until it has left; what
its workers hold, as Ray reports it, is a part of that. One host granted to two jobs at once (one
moves in while the other saves) is halved, as the planner's book does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rayburst.cost.entries import Owner
from rayburst.cost.facts import Hold
from rayburst.cost.spent import DEFAULT_TENANT
from rayburst.fleet.decisions import DecisionEvent

_OF_A_JOB = ("grant", "pays", "end")


def granted_holds(decisions: Iterable[DecisionEvent]) -> Iterator[Hold]:
    """One hold a job and host, from the decision that named the host to the one that does not."""
    since: dict[tuple[str, str], Hold] = {}
    told = sorted((d for d in decisions if d.kind in _OF_A_JOB), key=lambda d: d.t)
    for decision in told:
        at, job = round(decision.t * 1000), decision.subject
        for key in [key for key in since if key[0] == job and key[1] not in decision.pays]:
            yield replace(since.pop(key), end_ms=at)
        for host in decision.pays:
            since.setdefault((job, host), _begun(decision, host, at))
    yield from since.values()


def _begun(decision: DecisionEvent, host: str, at: int) -> Hold:
    tenant = "" if decision.tenant == DEFAULT_TENANT else decision.tenant
    return Hold(
        id=f"grant-{decision.subject}-{host}-{at}",
        node=host,
        owner=Owner(job=decision.subject, tenant=tenant),
        start_ms=at,
        is_reserved=True,
    )
