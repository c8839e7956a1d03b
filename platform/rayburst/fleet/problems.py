"""From what pydantic finds wrong to what a person reads: place, what is allowed, the right line.

    spec = validate(FleetSpec, text, source="fleet.yaml", across=...)

All problems of a file come in one SpecError. Unknown keys name the nearest known one.
Deliberately does not know: the fleet file's keys; it reads them from the model's JSON Schema.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from rayburst.fleet import specfile
from rayburst.fleet.places import Loc, Place, Problem, failure, name
from rayburst.fleet.specfile import Document

Model = TypeVar("Model", bound=BaseModel)
Find = tuple[Loc, str, str | None]  # where, what is wrong, the value to write instead
Across = Callable[[Mapping[str, Any]], Iterable[Find]]

GIVEN = "{given}"  # in a fix: the text that stands in the file
_WORDS = {
    "string_type": "text",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "tuple_type": "a list",
    "list_type": "a list",
}


def wrong(
    why: str, fix: str | None = None, *, allowed: Sequence[str] = (), secret: bool = False
) -> PydanticCustomError:
    """What a validator raises.

    `fix` is the value to write instead (GIVEN stands for what was given), `allowed` the values to
    take the nearest from when there is no fix. A `secret` value is never shown.
    """
    details = {"why": why, "fix": fix, "allowed": list(allowed), "secret": secret}
    return PydanticCustomError("rayburst", "{why}", details)


def from_file(info: ValidationInfo) -> bool:
    """Whether a value was written by a person in a file, not passed by code."""
    return info.context is not None


def validate(model: type[Model], text: str, source: str, across: Across) -> Model:
    """Read a file into a model. Raises SpecError with every problem.

    `across` finds what no single key shows (two pools of one name); it must bear any data.
    """
    document = specfile.read(text.removeprefix("\ufeff"), source)
    finds = list(across(document.data))
    errors: list[ErrorDetails] = []
    try:
        made = model.model_validate(document.data, by_alias=True, by_name=False, context=document)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if errors or finds or document.problems:
        describe = _Describe(document, _schema(model))
        raise failure(source, describe.all(errors, finds), document.lines)
    return made


@functools.cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


class _Describe:
    """Turns finds of one document into problems."""

    def __init__(self, document: Document, schema: dict[str, Any]) -> None:
        self._document = document
        self._schema = schema

    def all(self, errors: list[ErrorDetails], finds: list[Find]) -> list[Problem]:
        found = list(self._document.problems)
        renamed: set[Loc] = set()
        missing: dict[Loc, Problem] = {}
        for error in errors:
            loc = error["loc"]
            if self._document.told & {loc, loc[:-1]}:
                continue
            if error["type"] == "missing":
                missing[loc] = self._missing(loc)
            elif error["type"] == "extra_forbidden":
                found.append(self._unknown(loc, renamed))
            else:
                found.append(self._value(loc, error))
        found += [problem for loc, problem in missing.items() if loc not in renamed]
        for loc, why, fix in finds:
            found.append(_replace(self._place(loc), f"{name(loc)}: {why}", fix))
        return list(dict.fromkeys(found))

    def _missing(self, loc: Loc) -> Problem:
        place = self._document.keys.get(loc[:-1]) or self._document.values[loc[:-1]]
        example = self._example(loc)
        add = f"{loc[-1]}: {example}" if example else ""
        return Problem(
            line=place.line, column=place.column, text=f"{name(loc)} is missing", add=add
        )

    def _unknown(self, loc: Loc, renamed: set[Loc]) -> Problem:
        place = self._document.keys[loc]
        known = list(self._at(loc[:-1]).get("properties", {}))
        near = difflib.get_close_matches(str(loc[-1]).lower(), known, n=1, cutoff=0.5)
        text = f"{name(loc)}: no such key; known: {', '.join(known)}"
        if not near:
            return Problem(line=place.line, column=place.column, text=text)
        renamed.add((*loc[:-1], near[0]))
        text = f"{name(loc)}: no such key, the nearest is {near[0]}; known: {', '.join(known)}"
        return _replace(place, text, near[0])

    def _value(self, loc: Loc, error: ErrorDetails) -> Problem:
        place = self._place(loc)
        details = error.get("ctx", {})
        if details.get("secret"):
            return _replace(place, f"{name(loc)}: {details['why']}", None)
        why, fix = details.get("why"), details.get("fix")
        if why is None and error["type"] in _WORDS:
            why, fix = f"{_WORDS[error['type']]} is meant", self._example(loc)
        if why is None and "ge" in details:
            why, fix = f"{details['ge']} or more is meant", str(details["ge"])
        given = self._document.given(place)
        near = difflib.get_close_matches(given.lower(), details.get("allowed", []), n=1)
        if fix is None and near:
            fix = near[0]
        text = f"{name(loc)} is {_short(given)}: {why or _sentence(error['msg'])}"
        return _replace(place, text, fix.replace(GIVEN, given) if fix else None)

    def _place(self, loc: Loc) -> Place:
        while loc not in self._document.values:
            loc = loc[:-1]
        return self._document.values[loc]

    def _at(self, loc: Loc) -> dict[str, Any]:
        """The schema of what stands at a place; empty where the schema knows nothing."""
        part = self._resolved(self._schema)
        for step in loc:
            inner = part.get("items", {}) if isinstance(step, int) else part.get("properties", {})
            part = self._resolved(inner if isinstance(step, int) else inner.get(step, {}))
        return part

    def _resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        kinds = [kind for kind in part.get("anyOf", []) if kind != {"type": "null"}]
        if len(kinds) == 1:  # a part that may be absent
            part = kinds[0] | part
        while "$ref" in part:
            model = str(part["$ref"]).rsplit("/", 1)[-1]
            part = {
                **self._schema["$defs"][model],
                **{k: v for k, v in part.items() if k != "$ref"},
            }
        return part

    def _example(self, loc: Loc) -> str | None:
        examples = self._at(loc).get("examples")
        return str(examples[0]) if examples else None


def _replace(place: Place, text: str, instead: str | None) -> Problem:
    where = None if instead is None else place
    return Problem(
        line=place.line, column=place.column, text=text, where=where, instead=instead or ""
    )


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:]


def _short(given: str) -> str:
    return given if len(given) <= 60 else given[:57] + "..."
