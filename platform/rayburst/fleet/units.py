"""Quantities as people write them in a fleet file: `2GiB`, `60s`, `5 USD`, `0.35 USD/h`.

Pure. A quantity is one number and one unit. What two readers could read differently is refused
with the unambiguous way to write it: `2GB` (10^9 or 2^30?), a bare `60`, `$5`.
Deliberately does not know: YAML, files, which key a quantity stands under.
"""

from __future__ import annotations

import math
import re

from rayburst.errors import UnitError

NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
_BYTES: dict[str, int] = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS: dict[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86400}

MEMORY_PATTERN = f"^{NUMBER} ?(?:{'|'.join(_BYTES)})$"
DURATION_PATTERN = f"^{NUMBER} ?(?:{'|'.join(_SECONDS)})$"
MONEY_PATTERN = f"^{NUMBER} USD$"
RATE_PATTERN = f"^(?:{NUMBER} USD/h|unknown)$"
TRAFFIC_PATTERN = f"^(?:{NUMBER} USD/GB|unknown)$"
STORAGE_PATTERN = f"^(?:{NUMBER} USD/GB-month|unknown)$"
UNKNOWN = "unknown"

_SPLIT = re.compile(rf"^\s*\$?\s*({NUMBER})\s*(.*?)\s*$", re.DOTALL)
_MEANT_BYTES = re.compile(r"([mgt])(?:i?b?|egabytes?|igabytes?|erabytes?)", re.IGNORECASE)
_MEANT_SECONDS = re.compile(
    r"(?:(s)(?:ecs?|econds?)?|(m)(?:ins?|inutes?)?|(h)(?:rs?|ours?)?|(d)(?:ays?)?)?", re.IGNORECASE
)


def memory_bytes(given: object) -> int:
    """`2GiB` to bytes. Raises UnitError."""
    text = str(given)
    if isinstance(given, str) and re.fullmatch(MEMORY_PATTERN, text):
        number, unit = _parts(text)
        size_bytes = round(float(number) * _BYTES[unit])
        if size_bytes > 0:
            return size_bytes
        raise UnitError("a size of memory is above zero", None)
    why = "a size of memory is a number with MiB, GiB or TiB (GB is 10^9 to some, 2^30 to others)"
    raise UnitError(why, _meant_memory(text))


def duration_s(given: object) -> float:
    """`60s`, `5m`, `1.5h` or `1d` to seconds. Raises UnitError."""
    text = str(given)
    if isinstance(given, str) and re.fullmatch(DURATION_PATTERN, text):
        number, unit = _parts(text)
        return round(float(number) * _SECONDS[unit], 9)
    number, unit = _parts(text)
    meant = _MEANT_SECONDS.fullmatch(unit) if number else None
    letter = next((letter for letter in meant.groups() if letter), "s").lower() if meant else ""
    fix = f"{number}{letter}" if letter else None
    raise UnitError("a time is one number with s, m, h or d (seconds, minutes, hours, days)", fix)


def money_usd(given: object) -> float:
    """`5 USD` to dollars. Raises UnitError."""
    text = str(given)
    if isinstance(given, str) and re.fullmatch(MONEY_PATTERN, text):
        return float(_parts(text)[0])
    number, unit = _parts(text)
    fix = f"{number} USD" if number and _means_dollars(unit) else None
    raise UnitError("money is a number with USD; other currencies are not converted", fix)


def rate_usd_per_hour(given: object) -> float | None:
    """`0.35 USD/h` to dollars an hour, `unknown` to None. Raises UnitError."""
    text = str(given)
    if isinstance(given, str) and re.fullmatch(RATE_PATTERN, text):
        return None if text == UNKNOWN else float(_parts(text)[0])
    number, unit = _parts(text)
    money, _, per = unit.partition("/")
    hourly = per.strip().lower() in ("", "h", "hr", "hour", "1h")
    fix = f"{number} USD/h" if number and hourly and _means_dollars(money) else None
    if text.lower() == UNKNOWN or given is None:
        fix = UNKNOWN
    raise UnitError("a price is a number with USD/h, or the word unknown", fix)


def usd_per_gb(given: object) -> float | None:
    """`0.09 USD/GB` to dollars a GB (10^9 bytes), `unknown` to None. Raises UnitError."""
    return _per_gb(given, "USD/GB", TRAFFIC_PATTERN, "a price of traffic")


def usd_per_gb_month(given: object) -> float | None:
    """`0.023 USD/GB-month` to dollars a GB and month, `unknown` to None. Raises UnitError."""
    return _per_gb(given, "USD/GB-month", STORAGE_PATTERN, "a price of storage")


def _per_gb(given: object, unit: str, pattern: str, what: str) -> float | None:
    text = str(given)
    if isinstance(given, str) and re.fullmatch(pattern, text):
        return None if text == UNKNOWN else float(_parts(text)[0])
    number, meant = _parts(text)
    money = meant.partition("/")[0]
    fix = f"{number} {unit}" if number and _means_dollars(money) else None
    if text.lower() == UNKNOWN or given is None:
        fix = UNKNOWN
    raise UnitError(f"{what} is a number with {unit}, or the word unknown", fix)


def written_bytes(size_bytes: int) -> str:
    """Bytes as the fleet file writes them: `2GiB`."""
    for unit, factor in reversed(_BYTES.items()):
        if size_bytes >= factor:
            return f"{_short(size_bytes / factor)}{unit}"
    return f"{_short(size_bytes / 2**20)}MiB"


def written_duration(duration: float) -> str:
    """Seconds as the fleet file writes them, in the largest unit that stays whole: `5m`."""
    for unit, factor in reversed(_SECONDS.items()):
        if duration >= factor and duration % factor == 0:
            return f"{_short(duration / factor)}{unit}"
    return f"{_short(duration)}s"


def written_money(amount_usd: float) -> str:
    """Dollars with the digits that were given: `0.35`, `5`."""
    return _short(amount_usd)


def _parts(text: str) -> tuple[str, str]:
    """Number and unit of a text; two empty strings when it does not begin with a number."""
    found = _SPLIT.match(text)
    return (found.group(1), found.group(2)) if found else ("", "")


def _means_dollars(unit: str) -> bool:
    return unit.strip().lower() in ("", "$", "usd", "dollar", "dollars", "us$")


def _meant_memory(text: str) -> str | None:
    number, unit = _parts(text)
    if not number or float(number) == 0:
        return None
    if meant := _MEANT_BYTES.fullmatch(unit):
        return f"{number}{meant.group(1).upper()}iB"
    if unit.lower() not in ("", "b", "bytes"):
        return None
    if float(number) >= 2**20:  # so many can only be bytes
        return written_bytes(math.ceil(float(number)))
    if unit:
        return None
    return f"{number}GiB" if float(number) < 512 else f"{number}MiB"


def _short(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")
