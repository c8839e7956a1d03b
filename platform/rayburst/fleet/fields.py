"""The kinds of values a fleet file holds, each with its check and its JSON Schema.

A file gives quantities with their unit as text; code gives plain numbers, because there the
attribute's name carries the unit.
Deliberately does not know: which key has which kind of value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from rayburst.errors import UnitError
from rayburst.fleet import units
from rayburst.fleet.problems import GIVEN, from_file, wrong

_NAME = r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"  # what Ray takes as a label's value
_BUCKET = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9._/-]*)?"
_MOST = 100_000
_ENDPOINT = r"https?://[A-Za-z0-9.\[\]:-]+"


def _quantity(read: Callable[[object], float | None]) -> BeforeValidator:
    def check(given: object, info: ValidationInfo) -> object:
        if not from_file(info) and not isinstance(given, str):
            return given
        try:
            return read(given)
        except UnitError as error:
            raise wrong(error.why, error.fix) from None

    return BeforeValidator(check)


def one_of(known: Sequence[str], why: str) -> BeforeValidator:
    """Refuses what is not among `known`, and names the nearest; `why` goes before the list."""

    def check(given: object) -> object:
        if given not in known:
            raise wrong(f"{why} {', '.join(known)}", allowed=[str(value) for value in known])
        return given

    return BeforeValidator(check)


def _written(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


def _whole(given: object) -> object:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    text = str(given)
    fix = text if re.fullmatch(r"[0-9]{1,6}", text) else None
    if isinstance(given, float) and given.is_integer() and 0 <= given <= _MOST:
        fix = str(int(given))
    raise wrong("a whole number without quotes is meant", fix)


def _name(given: object) -> object:
    if isinstance(given, str) and re.fullmatch(_NAME, given):
        return given
    meant = re.sub(r"[^a-z0-9]+", "-", str(given).lower()).strip("-")
    fix = meant if re.fullmatch(_NAME, meant) else None
    why = "a name has lowercase letters, digits and dashes, a letter first, at most 40"
    raise wrong(why, fix)


def _label(given: object) -> object:
    if given is None or (isinstance(given, str) and re.fullmatch(_LABEL, given)):
        return given
    if isinstance(given, int | float | bool):
        raise wrong("a number where a name is meant needs quotes", f'"{GIVEN}"')
    why = "a label has letters, digits and . _ - inside, at most 63"
    meant = re.sub(r"[^A-Za-z0-9._-]+", "-", str(given)).strip("-._")
    raise wrong(why, meant if isinstance(given, str) and re.fullmatch(_LABEL, meant) else None)


def _bucket_uri(given: object) -> object:
    if given is None:
        return given
    _refuse_secrets(given)
    if not isinstance(given, str) or not re.fullmatch(_BUCKET, given):
        raise wrong("this version keeps objects in s3://bucket or s3://bucket/folder")
    return given.rstrip("/")


def _endpoint(given: object) -> object:
    if given is None:
        return given
    _refuse_secrets(given)
    text = given.rstrip("/") if isinstance(given, str) else ""
    if not re.fullmatch(_ENDPOINT, text):
        fix = f"http://{GIVEN}" if re.fullmatch(r"[A-Za-z0-9.-]+:\d{1,5}", text) else None
        raise wrong("an endpoint is http(s)://host or http(s)://host:port", fix)
    return text


def _refuse_secrets(given: object) -> None:
    text = str(given)
    try:
        holds = "@" in text or bool(urlsplit(text).query)
    except ValueError:  # brackets that are no address; the pattern says so next
        holds = False
    if holds:
        why = "credentials do not belong in a fleet file; AWS_ACCESS_KEY_ID and its like carry them"
        raise wrong(why, secret=True)


Name = Annotated[
    str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$"})
]
Label = Annotated[
    str, BeforeValidator(_label), WithJsonSchema({"type": "string", "pattern": f"^{_LABEL}$"})
]
BucketUri = Annotated[
    str, BeforeValidator(_bucket_uri), _written(f"^{_BUCKET}$", "s3://my-bucket/my-fleet")
]
Endpoint = Annotated[
    str, BeforeValidator(_endpoint), _written(f"^{_ENDPOINT}/*$", "http://10.0.0.5:8333")
]
Count = Annotated[int, Field(ge=0, le=_MOST, examples=[1]), BeforeValidator(_whole)]
AtLeastOne = Annotated[int, Field(ge=1, le=_MOST, examples=[1]), BeforeValidator(_whole)]
Memory = Annotated[
    int, Field(gt=0), _quantity(units.memory_bytes), _written(units.MEMORY_PATTERN, "2GiB")
]
Duration = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    _quantity(units.duration_s),
    _written(units.DURATION_PATTERN, "60s"),
]
Money = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    _quantity(units.money_usd),
    _written(units.MONEY_PATTERN, "5 USD"),
]
Rate = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    _quantity(units.rate_usd_per_hour),
    _written(units.RATE_PATTERN, "0.35 USD/h"),
]
TrafficRate = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    _quantity(units.usd_per_gb),
    _written(units.TRAFFIC_PATTERN, "0.09 USD/GB"),
]
StorageRate = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    _quantity(units.usd_per_gb_month),
    _written(units.STORAGE_PATTERN, "0.023 USD/GB-month"),
]
