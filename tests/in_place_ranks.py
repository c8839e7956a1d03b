"""A group of plain gloo processes that is rebuilt in place, steered by the code of the controller.

No Ray: the rendezvous runs in the process of the test, members reach it over a pipe each, and a
loop of a few lines does what `inplace/_ray_hooks.py` does with actors. So whole schedules of
notices, power cuts and joins take seconds, and a fault can be placed within a change.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, fields
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from dead_link import fall_silent
from support import preloaded
from training_ranks import Case, learn

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import PeerLostError
from rayburst.train.inplace import process_group
from rayburst.train.inplace.messages import Arrival, Call, Look, Plan, Pulse, Seat
from rayburst.train.inplace.process_group import ProcessGroup
from rayburst.train.inplace.rendezvous import Rendezvous
from rayburst.train.inplace.roster import InPlaceOptions, Local
from rayburst.train.inplace.steering import Member, Moment, Steering
from rayburst.train.liveness import unreachable
from rayburst.train.losses import LossBudget, LossOptions
from rayburst.train.membership import Membership
from rayburst.train.place import Place
from rayburst.train.run import Run, RunOptions
from rayburst.train.runlog import read_folder
from rayburst.train.surroundings import Surroundings

LEFT = 3
_LIMIT_S = 240.0


@dataclass(frozen=True)
class Event:
    """Once some member has finished `step`: `cut` members by rank, `stop` them (they hang),
    `unplug` them (their processes live, and nothing reaches them), give them `notice`, or `join`
    more of them. Within the change to `generation` a member dies at its rank: `build`: before the
    others know that it is there, `connect`: when they wait for it.
    """

    what: Literal["cut", "stop", "unplug", "notice", "join", "build", "connect"]
    step: int = 0
    ranks: tuple[int, ...] = (0,)
    generation: int = 0


class PipeBoard:
    """A member's way to the rendezvous: one pipe for heartbeats, one for arrivals.

    Once the file `unplugged` is there nothing reaches this process any more.
    """

    def __init__(self, pipes: tuple[Connection, Connection], unplugged: Path) -> None:
        self._watching, self._arriving = pipes
        self._unplugged = unplugged

    def watch(self, member: str, seen: int, pulse: Pulse) -> Call:
        if self._unplugged.exists():
            fall_silent()
            threading.Event().wait()
        return _ask(self._watching, "watch", member, seen, pulse)  # type: ignore[no-any-return]

    def arrive(self, member: str, arrival: Arrival) -> Plan:
        return _ask(self._arriving, "arrive", member, arrival)  # type: ignore[no-any-return]

    def drop(self, member: str) -> None:
        _ask(self._watching, "drop", [member])


def _ask(pipe: Connection, *call: Any) -> Any:
    try:
        pipe.send(call)
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise PeerLostError(f"the rendezvous is gone: {error}") from error


class DyingGroup(ProcessGroup):
    """Ends its process within a change, where an event says so."""

    events: tuple[Event, ...] = ()

    def build(self, seat: Seat, **options: Any) -> None:
        self._die("build", seat)
        super().build(seat, **options)

    def _connect(self, store: Any, seat: Seat) -> None:
        self._die("connect", seat)
        super()._connect(store, seat)

    def _die(self, what: str, seat: Seat) -> None:
        for event in self.events:
            is_now = event.what == what and event.generation == seat.generation
            if is_now and seat.rank in event.ranks:
                os._exit(9)


def unplugged(folder: Path, name: str) -> Path:
    return folder / f"unplugged-{name}"


def leave(reason: str) -> NoReturn:
    os._exit(LEFT)


def member(table: Words, name: str, pipes: tuple[Connection, Connection]) -> None:
    """One process: what a user writes, in a group of this module."""
    os.environ.update(table.env)
    case, folder = table.case, table.folder
    torch.set_num_threads(1)
    group = DyingGroup(host="127.0.0.1", timeout_s=60)
    group.events = tuple(e for e in table.events if e.generation)
    if any(e.what == "connect" for e in group.events):
        process_group._BUILD_TIMEOUT = timedelta(seconds=600)  # longer than any test
    generation = [0]

    def adopt(plan: Plan, seat: Seat) -> Place:
        generation[0] = seat.generation
        return Place(rank=seat.rank, world=seat.world, host=name)

    membership = Membership.of_group(
        Place(rank=0, world=1, host=name),
        PipeBoard(pipes, unplugged(folder, name)),
        name,
        group=group,
        adopt=adopt,
    )
    where = Surroundings(
        membership=membership,
        folder=ObjectStore.open(table.uri or str(folder / "run")),
        report=lambda metrics, saved: None,
        leave=leave,
        publish=lambda progress: None,
    )
    options = RunOptions(**case.options, checkpoint_every_s=case.checkpoint_every_s)
    run = Run(options, where, config={}, measure=lambda is_last: {})
    trained_on = folder / f"samples-{name}.jsonl"

    def turn(samples: list[int]) -> None:
        time.sleep(0.02 + table.slow_s.get(name, 0.0))  # so that events can happen between steps
        line = {"step": run.steps_done + 1, "generation": generation[0], "samples": samples}
        with trained_on.open("a") as file:
            file.write(f"{json.dumps(line)}\n")

    learn(run, case, turn)
    os._exit(0)


@dataclass(kw_only=True)
class Words:
    """What the test tells every member. `slow_s`: what one needs more for each of its parts.

    `uri`: of the run's folder, where it is not below `folder`; `env` opens it.
    """

    case: Case
    folder: Path
    events: list[Event]
    uri: str = ""
    env: dict[str, str] = field(default_factory=dict)
    slow_s: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Table(Words):
    """The test's side: rendezvous, processes, and the controller's loop.

    `watch` is called in each turn of the loop.
    """

    least: int = 1
    most: int = 4
    hung_after_s: float = 60.0
    watch: Callable[[Table], None] = lambda table: None
    processes: dict[str, Any] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    joiners: list[str] = field(default_factory=list)
    draining: dict[str, float | None] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.servers: list[threading.Thread] = []
        self.is_closing = False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.rendezvous = Rendezvous(wait_s=0.2)
        self.context = preloaded()
        self.steering = Steering(
            tell=lambda method, what: self.do(getattr(self.rendezvous, method)(what)),
            unreachable=lambda addresses: unreachable(addresses, 1.0),
            options=InPlaceOptions(
                leave_margin_s=0.5, suspect_after_s=2, hung_after_s=self.hung_after_s
            ),
            budget=LossBudget(LossOptions(rapid_losses=100)),
            least=self.least,
            most=self.most,
        )

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def start(self) -> str:
        name = f"m{len(self.processes)}"
        ours, theirs = zip(self.context.Pipe(), self.context.Pipe(), strict=True)
        words = Words(**{f.name: getattr(self, f.name) for f in fields(Words)})
        process = self.context.Process(target=member, args=(words, name, theirs))
        process.start()
        for end in theirs:
            end.close()
        for end in ours:
            self.servers.append(threading.Thread(target=self.serve, args=[end], daemon=True))
            self.servers[-1].start()
        self.processes[name] = process
        return name

    def serve(self, pipe: Connection) -> None:
        try:
            while True:
                method, *arguments = pipe.recv()
                pipe.send(self.do(getattr(self.rendezvous, method)(*arguments)))
        except (EOFError, OSError, CancelledError):
            return
        except RuntimeError:  # a condition whose waiter is cancelled twice, in Python 3.11
            if not self.is_closing:
                raise

    def attempts(self) -> list[dict[str, Any]]:
        """What the members have begun to train on: a line for each part of a step."""
        lines = [line for f in self.folder.glob("samples-*") for line in f.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def steps_done(self) -> int:
        return max((line["step"] for line in self.attempts()), default=1) - 1

    def samples_by_step(self) -> dict[int, list[int]]:
        """What each step that counts was trained on: by the last group that began it."""
        attempts = self.attempts()
        last: dict[int, int] = {}
        for line in attempts:
            last[line["step"]] = max(last.get(line["step"], 0), line["generation"])
        found: dict[int, list[int]] = {step: [] for step in last}
        for line in attempts:
            if line["generation"] == last[line["step"]]:
                found[line["step"]] += line["samples"]
        return found

    def seen(self, name: str) -> Member:
        code = self.processes[name].exitcode
        return Member(
            id=name, node=name, host=name, has_died=code not in (None, 0), has_returned=code == 0
        )

    def act(self) -> None:
        """Let the events happen whose step has come; a loss of all waits for somebody to join."""
        done = self.steps_done()
        for event in [e for e in self.events if not e.generation and e.step <= done]:
            victims = [self.members[r] for r in event.ranks if r < len(self.members)]
            going = {*victims, *self.draining, *self.lost}
            if event.what != "join" and self.joiners and going >= set(self.members):
                continue
            self.events.remove(event)
            self.told.append(event.what)
            for name in victims:
                if event.what == "cut":
                    self.processes[name].kill()
                elif event.what == "stop":
                    os.kill(self.processes[name].pid, signal.SIGSTOP)
                elif event.what == "unplug":
                    unplugged(self.folder, name).touch()
                elif event.what == "notice":
                    self.draining[name] = time.time() + 0.3
            if event.what == "join":
                self.joiners += [self.start() for _ in event.ranks]

    def play(self, world: int) -> list[dict[str, Any]]:
        """Train to the end with `world` members at first; the run's log."""
        self.members = [self.start() for _ in range(world)]
        end_s = time.monotonic() + _LIMIT_S
        try:
            while not all(self.processes[m].exitcode == 0 for m in self.members):
                assert time.monotonic() < end_s, f"{self.members}, {self.steering.handed_over}"
                if self.steering.generation:
                    self.act()
                self.turn()
                self.watch(self)
                assert not self.steering.handed_over, self.steering.handed_over
                time.sleep(0.03)
        finally:
            for process in self.processes.values():
                process.kill()
                process.join()
            self.close()
        return read_folder(ObjectStore.open(self.uri or str(self.folder / "run")))

    def close(self) -> None:
        async def cancel() -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self.is_closing = True
        self.do(cancel())
        for server in self.servers:
            server.join(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def turn(self) -> None:
        look: Look = self.do(self.rendezvous.look())
        outcome = self.steering.steer(
            Moment(
                look=look,
                members=[self.seen(name) for name in self.members],
                joiners=[self.seen(n) for n in self.joiners if self.processes[n].exitcode is None],
                draining=self.draining,
                now_s=time.time(),
                monotonic_s=time.monotonic(),
            )
        )
        for name in outcome.lost:
            self.lost[name] = self.steering.lost[name]
            self.processes[name].kill()
        if outcome.forms is not None:
            order = list(outcome.forms.wanted)
            places = {n: Local(rank=i, world=len(order), node_rank=0) for i, n in enumerate(order)}
            self.steering.form(order, places, outcome.forms)
            self.members = order
            self.joiners = [name for name in self.joiners if name not in order]


def schedule(seed: int, steps: int, count: int = 5) -> list[Event]:
    """A random history: at least `count` events, two losses at once and one in a change among them.

    Joins are as many as losses, so that somebody is always left.
    """
    dice = random.Random(seed)
    at = sorted(dice.sample(range(1, steps - 2), count))
    events = [Event("join", at[0], (0, 0))]
    for step in at[1:]:
        what = dice.choice(["cut", "notice", "join"])
        ranks = dice.choice([(0,), (1,), (0, 1)])
        events.append(Event(what, step, ranks))  # type: ignore[arg-type]
        if what != "join":
            events.append(Event("join", step, ranks))
    return events
