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
Run = Callable[..., subprocess.CompletedProcess[Any]]

_SEE = r"""
umask 077; mkdir -p ~/.rayburst && cd ~/.rayburst || exit 9
see() {
  printf 'lease '; cat lease.json 2>/dev/null; echo
  printf 'reclaim '; cat reclaim 2>/dev/null; echo
  asked=$(stat -c %.9Y reclaim 2>/dev/null || stat -c %Y reclaim 2>/dev/null || true)
  printf 'reclaim_age '
  awk -v n="$(date +%s.%N)" -v a="${asked:-0}" 'BEGIN {printf "%.2f\n", a ? n - a : 0}'
  printf 'ended '; cat "hosts/$1/ended" 2>/dev/null | tr '\n' ' '; echo
  printf 'processes '; grep -lzsxF "RAYBURST_HOST=$1" /proc/[0-9]*/environ | grep -c . || true
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
  printf '%s' "$2" > "lease.$$" && ln "lease.$$" lease.json 2>/dev/null; rm -f "lease.$$"
fi
see "$1"
"""
)
_LOOK = _SEE + 'see "$1"\n'
_JOIN = r"""
umask 077; d=~/.rayburst/hosts/$1; mkdir -p "$d" && cd "$d" && tar -xf - || exit 9
if ! grep -qzsxF "$2=$1" /proc/[0-9]*/environ; then
  export "$2=$1"; setsid nohup sh ./join.sh </dev/null >/dev/null 2>&1 &
fi
"""
_RELEASE = r"""
cd ~/.rayburst 2>/dev/null || exit 0
for try in 1 2 3 4 5; do
  marked=$(grep -lzsxF "$2=$1" /proc/[0-9]*/environ | grep -o '[0-9][0-9]*')
  [ -n "$marked" ] || break
  kill -KILL $marked 2>/dev/null
done
rm -rf "hosts/$1"; rmdir hosts 2>/dev/null
if grep -qs "\"host\": \"$1\"" lease.json; then rm -f lease.json; fi
exit 0
"""
_VACATE = r"""
cd ~/.rayburst 2>/dev/null || exit 0
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
        reclaim_age_s: how long ago they gave it.
        boot: changes when the machine starts again.
        processes: how many carry the mark of the host that was asked about.
        ended: why that host's first process ended, by its own word; empty while it runs.
    """

    lease: Lease | None
    reclaim_s: float | None
    reclaim_age_s: float
    boot: str
    cpus: int
    memory_bytes: int
    gpus: int
    processes: int
    ended: str


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
        return _read(self.address, self.do(_TAKE, lease.host, lease.to_json()))

    def look(self, host: str = "none") -> Seen:
        """How it is, and how `host` on it is."""
        return _read(self.address, self.do(_LOOK, host))

    def join(self, host: str, luggage: bytes) -> None:
        """Unpack a tar on it and run its `join.sh` as `host`, unless that runs. Does not wait."""
        script = ("sh", "-c", shlex.quote(_JOIN), "sh", host, processes.HOST_VARIABLE)
        self._ran(self.command(*script), luggage, _COMMAND_S)

    def release(self, host: str) -> None:
        """End every process of `host`, and remove its lease. Once more is no error."""
        self.do(_RELEASE, host, processes.HOST_VARIABLE)

    def vacate(self, host: str) -> None:
        """Remove the lease of `host`, and end nothing. Once more is no error."""
        self.do(_VACATE, host)

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

    def do(self, script: str, *arguments: str, timeout_s: float = _COMMAND_S) -> str:
        """Run a script of `sh` on it; what it says. Raises PoolUnreachableError."""
        command = self.command("sh", "-s", "--", *map(shlex.quote, arguments))
        return self._ran(command, script.encode(), timeout_s)

    def _ran(self, command: list[str], given: bytes, timeout_s: float) -> str:
        try:
            done = self._run(
                command, input=given, capture_output=True, text=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise PoolUnreachableError(
                f"{self.address} does not answer over SSH within {timeout_s:.0f} s"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            raise PoolUnreachableError(f"{self.address} over SSH: {_last(said)}")
        told: bytes = done.stdout
        return told.decode(errors="replace")


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
            reclaim_age_s=float(facts["reclaim_age"]),
            boot=facts["boot"],
            cpus=int(facts["cpus"]),
            memory_bytes=int(facts["memory_kib"]) * 1024,
            gpus=int(facts["gpus"]),
            processes=int(facts["processes"]),
            ended=facts["ended"].strip(),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise PoolUnreachableError(
            f"{address} answers over SSH with what is no state of a host: {error}: {text[:200]!r}"
        ) from None
