"""Sockets of this process that are in the network of a box, or of one of its hosts.

    server.socket = listen(box, "10.77.1.1", 3000)          # at the router
    metadata = listen(box, METADATA, 80, host="i-0123")     # on a host
    Relay(box, ("10.77.1.1", 8333), to=("127.0.0.1", 8333)) # hosts reach a server of this machine
    Relay(box, to=("10.77.1.11", 8265), inwards=True).url   # this machine reaches one of the box

A socket stays in the network namespace in which it was made, whoever uses it later. So what a box
needs from outside can stand in this process, and no interface joins the two networks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rayburst.dev.cloud.box import Box
from rayburst.errors import StartError

_NEWNET = 0x40000000
_DIAL_S = 5.0
Place = tuple[str, int]
T = TypeVar("T")


def listen(box: Box, address: str, port: int, *, host: str | None = None) -> socket.socket:
    """A listening socket at the router, or on a host. Raises StartError."""
    return _within(box, host, lambda: socket.create_server((address, port), backlog=128))


def dial(box: Box, place: Place, *, host: str | None = None) -> socket.socket:
    """A connection to a place in the box, from the router or from a host. Raises OSError."""
    return _within(box, host, lambda: socket.create_connection(place, timeout=_DIAL_S))


def _within(box: Box, host: str | None, make: Callable[[], T]) -> T:
    """What `make` gives in a namespace. Its thread ends there: a namespace is a thread's own."""
    pid = box.pid(host)

    def enter() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY)
        try:
            if libc.setns(namespace, _NEWNET):
                why = os.strerror(ctypes.get_errno())
                raise StartError(f"the network of process {pid} cannot be entered: {why}")
        finally:
            os.close(namespace)
        return make()

    with ThreadPoolExecutor(max_workers=1) as alone:
        return alone.submit(enter).result()


class Relay:
    """Hands connections on, between this machine and a box.

    Args:
        at: where it listens; a free port of this machine's loopback when left out.
        to: where connections go.
        inwards: from this machine into the box; else from the box to this machine.
    """

    def __init__(
        self, box: Box, at: Place = ("127.0.0.1", 0), *, to: Place, inwards: bool = False
    ) -> None:
        self._box, self._to, self._inwards = box, to, inwards
        self._server = socket.create_server(at) if inwards else listen(box, *at)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it answers, if what is there speaks HTTP."""
        address, port = self._server.getsockname()[:2]
        return f"http://{address}:{port}"

    def close(self) -> None:
        """Take no more connections, and end those that are open."""
        for one in (self._server, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near:
            try:
                far = (
                    dial(self._box, self._to)
                    if self._inwards
                    else socket.create_connection(self._to, timeout=_DIAL_S)
                )
            except (OSError, StartError):
                return  # whoever called sees the connection end
            with far:
                far.settimeout(None)
                self._open |= {near, far}
                back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                back.start()
                _pump(near, far)
                back.join()
                self._open -= {near, far}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """All bytes of one direction."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
