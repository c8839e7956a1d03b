"""Whatever stands in a file: it parses, or SpecError says where. Nothing else ever comes."""

from __future__ import annotations

import json
import re

import jsonschema
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayburst.errors import SpecError, UnitError
from rayburst.fleet import specfile, units
from rayburst.fleet.explain import explain
from rayburst.fleet.render import ray_config, to_yaml
from rayburst.fleet.schema import json_schema
from rayburst.fleet.spec import FleetSpec, default_path

GOOD = "\n".join(
    line.split(" #")[0]
    for line in default_path().read_text().splitlines()
    if not line.startswith("#")
)
_PLACE = re.compile(r"^  f\.yaml:(\d+):(\d+): ", re.MULTILINE)
_SCHEMA = jsonschema.Draft202012Validator(json_schema())
_TEXT = (
    "{|}|[|]|: |- |&a |*a|!x |<<: |\t|\n|  |#|'|\"|~|? |> |%|---\n|...\n|\r|\x00|\ud800|\u2028"
    "|true|1e999|.inf|-0|0x1F|1:30|2026-01-01|hosts|name|null|99999999999999999999"
)
_PIECES = st.sampled_from(_TEXT.split("|"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _PIECES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _parses_or_says_where(text: str) -> None:
    try:
        spec = FleetSpec.parse(text, "f.yaml")
    except SpecError as error:
        places = _PLACE.findall(str(error))
        assert places, str(error)
        lines = specfile.lines_of(text)
        for line, column in places:
            assert 1 <= int(line) <= len(lines)
            assert 1 <= int(column) <= len(lines[int(line) - 1]) + 1
    else:
        assert explain(spec)
        assert to_yaml(ray_config(spec))
        _SCHEMA.validate(specfile.read(text, "f.yaml").data)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 6), _PIECES), max_size=3))
@example([(0, len(GOOD), "")])
def test_text_with_pieces_cut_out_and_put_in(edits: list[tuple[int, int, str]]) -> None:
    text = GOOD
    for at, cut, piece in edits:
        text = text[:at] + piece + text[at + cut :]
    _parses_or_says_where(text)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(GOOD.count("\n") + 1)), st.integers(1, 60))
def test_lines_in_another_order(order: list[int], count: int) -> None:
    lines = GOOD.splitlines()
    _parses_or_says_where("\n".join(lines[i] for i in order[:count]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), _VALUES, st.booleans())
def test_any_value_in_any_place(index: int, value: object, drop: bool) -> None:
    data = yaml.safe_load(GOOD)
    places = list(_places(data))
    holder, key = places[index % len(places)]
    if drop and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = value
    _parses_or_says_where(yaml.dump(data))
    _parses_or_says_where(json.dumps(data))


def _places(value: object) -> list[tuple[object, object]]:
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[call-overload]
    for key, inner in pairs:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text(text: str) -> None:
    _parses_or_says_where(text)


_NUMBERS = st.integers(1, 10**6) | st.decimals(1, 10**6, places=3)


@given(_NUMBERS, st.sampled_from(["MiB", "GiB", "TiB"]))
def test_memory_is_written_as_it_is_read(number: object, unit: str) -> None:
    size_bytes = units.memory_bytes(f"{number}{unit}")
    assert abs(units.memory_bytes(units.written_bytes(size_bytes)) - size_bytes) <= 2**11


@given(_NUMBERS, st.sampled_from("smhd"))
def test_a_time_is_written_as_it_is_read(number: object, unit: str) -> None:
    duration_s = units.duration_s(f"{number}{unit}")
    assert units.duration_s(units.written_duration(duration_s)) == duration_s


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,4} ?[a-zA-Z/$]{0,8}", fullmatch=True))
def test_a_correction_of_a_quantity_is_one(text: str) -> None:
    for read in (units.memory_bytes, units.duration_s, units.money_usd, units.rate_usd_per_hour):
        try:
            read(text)
        except UnitError as error:
            if error.fix is not None:
                read(error.fix)
