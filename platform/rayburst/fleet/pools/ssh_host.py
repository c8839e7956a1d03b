"""What is done on a machine over SSH: take it, look after it, give it back. Knows no pool.

A machine has no tags, so who has it stands in a file on it, `~/.rayburst/lease.json`, that appears
whole and only once (a hard link). Its owner asks for it by `~/.rayburst/reclaim`, which holds how
many seconds of notice they give: while the file is there the machine is not taken.

Every process of a host carries its id in `RAYBURST_HOST`. A machine is given back by ending those
and no others, and then removing the lease.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayburst.errors import PoolUnreachableError
from rayburst.fleet import processes
from rayburst.fleet.kindspec import SshSpec

CONNECT_S = 5
_COMMAND_S = 20.0
Run = Callable[..., subprocess.CompletedProcess[str]]

_SEE = r"""
umask 077; mkdir -p ~/.rayburst && cd ~/.rayburst || exit 9
see() {
  printf 'lease '; cat lease.json 2>/dev/null; echo
  printf 'reclaim '; cat reclaim 2>/dev/null; echo
  printf 'boot '; cat /proc/sys/kernel/random/boot_id
  printf 'cpus '; nproc
  printf 'memory_kib '; awk '/MemTotal/ {print $2}' /proc/meminfo
  printf 'gpus '; { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c . || true
}
"""
_TAKE = (
    _SEE
    + r"""
if [ ! -e reclaim ]; then
  printf '%s' "$1" > "lease.$$" && ln "lease.$$" lease.json 2>/dev/null; rm -f "lease.$$"
fi
see
"""
)
_LOOK = _SEE + "see\n"
_RELEASE = r"""
cd ~/.rayburst 2>/dev/null || exit 0
for process in /proc/[0-9]*; do
  if grep -qsz "^$2=$1\$" "$process/environ"; then kill -KILL "${process#/proc/}" 2>/dev/null; fi
done
if grep -qs "\"host\": \"$1\"" lease.json; then rm -f lease.json; fi
exit 0
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Who has a machine. `at`: unix seconds."""

    fleet: str
    host: str
    at: float

    def to_json(self) -> str:
        """As it stands on the machine."""
        return json.dumps({"fleet": self.fleet, "host": self.host, "at": self.at})


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A machine at one look.

    Attributes:
        lease: None when nobody has it.
        reclaim_s: notice that its owner gives, in seconds; None when they do not want it.
        boot: changes when the machine starts again.
    """

    lease: Lease | None
    reclaim_s: float | None
    boot: str
    cpus: int
    memory_bytes: int
    gpus: int


class SshMachine:
    """One machine, reached by the `ssh` command.

    Args:
        run: what runs a command, as `subprocess.run`.
    """

    def __init__(self, address: str, spec: SshSpec, *, run: Run = subprocess.run) -> None:
        self.address = address
        self._spec = spec
        self._run = run

    def take(self, lease: Lease) -> Seen:
        """Put `lease` on it unless there is one, or its owner wants it; what is there then."""
        return _read(self.address, self._do(_TAKE, lease.to_json()))

    def look(self) -> Seen:
        """How it is."""
        return _read(self.address, self._do(_LOOK))

    def release(self, host: str) -> None:
        """End every process of `host`, and remove its lease. Once more is no error."""
        self._do(_RELEASE, host, processes.HOST_VARIABLE)

    def command(self, *words: str) -> list[str]:
        """The command that runs words on it."""
        spec = self._spec
        options = {"BatchMode": "yes", "ConnectTimeout": str(CONNECT_S), "Port": str(spec.port)}
        if spec.known_hosts is not None:
            options["UserKnownHostsFile"] = str(Path(spec.known_hosts).expanduser())
        given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        if spec.key is not None:
            given += ["-i", str(Path(spec.key).expanduser())]
        return ["ssh", *given, f"{spec.user}@{self.address}", *words]

    def _do(self, script: str, *arguments: str) -> str:
        command = self.command("sh", "-s", "--", *map(shlex.quote, arguments))
        try:
            done = self._run(
                command, input=script, capture_output=True, text=True, timeout=_COMMAND_S
            )
        except subprocess.TimeoutExpired:
            raise PoolUnreachableError(
                f"{self.address} does not answer over SSH within {_COMMAND_S:.0f} s"
            ) from None
        if done.returncode:
            raise PoolUnreachableError(f"{self.address} over SSH: {_last(done.stderr)}")
        return done.stdout


def _last(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[-1] if lines else "the command failed without a word"


def _read(address: str, text: str) -> Seen:
    facts = dict(line.partition(" ")[::2] for line in text.splitlines())
    try:
        lease: dict[str, Any] | None = json.loads(facts["lease"]) if facts["lease"] else None
        return Seen(
            lease=Lease(**lease) if lease else None,
            reclaim_s=float(facts["reclaim"]) if facts["reclaim"] else None,
            boot=facts["boot"],
            cpus=int(facts["cpus"]),
            memory_bytes=int(facts["memory_kib"]) * 1024,
            gpus=int(facts["gpus"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise PoolUnreachableError(
            f"{address} answers over SSH with what is no state of a host: {error}: {text[:200]!r}"
        ) from None
