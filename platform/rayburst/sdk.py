"""What a notebook and the command line stand on: a connection to one fleet.

    import rayburst as rb
    p = rb.connect()                                     # the fleet that is up here
    job = p.submit("python jobs/train_lm.py --preset micro")
    job.wait()
    print(job.logs()[-500:]); p.fleet(); p.cost()

Jobs and Serve go over Ray's own REST APIs; nodes, events and cost come from the fleet's folder and
its object store, so they need a fleet of this machine. Every object prints as a table.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from rayburst.cost.bill import Bill, make_bill, on_demand_price
from rayburst.cost.entries import Entry
from rayburst.cost.ledger import Ledger
from rayburst.cost.reader import FactReader
from rayburst.cost.statement import Statement, make_statement
from rayburst.errors import (
    FleetBrokenError,
    FleetNotFoundError,
    JobError,
    NodeNotFoundError,
    RunNotFoundError,
)
from rayburst.fleet.decisions import DecisionEvent, DecisionLog
from rayburst.fleet.events import EventLog, NodeEvent
from rayburst.fleet.files import read_json
from rayburst.fleet.jobs import GivenTerms, to_metadata
from rayburst.fleet.layout import TUNNEL, FleetDir, store_environment
from rayburst.fleet.lines import JobLine, JobQueue
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.base import Host, Notice
from rayburst.fleet.serving import listens_on
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.status import FleetStatus, read_status
from rayburst.fleet.store import open_store
from rayburst.job import Job
from rayburst.runtime import runtime_env
from rayburst.training_run import TrainingRun

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from rayburst.checkpoint.store import ObjectStore
    from rayburst.cost.forecast import Forecast
    from rayburst.models.registry import ModelRegistry
    from rayburst.report.fleet_page import FleetStory
    from rayburst.serve.deploy import DeployStatus


def connect(
    name: str | None = None,
    *,
    address: str | None = None,
    token: str | None = None,
    root: str | Path | None = None,
) -> Platform:
    """Connect to a fleet.

    Args:
        name: the fleet's name; may be left out when one fleet is up. One that `ray up` started
            from this machine is reached through `ray dashboard`, which must run.
        address: a Ray dashboard such as "http://head:8265" instead of a fleet of this machine.
        token: Ray's token for `address`; by default what RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH say.
        root: where to look for `.rayburst/`; by default here and in the folders above.

    Raises:
        FleetNotFoundError: no fleet is up, or several are and none was named.
    """
    if address is not None:
        return Platform(dashboard_url=address, token=token or _token_of_environment())
    fleet = find_fleet(name or os.environ.get("RAYBURST_FLEET"), root=root)
    if fleet.was_launched_from_here:
        return Platform(dashboard_url=TUNNEL, token=fleet.ship_token_file.read_text().strip())
    state = fleet.read_state()
    return Platform(dashboard_url=state.dashboard_url, token=fleet.token(), fleet=fleet)


def find_fleet(name: str | None = None, *, root: str | Path | None = None) -> FleetDir:
    """The folder of the fleet that is up, from `root` (default: here) upwards."""
    start = Path(root or ".").resolve()
    for folder in (start, *start.parents, Path.home()):
        fleets = sorted((folder / ".rayburst").glob("*/state.json"))
        if name is not None:
            if (folder / ".rayburst" / name).is_dir():
                return FleetDir(folder / ".rayburst" / name)
        elif len(fleets) == 1:
            return FleetDir(fleets[0].parent)
        elif fleets:
            names = ", ".join(file.parent.name for file in fleets)
            raise FleetNotFoundError(
                f"several fleets are up in {folder}: {names}; name one: "
                f"`rb.connect({fleets[0].parent.name!r})`"
            )
    known = f" named {name!r}" if name else ""
    raise FleetNotFoundError(
        f"no fleet{known} is up in {start} or above; start one with `rayburst up`, or give an "
        f'address: `rb.connect(address="http://head:8265", token=...)`'
    )


def _token_of_environment() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path).read_text().strip()
    return None


class Platform:
    """One connected fleet. Make it with `rb.connect()`."""

    def __init__(
        self, *, dashboard_url: str, token: str | None = None, fleet: FleetDir | None = None
    ) -> None:
        self.dashboard_url = dashboard_url
        self._token = token
        self._fleet = fleet

    def __repr__(self) -> str:
        name = f"{self._fleet.name!r} at " if self._fleet else ""
        return f"<rayburst fleet {name}{self.dashboard_url}>"

    def _repr_html_(self) -> str:
        return f"<p>rayburst fleet <b>{self.name}</b> at <code>{self.dashboard_url}</code></p>"

    @property
    def name(self) -> str:
        """The fleet's name; for a bare address that address."""
        return self._fleet.name if self._fleet else self.dashboard_url

    # jobs

    def submit(
        self,
        entrypoint: str,
        *,
        working_dir: str | Path | None = ".",
        env: Mapping[str, str] | None = None,
        pip: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        submission_id: str | None = None,
        **terms: Unpack[GivenTerms],
    ) -> Job:
        """Run a shell command as a Ray job, with the rayburst package and `working_dir` on board.

        Args:
            terms: what the planner should know: `deadline="6h"` (from now, or a time with its
                zone), `budget="5 USD"`, `tenant`, `priority`, `floor` (workers), `span` ("zone" or
                "any"), `market` ("auto", "on-prem", "spot", "on-demand").

        Raises:
            JobError: Ray did not take the job, or `working_dir` is no folder.
            SpecError: a term cannot be read.
        """
        known = to_metadata(terms, time.time())
        client = self._jobs()
        try:
            job_id = client.submit_job(
                entrypoint=entrypoint,
                runtime_env=runtime_env(working_dir=working_dir, env=env, pip=pip),
                metadata={**(metadata or {}), **known},
                submission_id=submission_id,
            )
        except (RuntimeError, ValueError) as error:
            raise JobError(f"Ray did not take the job {entrypoint!r}: {error}") from error
        return Job(job_id, client)

    def train(
        self,
        fn: Callable[..., Any],
        config: Mapping[str, Any] | None = None,
        *,
        run: str,
        workers: int | tuple[int, int] = 1,
        storage: str | None = None,
        use_gpu: bool = False,
        env: Mapping[str, str] | None = None,
        pip: Sequence[str] | None = None,
        **terms: Unpack[GivenTerms],
    ) -> Job:
        """Train `fn(config)`, a function of this notebook, elastically as a Ray job.

        Args:
            fn: a training function; with `rayburst.train.run.start_run` it outlives interruptions.
            run: the run's name; the same name goes on from its newest checkpoint.
            workers: how many, or the least and the most.
            storage: where runs are kept; by default in the fleet's object store.
            terms: as `submit` takes them: `deadline`, `budget`, `tenant` and so on.

        Raises:
            JobError: the function cannot be sent to the cluster, or Ray did not take the job.
        """
        from rayburst.train.submitted import ENTRYPOINT, pack

        span = (workers, workers) if isinstance(workers, int) else workers
        settings = {"run": run, "workers": span, "storage": storage, "use_gpu": use_gpu}
        with tempfile.TemporaryDirectory(prefix="rayburst-train-") as folder:
            pack(fn, config or {}, settings, Path(folder))
            return self.submit(ENTRYPOINT, working_dir=folder, env=env, pip=pip, **terms)

    def job(self, job_id: str) -> Job:
        """A job that was submitted before, by whatever way."""
        job = Job(job_id, self._jobs())
        _ = job.status
        return job

    def jobs(self) -> list[Job]:
        """All submitted jobs, newest first."""
        client = self._jobs()
        found = [d for d in client.list_jobs() if d.submission_id]
        found.sort(key=lambda details: details.start_time or 0, reverse=True)
        return [Job(details.submission_id, client) for details in found]

    def _jobs(self) -> JobSubmissionClient:
        from ray.job_submission import JobSubmissionClient

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            return JobSubmissionClient(self.dashboard_url, headers=headers)
        except (ConnectionError, RuntimeError) as error:
            raise FleetBrokenError(
                f"Ray's head at {self.dashboard_url} does not answer ({type(error).__name__}); see "
                f"`rayburst status`; `rayburst down` and `rayburst up` start it afresh"
            ) from error

    # fleet

    def spec(self) -> FleetSpec:
        """The fleet file as it was when the fleet came up."""
        return self._local("spec()").spec()

    def fleet(self) -> FleetStatus:
        """Nodes by pool and market, pending demand, the agent's last decisions."""
        return read_status(self._local("fleet()"), now=time.time())

    def queue(self) -> JobQueue:
        """Jobs that have not ended: who runs where, who waits and for what."""
        raw = read_json(self._local("queue()").agent_file) or {}
        return JobQueue([JobLine(**line) for line in raw.get("jobs", [])], now=time.time())

    def decisions(self, last: int | None = None) -> list[DecisionEvent]:
        """What the planner decided, oldest first: all, or the `last` ones."""
        fleet = self._local("decisions()")
        return DecisionLog(self.store(), spool=fleet.spool).last(last)

    def events(self) -> list[NodeEvent]:
        """Every node event since the fleet's object store exists, oldest first."""
        fleet = self._local("events()")
        return EventLog(self.store(), spool=fleet.spool).read()

    @overload
    def cost(self, *, since: float | None = None) -> Bill: ...

    @overload
    def cost(self, *, by: str, since: float | None = None) -> Statement: ...

    def cost(self, *, by: str | None = None, since: float | None = None) -> Bill | Statement:
        """What the nodes cost, from the event log; with `since` (unix seconds) only later nodes.

        With `by` ("job", "tenant", "model", "purpose", "node", "pool", "market", "day") who paid
        for it and what for, from the ledger; `since` then counts from that hour on.

        Raises:
            PriceError: `by` is none of these.
        """
        if by is not None:
            return make_statement(self.ledger(since=since), by=by)
        spec = self._local("cost()").spec()
        events = self.events()
        if since is not None:
            later = {e.node for e in events if e.kind == "requested" and e.t >= since}
            events = [e for e in events if e.node in later]
        return make_bill(events, now=time.time(), on_demand_usd_per_hour=on_demand_price(spec))

    def plan(
        self,
        work: str | None = None,
        *,
        run: str | None = None,
        steps: int | None = None,
        changeover: str | None = None,
        deadline: str | None = None,
        budget: str | None = None,
        nodes: int = 1,
        seed: int = 0,
    ) -> Forecast:
        """When a job will end and what it will cost, by market, at this fleet's prices.

        Args:
            work: running time without pauses, as "48h"; or `run` and the `steps` it is to do.
            changeover, deadline, budget: as "0.2h", "60h", "120 USD".
        """
        import numpy as np

        from rayburst.cost import plans
        from rayburst.cost.forecast import forecast
        from rayburst.train import runlog

        terms = plans.terms_of(self._local("plan()").spec())
        if run is None:
            needs = plans.needs_of(work, changeover)
        else:
            records = runlog.read(self.store(), run)
            needs = plans.measured_needs(
                records, run=run, steps=steps, work=work, changeover=changeover
            )
        needs = plans.limited(needs, nodes=nodes, deadline=deadline, budget=budget)
        return forecast(needs, terms, plans.believe(None), rng=np.random.default_rng(seed))

    def ledger(self, *, since: float | None = None) -> list[Entry]:
        """Every line of the ledger up to now, by hour: who had which node, and what for."""
        fleet = self._local("ledger()")
        store = self.store()
        facts = FactReader(store, spool=fleet.spool).read()
        entries = Ledger(store).entries(facts, now_ms=round(time.time() * 1000))
        return [e for e in entries if since is None or e.line.end_ms > since * 1000]

    def timeline(self, *, by: str = "job") -> FleetStory:
        """The fleet over time: hosts by market, dollars, nodes, and who paid, summed by `by`.

        A DataFrame (`frame()`), a page (`html()`; it shows itself in a notebook) and JSON.
        """
        from rayburst.report.fleet_page import tell_fleet

        return tell_fleet(
            self.name,
            self.events(),
            statement=self.cost(by=by),
            now=time.time(),
            on_demand_usd_per_hour=on_demand_price(self.spec()),
        )

    def run(self, name: str) -> TrainingRun:
        """A training run of the fleet's store, by its name: `p.run("first").report()`.

        Raises:
            RunNotFoundError: no run of that name; the message lists those there are.
        """
        self._local("run()")
        known = self.store().folders("runs")
        if name not in known:
            raise RunNotFoundError(f"no run {name!r}; runs here: {', '.join(known) or 'none'}")
        return TrainingRun(name, self)

    def interrupt(self, node: str, *, notice_s: float = 30.0, why: str = "interrupted") -> Notice:
        """Give a node notice and take it away at the deadline; `notice_s=0` is a power cut.

        Returns at once; the node goes when the deadline comes.

        Raises:
            NodeNotFoundError: no living node of that name; the message lists them.
        """
        fleet = self._local("interrupt()")
        pools = open_pools(fleet)
        living = [host for pool in pools.values() for host in pool.hosts() if host.lives]
        host = _pick(living, node)
        now = time.time()
        notice = Notice(given_at=now, deadline=now + notice_s, why=why)
        if notice_s <= 0:
            pools[host.pool].terminate(host.id, why=f"power cut: {why}")
        else:
            pools[host.pool].notify(host.id, notice)
        return notice

    def market(self, pool: str, *, hosts: int | None = None, notice_s: float = 30.0) -> list[str]:
        """Let a pool's market have only so many hosts; None is all. Returns the hosts it takes.

        Raises:
            PoolError: no pool of this name.
        """
        from rayburst.dev.market import set_market

        fleet = self._local("market()")
        return set_market(fleet, pool, hosts=hosts, notice_s=notice_s, now=time.time())

    def store(self) -> ObjectStore:
        """The fleet's object store."""
        return open_store(self._local("store()"))

    def environment(self) -> dict[str, str]:
        """Environment variables with which S3 clients reach the fleet's object store."""
        fleet = self._local("environment()")
        return store_environment(fleet, fleet.read_state())

    # serving

    @property
    def models(self) -> ModelRegistry:
        """Model versions on the fleet's store: `p.models.publish("first@300", name="gpt")`."""
        from rayburst.models.registry import ModelRegistry

        return ModelRegistry(self.store())

    def deploy(
        self,
        app: str,
        *,
        name: str = "default",
        route_prefix: str = "/",
        args: Mapping[str, Any] | None = None,
        working_dir: str | Path | None = ".",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 180.0,
    ) -> DeployStatus:
        """Deploy a Serve application, or a version of a model, and wait until it is healthy.

        Args:
            app: import path such as "serve_apps.lm:app"; or a version such as "gpt@3" or
                "gpt@production", which is proven first.
            args: arguments of the application's builder; of a version those of serve_apps/lm.py.
                With `{"follow": True}` an alias is followed: what is promoted later answers
                without another deploy, and `rayburst models canary` tries candidates.

        Raises:
            DeployError: it did not become healthy; holds Serve's own message.
            VersionError: there is no such version, or it is not as it was published.
        """
        if "@" in app and ":" not in app:
            version = self.models.verify(app)
            follows = bool((args or {}).get("follow"))  # then replicas look where the alias points
            args = {"version": app if follows else version.ref, **(args or {})}
            app = "rayburst.serve.lm_app:app"
        from rayburst.serve._ray_hooks import upload_local_folders
        from rayburst.serve.deploy import deploy

        fleet = self._local("deploy()")
        state = fleet.read_state()
        packages = upload_local_folders(self._jobs(), runtime_env(working_dir=working_dir, env=env))
        return deploy(
            self.dashboard_url,
            self._token,
            app={
                "name": name,
                "route_prefix": route_prefix,
                "import_path": app,
                "args": dict(args or {}),
                "runtime_env": packages,
            },
            http={
                "host": listens_on(fleet.spec(), state.head_address),
                "port": state.ports["serve"],
            },
            timeout_s=timeout_s,
            clock=time.monotonic,
            sleep=time.sleep,
        )

    def undeploy(self, name: str = "default", *, timeout_s: float = 60.0) -> None:
        """Take a Serve application away and wait until it is gone; others stay.

        Raises:
            DeployError: there is none of that name, or it is still there after `timeout_s`.
        """
        from rayburst.serve.deploy import delete

        self._local("undeploy()")
        delete(self.dashboard_url, self._token, name=name, timeout_s=timeout_s)

    def _local(self, call: str) -> FleetDir:
        if self._fleet is None:
            raise FleetNotFoundError(
                f"{call} needs a fleet of this machine; this connection knows only the address "
                f"{self.dashboard_url}. Connect with `rb.connect()` where `rayburst up` was called"
            )
        return self._fleet


def _pick(living: Sequence[Host], node: str) -> Host:
    for host in living:
        if node in (host.id, host.address):
            return host
    known = ", ".join(host.id for host in living) or "none"
    raise NodeNotFoundError(f"no living node {node!r}; living nodes: {known}")
