"""torch's default process group, broken and built again with other members.

    group = ProcessGroup(host="10.0.0.7", timeout_s=300)
    group.build(Seat(generation=3, rank=1, world=2, store=..., address=...), is_stale=...)
    group.abort()       # from any thread: a rank that waits in a collective is set free

Each process lends a TCPStore that lives as long as itself, so that no port is chosen twice; rank
0's is used. Whether a process lives is asked at a port of its own: a store looks up the name of
whoever connects, which takes it seconds where the name server is slow, and all others wait.
`is_stale` is asked while ranks wait for each other: a peer that dies while the group
is built must not hold the rest.

NCCL's communicators can be aborted. gloo's `abort` leaves a rank that waits where it is, and its
sockets stay open while anything refers to the group (a traceback, DDP), so that peers wait too:
therefore the sockets themselves are shut down. They are told from Ray's by their ports: each end
of a pair is a port that some rank's gloo listens on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d

from rayburst.errors import PeerLostError
from rayburst.train.inplace.messages import Seat
from rayburst.train.liveness import connects

__all__ = ["ProcessGroup"]

_BUILD_TIMEOUT = timedelta(seconds=20)
_MEET_PAUSE_S = 0.01
_CONNECT_TIMEOUT = timedelta(seconds=5)
_ANSWER_S = 2.0
_WAITING_AT_THE_DOOR = 1024
"""A process that is stopped or busy lives all the same."""


class ProcessGroup:
    """This process's place in torch's default group. `timeout_s`: of a collective."""

    def __init__(self, *, host: str, timeout_s: float) -> None:
        self._timeout = timedelta(seconds=timeout_s)
        self._store = _store(host)
        self.store: tuple[str, int] = (host, self._store.port)
        self._door = _door()
        self.address: tuple[str, int] = (host, self._door.getsockname()[1])
        self._sockets: dict[int, int] = {}  # inode -> file descriptor
        self._ports: set[int] = set()  # that gloo listens on, of all ranks
        self._asking: dict[int, int] = {}  # as `_sockets`: to rank 0's store, while it is built
        self.is_aborted = False

    def build(self, seat: Seat, *, is_stale: Callable[[], bool] = lambda: False) -> None:
        """Become a member. PeerLostError when the others do not come or `is_stale` says so."""
        self.is_aborted = False
        try:
            self._build(seat, is_stale)
        except RuntimeError as error:  # a peer or the store is gone
            raise PeerLostError(f"generation {seat.generation} did not form: {error}") from error

    def abort(self) -> None:
        """Break the group: every wait in it fails, here and at its peers. From any thread."""
        self.is_aborted = True
        _shut(self._sockets | self._asking)  # torch asks the store for a peer that died
        self._sockets, self._asking = {}, {}
        world = dist.group.WORLD
        if world is not None and torch.cuda.is_available():
            world.abort()  # NCCL: kernels that wait for a peer end

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Groups that are made meanwhile break with this one. Collective, as making them is."""
        before = set(_sockets())
        yield
        opened = {inode: fd for inode, fd in _sockets().items() if inode not in before}
        found: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, _listening(opened))
        self._ports |= {port for ports in found for port in ports}
        self._sockets |= _pairs(opened, self._ports)

    def finish(self) -> None:
        """Wait for the collectives that were started: only then is it known whether they broke."""
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()

    def forget(self) -> None:
        """Break the group and take it out of torch. From the thread that uses it."""
        self.abort()
        if dist.is_initialized():
            c10d._abort_process_group()

    def _build(self, seat: Seat, is_stale: Callable[[], bool]) -> None:
        host, port = seat.store
        if seat.rank != 0 and not connects(*seat.address, _ANSWER_S):
            # torch would try the store for as long as it may
            raise PeerLostError(f"rank 0 of generation {seat.generation} does not answer")
        before = set(_sockets())
        root = TCPStore(host, port, timeout=_CONNECT_TIMEOUT)
        new = {inode: fd for inode, fd in _sockets().items() if inode not in before}
        self._asking = _clients(new, port)
        store = PrefixStore(f"generation-{seat.generation}", root)
        _meet(store, "here", seat, is_stale)
        before = set(_sockets())
        self._connect(store, seat)
        self._asking = {}
        opened = {inode: fd for inode, fd in _sockets().items() if inode not in before}
        store.set(f"ports-{seat.rank}", ",".join(map(str, _listening(opened))))
        _meet(store, "built", seat, is_stale)
        self._ports = {int(p) for r in range(seat.world) for p in _listed(store.get(f"ports-{r}"))}
        self._sockets = _pairs(opened, self._ports)
        c10d._set_pg_timeout(self._timeout)

    def _connect(self, store: Store, seat: Seat) -> None:
        """Each rank with each other."""
        # torch counts groups that did not form too, and looks for the peers of one by its number
        c10d._world.group_count = 0
        dist.init_process_group(
            _backend(),
            store=store,
            rank=seat.rank,
            world_size=seat.world,
            timeout=_BUILD_TIMEOUT,
        )


def _store(host: str) -> TCPStore:
    """A store that this process serves. IPv4 where that is spoken: torch listens to both, and then
    looks names up by addresses of the form ::ffff:10.0.0.5, which no file of hosts knows.
    """
    served: dict[str, Any] = {"is_master": True, "wait_for_workers": False}
    served["timeout"] = _BUILD_TIMEOUT
    if ":" in host:
        return TCPStore(host, 0, **served)
    listener = socket.create_server(("", 0), backlog=_WAITING_AT_THE_DOOR)
    port = listener.getsockname()[1]
    return TCPStore(host, port, master_listen_fd=listener.detach(), **served)


def _door() -> socket.socket:
    """A port of this process that answers as long as it lives, on all its addresses."""
    if socket.has_dualstack_ipv6():
        door = socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_WAITING_AT_THE_DOOR
        )
    else:
        door = socket.create_server(("", 0), backlog=_WAITING_AT_THE_DOOR)
    threading.Thread(target=_answer, args=[door], name="door", daemon=True).start()
    return door


def _answer(door: socket.socket) -> None:
    while True:
        try:
            door.accept()[0].close()
        except OSError:  # out of file descriptors: the kernel answers all the same
            time.sleep(_MEET_PAUSE_S)


def _backend() -> str:
    # gloo beside nccl: what ranks tell each other about leaving stays on the CPU
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _meet(store: Store, name: str, seat: Seat, is_stale: Callable[[], bool]) -> None:
    """Wait until all ranks are here, or some rank gives up.

    Which of the two is settled once, for all: else a rank that comes late would find those who have
    given up meanwhile to be here, and wait for them alone for as long as torch does.
    """
    store.set(f"{name}-{seat.rank}", "")
    keys = [f"{name}-{rank}" for rank in range(seat.world)]
    end_s = time.monotonic() + _BUILD_TIMEOUT.total_seconds()
    while not store.check(keys):
        is_late = time.monotonic() > end_s
        if (is_late or is_stale()) and not _settle(store, name, is_on=False):
            missing = [rank for rank in range(seat.world) if not store.check([keys[rank]])]
            why = f"ranks {missing} did not come" if is_late else "it was given up"
            raise PeerLostError(f"generation {seat.generation}: {why}")
        time.sleep(_MEET_PAUSE_S)
    if not _settle(store, name, is_on=True):
        raise PeerLostError(f"generation {seat.generation} was given up by another rank")


def _settle(store: Store, name: str, *, is_on: bool) -> bool:
    """Whether the group goes on: what the first rank that asks for it says."""
    return bool(store.compare_set(name, "", "on" if is_on else "off") == b"on")


def _listed(value: bytes) -> list[str]:
    return [part for part in value.decode().split(",") if part]


def _sockets() -> dict[int, int]:
    """Open sockets of this process: inode -> file descriptor."""
    found: dict[int, int] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            status = entry.stat()
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_ino] = int(entry.name)
    return found


def _opened(fds: dict[int, int]) -> Iterator[socket.socket]:
    """Handles of the sockets of `fds` that are still the same and speak TCP."""
    for inode, fd in fds.items():
        try:
            if os.fstat(fd).st_ino != inode:
                continue
            handle = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with handle:
            if handle.family in (socket.AF_INET, socket.AF_INET6):
                yield handle


def _listening(fds: dict[int, int]) -> list[int]:
    return [s.getsockname()[1] for s in _opened(fds) if _listens(s)]


def _listens(handle: socket.socket) -> bool:
    return bool(handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _clients(fds: dict[int, int], port: int) -> dict[int, int]:
    """Those that are a client's end of a connection to `port`."""
    found: dict[int, int] = {}
    for inode, fd in fds.items():
        for handle in _opened({inode: fd}):
            with contextlib.suppress(OSError):
                if handle.getpeername()[1] == port:
                    found[inode] = fd
    return found


def _pairs(fds: dict[int, int], ports: set[int]) -> dict[int, int]:
    """Those that connect two ranks: one of their ends is a port that gloo listens on."""
    found: dict[int, int] = {}
    for inode, fd in fds.items():
        for handle in _opened({inode: fd}):
            with contextlib.suppress(OSError):
                if {handle.getsockname()[1], handle.getpeername()[1]} & ports:
                    found[inode] = fd
    return found


def _shut(fds: dict[int, int]) -> None:
    for handle in _opened(fds):
        try:
            handle.shutdown(socket.SHUT_RDWR)
        except OSError:  # the peer was faster
            continue
