"""The whole story on one machine: burst, train, lose nodes, finish, serve, count the cost.

    run_demo(root=Path.cwd(), name="demo", keep=False, console=Console())

Each act checks what it claims and raises DemoError when it did not happen. The record of it all
goes to `.rayburst/NAME/demo/report.json` and `report.html`.
"""

from __future__ import annotations

import json
import logging
import platform as machine
import shlex
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import rayburst
from rayburst.dev.embedded import down, up
from rayburst.dev.load import LoadResult, send_all
from rayburst.dev.story import Story
from rayburst.errors import DemoError
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.spec import default_path
from rayburst.job import Job
from rayburst.report.gaps import gap_after
from rayburst.report.history import BEGINS
from rayburst.sdk import Platform, connect

if TYPE_CHECKING:
    from rayburst.train.runlog import RunLogReader

NOTICE_S = 20.0
STEPS = 250
REQUESTS = 300
_LEARNT_BITS = 1.0


def run_demo(*, root: Path, name: str, keep: bool, console: Console) -> dict[str, Any]:
    """Run the demo; returns the report.

    Raises:
        DemoError: a step did not do what it claims. The fleet is ended all the same.
    """
    import ray  # noqa: F401  # it sets up its logger when it is imported

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # the story is told here
    job_file = _checkout() / "jobs" / "train_lm.py"
    story = Story(console, started=time.time())
    with story.act("A fleet on this machine"), story.meanwhile("the fleet to be up"):
        fleet = up(default_path(), root=root, name=name, say=story.say)
    try:
        report = _acts(story, fleet, connect(name, root=root), job_file)
    finally:
        if not keep:
            with story.act("Down"), story.meanwhile("every process to end"):
                ended = down(fleet)
                story.say(f"{ended.processes_ended} processes ended, {ended.ports_closed} ports")
    if not keep and not ended.clean:
        raise DemoError(f"left behind: {ended.processes_left} {ended.ports_left}")
    _verdict(console, report, fleet.path / "demo")
    return report


def _checkout() -> Path:
    """The checkout that holds jobs/ and serve_apps/, which an installed wheel does not."""
    for folder in (Path.cwd(), Path(rayburst.__path__[0]).resolve().parents[1]):
        if (folder / "jobs" / "train_lm.py").is_file():
            return folder
    raise DemoError("the demo runs jobs/train_lm.py: call it from a checkout of rayburst")


def _acts(story: Story, fleet: FleetDir, platform: Platform, job_file: Path) -> dict[str, Any]:
    from rayburst.train.runlog import RunLogReader

    run = f"demo-{int(story.started)}"
    log = RunLogReader(platform.store().child(f"runs/{run}"))
    story.where = lambda: _where(platform, log)
    with story.act("Train: on-prem first, then spot"):
        job = platform.submit(_entrypoint(job_file, run), working_dir=None)
        story.say(f"job {job.id}: {shlex.join(['python', 'jobs/train_lm.py', '--run', run])}")
        _until_burst(story, platform, job, log)
    with story.act("Lose two spot nodes"):
        _lose(story, platform, job, log, kind="notice", notice_s=NOTICE_S)
        _lose(story, platform, job, log, kind="cut", notice_s=0.0)
    with story.act("Finish"):
        training = _until_done(story, job, log)
        story.say(
            f"validation {training['val_bits_per_byte']:.2f} bits per byte, "
            f"order-0 entropy {training['order0_bits_per_byte']:.2f}"
        )
    with story.act("Serve the model"):
        load = _serve(story, platform, fleet, run)
    with story.act("Count"):
        report = _report(story, platform, job, run, training, load)
        _write(fleet, platform, log, report)
    return report


def _entrypoint(job_file: Path, run: str) -> str:
    options = {"--preset": "micro", "--workers": "1:4", "--run": run, "--steps": str(STEPS)}
    options["--checkpoint-every"] = "10"  # two nodes are taken within minutes
    words = [word for pair in options.items() for word in pair]
    return shlex.join(["python", str(job_file), *words])


def _where(platform: Platform, log: RunLogReader) -> str:
    """Where things stand: nodes by market and state, the newest step."""
    counts: dict[str, int] = {}
    for node in platform.fleet().nodes:
        key = f"{node.market} {node.state}"
        counts[key] = counts.get(key, 0) + 1
    parts = [f"{count} {key}" for key, count in sorted(counts.items())]
    if steps := [r for r in log.read() if r["kind"] == "step"]:
        last = steps[-1]
        parts.append(f"step {last['step']} of {STEPS}, {last['world']} workers")
    return f" ({'; '.join(parts)})" if parts else ""


def _check(job: Job) -> None:
    if (status := job.status) in ("FAILED", "STOPPED"):
        tail = "\n".join(job.logs().splitlines()[-15:])
        raise DemoError(f"the training job is {status}: {job.message}\n{tail}")


def _hosts_training(log: RunLogReader) -> dict[str, str]:
    """Hosts of the newest worker group that have finished a step, with their markets."""
    hosts: dict[int, tuple[str, str]] = {}
    world = 0
    stepped: set[int] = set()
    for record in log.read():
        if record["kind"] in BEGINS:
            if record["world"] != world:
                hosts, stepped, world = {}, set(), record["world"]
            hosts[record["rank"]] = (record["host"], record["market"])
            stepped.discard(record["rank"])
        elif record["kind"] == "step":
            stepped.add(record["rank"])
    return {host: market for rank, (host, market) in hosts.items() if rank in stepped}


def _until_burst(story: Story, platform: Platform, job: Job, log: RunLogReader) -> None:
    shown: set[str] = set()

    def both_markets() -> dict[str, str] | None:
        _check(job)
        for node in platform.fleet().nodes:
            if node.node not in shown and node.state == "up":
                shown.add(node.node)
                story.say(f"node {node.node} ({node.market}) is up")
        hosts = _hosts_training(log)
        markets = list(hosts.values())
        return hosts if "on-prem" in markets and markets.count("spot") >= 2 else None

    hosts = story.wait("training on on-prem and spot nodes", both_markets, timeout_s=300)
    story.say(f"training runs on {len(hosts)} nodes: {', '.join(sorted(hosts))}")


def _lose(
    story: Story,
    platform: Platform,
    job: Job,
    log: RunLogReader,
    *,
    kind: str,
    notice_s: float,
) -> None:
    def victim() -> str | None:
        _check(job)
        living = {n.node for n in platform.fleet().nodes if n.state == "up"}
        spot = [h for h, market in _hosts_training(log).items() if market == "spot"]
        return next((host for host in sorted(spot) if host in living), None)

    node = story.wait("a spot node that trains", victim, timeout_s=120)
    t = time.time()
    platform.interrupt(node, notice_s=notice_s, why=f"demo: {kind}")
    how = f"gets {notice_s:.0f} s notice" if notice_s else "loses its power without a word"
    story.say(f"[yellow]{node} {how}[/]")

    def gone() -> bool | None:
        return None if any(n.node == node for n in platform.fleet().nodes) else True

    story.wait(f"{node} to be gone", gone, timeout_s=notice_s + 30)

    def back() -> Any:
        _check(job)
        return gap_after(log.read(), node=node, t=t)

    gap = story.wait("training to go on without it", back, timeout_s=150)
    story.say(
        f"training goes on with {gap.world_after} workers: {gap.gap_s:.1f} s without a step, "
        f"{gap.steps_lost} steps done again"
    )
    story.interruptions.append(
        {"kind": kind, "node": node, "notice_s": notice_s, "t": t}
        | {"gap_s": gap.gap_s, "steps_lost": gap.steps_lost}
    )


def _until_done(story: Story, job: Job, log: RunLogReader) -> dict[str, Any]:
    last = {"step": -1}

    def done() -> bool | None:
        _check(job)
        steps = [r for r in log.read() if r["kind"] == "step"]
        if steps and steps[-1]["step"] >= last["step"] + 50:
            last["step"] = steps[-1]["step"]
            story.say(
                f"step {last['step']} of {STEPS}, loss {steps[-1]['loss']:.2f}, "
                f"{steps[-1]['world']} workers"
            )
        return True if job.status == "SUCCEEDED" else None

    story.wait("the last step", done, timeout_s=420)
    records = log.read()
    end = next((r for r in reversed(records) if r["kind"] == "end"), None)
    if end is None:
        raise DemoError("the job succeeded but its run log has no end")
    return {
        "steps": end["step"],
        "world_sizes": sorted({r["world"] for r in records if r["kind"] == "step"}),
        "val_bits_per_byte": end["val_bits_per_byte"],
        "order0_bits_per_byte": end["order0_bits_per_byte"],
    }


def _serve(story: Story, platform: Platform, fleet: FleetDir, run: str) -> LoadResult:
    state = fleet.read_state()
    with story.meanwhile("the model to be healthy"):
        deployed = platform.deploy(
            "serve_apps.lm:app",
            args={"checkpoint": f"{state.store_uri}/runs/{run}"},
            working_dir=_checkout(),
        )
    story.say(f"deployed: {deployed.status}; {REQUESTS} concurrent requests follow")
    bodies = [
        {"prompt": f"def add_{i}(a, b):\n    return", "max_new_tokens": 8, "seed": i}
        for i in range(REQUESTS)
    ]
    with story.meanwhile("the answers"):
        load = send_all(f"{state.serve_url}/generate", bodies, connections=REQUESTS, timeout_s=60)
    story.say(
        f"{load.requests} requests, {load.errors} errors, p50 {load.p50_ms:.0f} ms, "
        f"p99 {load.p99_ms:.0f} ms, {load.requests_per_s:.0f}/s"
    )
    if load.errors:
        raise DemoError(f"{load.errors} of {load.requests} requests failed: {load.first_error}")
    return load


def _report(
    story: Story,
    platform: Platform,
    job: Job,
    run: str,
    training: dict[str, Any],
    load: LoadResult,
) -> dict[str, Any]:
    bill = platform.cost(since=story.started)
    seconds = {usage.market: usage.seconds for usage in bill.by_market}
    serving = asdict(load)
    serving.pop("first_error")
    return {
        "job": {"status": job.status, "id": job.id, "run": run},
        "training": training,
        "interruptions": story.interruptions,
        "fleet": {
            "node_seconds": {
                "on_prem": seconds.get("on-prem", 0.0),
                "spot": seconds.get("spot", 0.0),
                "on_demand": seconds.get("on-demand", 0.0),
            }
        },
        "cost": {"usd": bill.usd, "usd_if_on_demand": bill.usd_if_on_demand},
        "serving": serving,
        "started": story.started,
        "wall_s": time.time() - story.started,
        "phases": story.phases,
        "versions": {
            "rayburst": rayburst.__version__,
            "ray": version("ray"),
            "torch": version("torch"),
            "python": machine.python_version(),
        },
    }


def _write(fleet: FleetDir, platform: Platform, log: RunLogReader, report: dict[str, Any]) -> None:
    from rayburst.report.demo import render

    folder = fleet.path / "demo"
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    events = [asdict(e) for e in platform.events() if e.t >= report["started"]]
    html = render(report, node_events=events, run_log=log.read())
    (folder / "report.html").write_text(html)


def _verdict(console: Console, report: dict[str, Any], folder: Path) -> None:
    training = report["training"]
    learnt = training["order0_bits_per_byte"] - training["val_bits_per_byte"]
    if learnt < _LEARNT_BITS:
        raise DemoError(
            f"the model learnt too little: {learnt:.2f} bits per byte below the order-0 entropy, "
            f"expected at least {_LEARNT_BITS}"
        )
    cost = report["cost"]
    console.print(
        f"\n[bold green]Done in {report['wall_s']:.0f} s.[/] Two nodes lost, training finished "
        f"{learnt:.2f} bits per byte below order-0 entropy, {report['serving']['requests']} "
        f"requests served.\nCost {cost['usd']:.3f} USD; all on-demand "
        f"{cost['usd_if_on_demand']:.3f} USD.\nLook at {folder / 'report.html'}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_demo(root=Path.cwd(), name="demo", keep=False, console=Console(file=sys.stdout))
