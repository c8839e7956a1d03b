"""The YAML of a fleet file as plain data, with the place of every key and value.

    document = read(text, source="fleet.yaml")
    document.data["limits"], document.values[("limits", "idle_timeout")].line

Plain words stay words (`on` is text, not true) and dates stay text, as YAML 1.2 has it. What makes
files hard to read is refused: a key given twice, tags, anchors that hold themselves.
Deliberately does not know: which keys a fleet file has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rayburst.errors import SpecError
from rayburst.fleet.places import Loc, Place, Problem, failure, name

_MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 50_000  # aliases of aliases can unfold into billions
_LINE_ENDS = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # what PyYAML counts as one
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]{1,18}(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "false": False, "False": False}
_STANDARD_TAG = "tag:yaml.org,2002:"


@dataclass(kw_only=True, slots=True)
class Document:
    """A file that was read: its data, where everything stands, and what is wrong as YAML."""

    source: str
    lines: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Loc, Place] = field(default_factory=dict)
    values: dict[Loc, Place] = field(default_factory=dict)
    told: set[Loc] = field(default_factory=set)  # places whose problem is in `problems` already
    problems: list[Problem] = field(default_factory=list)

    def given(self, place: Place) -> str:
        """The text at a place as it stands in the file, cut to its first line."""
        line = self.lines[place.line - 1]
        end = place.end_column - 1 if place.end_line == place.line else len(line)
        return line[place.column - 1 : end].strip()


def read_text(path: Path) -> str:
    """The text of a fleet file. Raises SpecError for a file that is not there or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml"))[:8]
        beside = f"fleet files there: {', '.join(near)}" if near else "no .yaml file is there"
        raise SpecError(f"{path}: no such file; {beside}") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder; give the fleet file: {path}/local.yaml") from None
    except UnicodeDecodeError as error:
        text = f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        raise SpecError(text) from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL byte in the name
        raise SpecError(f"{str(path)!r}: not a file name: {error}") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, as YAML counts them."""
    return _LINE_ENDS.split(text)


def read(text: str, source: str) -> Document:
    """Parse YAML. Raises SpecError where no data can be had; milder finds stay in `problems`."""
    if len(text) > _MAX_CHARACTERS:
        problem = Problem(line=1, column=1, text=f"over {_MAX_CHARACTERS:,} characters")
        raise failure(source, [problem])
    document = Document(source=source, lines=lines_of(text))
    node = _compose(text, source)
    if node is None:
        raise failure(source, [Problem(line=1, column=1, text=_EMPTY)])
    if not isinstance(node, yaml.MappingNode):
        raise failure(source, [_at(node, f"a fleet file is a mapping of keys; {_EMPTY_HINT}")])
    try:
        document.data = _Reader(document).mapping(node, (), frozenset())
    except RecursionError:
        raise failure(source, [Problem(line=1, column=1, text="nested too deep")]) from None
    return document


_EMPTY_HINT = "it begins with:  name: my-fleet"
_EMPTY = f"the file is empty; {_EMPTY_HINT}"


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise failure(source, [_syntax(error)]) from None
    except yaml.reader.ReaderError as error:
        before = lines_of(text[: error.position])
        text = f"character #x{ord(text[error.position]):04x} cannot stand in YAML; take it out"
        place = Problem(line=len(before), column=len(before[-1]) + 1, text=text)
        raise failure(source, [place]) from None
    except RecursionError:
        raise failure(source, [Problem(line=1, column=1, text="nested too deep")]) from None
    except (ValueError, OverflowError) as error:  # e.g. an escape above the last code point
        raise failure(source, [Problem(line=1, column=1, text=f"not YAML: {error}")]) from None


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    text = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in text:
        text = "a tab; YAML is indented with spaces"
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Problem(line=line, column=column, text=f"not YAML: {text}")


def _at(node: yaml.Node, text: str) -> Problem:
    place = _place(node)
    return Problem(line=place.line, column=place.column, text=text)


def _place(node: yaml.Node) -> Place:
    start, end = node.start_mark, node.end_mark
    return Place(
        line=start.line + 1,
        column=start.column + 1,
        end_line=end.line + 1,
        end_column=end.column + 1,
    )


class _Reader:
    """Walks the nodes once; counts values so that aliases cannot unfold without end."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._seen = 0

    def value(self, node: yaml.Node, loc: Loc, within: frozenset[int]) -> object:
        self._seen += 1
        self._document.values[loc] = _place(node)
        if self._seen > _MAX_VALUES or id(node) in within:
            why = "holds itself" if id(node) in within else "unfolds into too many values"
            raise failure(self._document.source, [_at(node, f"an anchor that {why}")])
        if not node.tag.startswith(_STANDARD_TAG):
            self._document.told.add(loc)
            self._problem(node, f"tag {node.tag} is not used in fleet files; take it out")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, loc, within | {id(node)})
        if isinstance(node, yaml.SequenceNode):
            inner = within | {id(node)}
            return [self.value(item, (*loc, i), inner) for i, item in enumerate(node.value)]
        if (value := _scalar(node)) is None:
            self._document.told.add(loc)
            self._problem(node, f"{name(loc)} has no value; give it one or take it out")
        return value

    def mapping(self, node: yaml.MappingNode, loc: Loc, within: frozenset[int]) -> dict[str, Any]:
        self._document.values[loc] = _place(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key is one word")
                continue
            key = str(key_node.value)
            inner = (*loc, key)
            if key in found:
                first = self._document.keys[inner].line
                self._problem(key_node, f"{key} is given twice, first in line {first}; keep one")
                continue
            self._document.keys[inner] = _place(key_node)
            found[key] = self.value(value_node, inner, within)
        return found

    def _problem(self, node: yaml.Node, text: str) -> None:
        self._document.problems.append(_at(node, text))


def _scalar(node: yaml.Node) -> object:
    text = str(node.value)
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
