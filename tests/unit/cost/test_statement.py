"""What is printed adds up: the rows' dollars are the total's, as JSON, frame and FOCUS too."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal

import pytest
from cost_month import DAY_MS, START_MS, month
from hypothesis import given
from hypothesis import strategies as st

from rayburst.cost.attribution import LaunchPrices, attribute, tell
from rayburst.cost.entries import PURPOSES, Entry, Line, Owner
from rayburst.cost.focus import to_focus
from rayburst.cost.statement import KEYS, make_statement
from rayburst.errors import PriceError


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    period = (START_MS - DAY_MS, START_MS + 40 * DAY_MS)
    story = tell(month(4))
    return attribute(story, prices=LaunchPrices(), period=period, now_ms=START_MS + 31 * DAY_MS)


def entry(job: str, nano_usd: int | None, purpose: str = "useful") -> Entry:
    line = Line(
        start_ms=0,
        end_ms=3_600_000,
        node="n",
        pool="p",
        market="spot",
        owner=Owner(job=job),
        purpose=purpose,
    )
    return Entry(line=line, quantity=3_600_000, nano_usd=nano_usd)


def words(told: object) -> str:
    return " ".join(str(told).split())


@pytest.mark.parametrize("by", KEYS)
def test_rows_sum_to_the_total_to_the_cent(entries, by):
    told = make_statement(entries, by=by)
    exact = Decimal(sum(e.nano_usd or 0 for e in entries)).scaleb(-9)
    assert sum(row.usd for row in told.rows) == told.usd == round(exact, 2)
    by_purpose = sum(v for row in told.rows for v in row.usd_by_purpose.values())
    assert by_purpose == sum(told.usd_by_purpose.values()) == exact
    assert not told.is_complete and "whose price is not known" in str(told)


@given(st.lists(st.integers(0, 3 * 10**10), min_size=1, max_size=12))
def test_what_is_printed_adds_up_whatever_the_amounts(amounts):
    told = make_statement([entry(f"job-{i}", nano) for i, nano in enumerate(amounts)])
    printed = [row[2].replace(",", "") for row in told.table().rows]
    *rows, total = (Decimal(text) for text in printed)
    assert sum(rows) == total == told.usd


def test_small_sums_keep_their_digits():
    told = make_statement([entry("a", 41_600_000), entry("b", 1)])
    assert [str(row.usd) for row in told.rows] == ["0.041600", "0.000000"]


def test_unknown_prices_are_hours_and_no_dollars():
    told = make_statement([entry("a", None), entry("a", 10**9)])
    (row,) = told.rows
    assert (row.usd, row.unpriced_hours, row.node_hours) == (Decimal("1.00"), 1.0, 2.0)
    assert make_statement([entry("a", None)]).usd == 0
    assert make_statement([]).rows == []


def test_traffic_is_told_beside_what_is_typical_and_unknown_gigabytes_are_no_dollars():
    paid = entry("a", 9 * 10**9)
    one = entry("a", 10**9, "transfer")
    read = replace(one, line=replace(one.line, unit="bytes read"), quantity=5 * 10**9)
    told = make_statement([paid, read])
    assert (told.moved_gb, told.network_share, told.is_complete) == (5.0, 0.1, True)
    assert told.rows[0].node_hours == 1
    assert "5.000 GB moved between hosts and the store, 10.0% of all" in words(told)
    unknown = make_statement([paid, replace(read, nano_usd=None)])
    assert (unknown.unpriced_gb, unknown.network_share) == (5.0, None)
    assert "5.000 GB of traffic whose price is not known" in words(unknown)


def test_an_unknown_key_names_the_known_ones(entries):
    with pytest.raises(PriceError, match="job, tenant, model"):
        make_statement(entries, by="color")


def test_json_and_frame_hold_the_same(entries):
    told = make_statement(entries, by="job")
    loaded = json.loads(json.dumps(told.to_dict()))
    frame = told.frame()
    assert list(frame.columns)[3:] == list(PURPOSES)
    for row in loaded["rows"]:
        assert frame.loc[row["job"], "usd"] == float(row["usd"])
    assert "<table>" in told.html() and "<iframe" in told._repr_html_()


def test_a_focus_file_holds_every_known_dollar_and_no_other(entries):
    text, left_out = to_focus(entries, fleet="lab", region="r")
    rows = list(csv.DictReader(io.StringIO(text)))
    known = [e for e in entries if e.nano_usd is not None]
    assert len(rows) == len(known)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(
        sum(e.nano_usd for e in known)
    ).scaleb(-9)
    assert left_out == sum(e.quantity for e in entries if e.nano_usd is None)
    assert {json.loads(row["Tags"])["purpose"] for row in rows} <= set(PURPOSES)
    assert all(row["BillingPeriodStart"].endswith("-01T00:00:00Z") for row in rows)
