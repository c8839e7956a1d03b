"""A story told on the terminal while it happens: acts, what was seen, signs of life between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console

from rayburst.errors import DemoError

__all__ = ["Story"]

T = TypeVar("T")

_SAY_EVERY_S = 5.0


@dataclass
class Story:
    """What has happened so far. `where` says in a few words where things stand."""

    console: Console
    started: float
    where: Callable[[], str] = lambda: ""
    phases: list[dict[str, Any]] = field(default_factory=list)
    interruptions: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        at = time.time() - self.started
        self.console.print(f"[dim]{at:6.1f} s[/]  {text}", soft_wrap=True)

    @contextmanager
    def act(self, name: str) -> Iterator[None]:
        """A part with a heading; its times are kept."""
        self.console.print(f"\n[bold cyan]{name}[/]")
        start = time.time()
        yield
        self.phases.append({"name": name, "start": start, "end": time.time()})

    def wait(self, what: str, probe: Callable[[], T | None], *, timeout_s: float) -> T:
        """Poll until `probe` gives something; says where things stand every few seconds.

        Raises:
            DemoError: it gave nothing within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._waiting() as tell:
            said = time.monotonic()
            while (found := probe()) is None:
                if time.monotonic() > deadline:
                    raise DemoError(f"{what}: not within {timeout_s:.0f} s")
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    tell(f"waiting for {what}{self.where()}")
                time.sleep(0.5)
        return found

    @contextmanager
    def _waiting(self) -> Iterator[Callable[[str], None]]:
        """Says where things stand: in one line that changes on a terminal, else line by line."""
        if not self.console.is_terminal:
            yield lambda text: self.say(f"[dim]{text}[/]")
            return
        with self.console.status("", spinner="dots") as status:
            yield lambda text: status.update(f"[dim]{text}[/]")

    @contextmanager
    def meanwhile(self, what: str) -> Iterator[None]:
        """Signs of life from a thread while the body blocks and says nothing itself."""
        ended = threading.Event()

        def tell_on() -> None:
            with self._waiting() as tell:
                while not ended.wait(_SAY_EVERY_S):
                    tell(f"waiting for {what}")

        teller = threading.Thread(target=tell_on, name="story", daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()
