"""Own or rent, by hand; a month with what is unknown in it; the commands."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.cost.on_prem import OwnedMachine
from rayburst.cost.price_files import own_template, read_owned
from rayburst.cost.tco import break_even, month_cost
from rayburst.errors import PriceError

RACK = OwnedMachine(
    capital_usd=Decimal(35040),
    life_years=Decimal(4),
    power_kw=Decimal(2),
    idle_kw=Decimal("0.5"),
    usd_per_kwh=Decimal("0.10"),
)


def test_break_even_by_hand():
    """Wear 1 USD/h, power 0.20, idle 0.05: u = (1 + 0.05) / (rent - 0.20 + 0.05)."""
    point = break_even(RACK, rents={"cheap": Decimal("0.9"), "dear": Decimal("2.25")})
    assert point.utilisation == {"cheap": None, "dear": Decimal("0.5")}
    low, same, high = point.sensitivity["dear"]
    assert low > same == Decimal("0.5") > high
    assert "never" in str(point.table()) and "50%" in str(point.table())


def test_restarts_make_spot_dearer_and_owning_pays_earlier():
    rents = {"spot": Decimal(2)}
    whole = break_even(RACK, rents=rents).utilisation["spot"]
    torn = break_even(RACK, rents=rents, useful={"spot": Decimal("0.8")}).utilisation["spot"]
    assert torn < whole
    with pytest.raises(PriceError, match="above 0"):
        break_even(RACK, rents=rents, useful={"spot": Decimal(0)})


@given(rent=st.decimals("1.3", "50", places=2))
def test_at_the_break_even_both_cost_the_same(rent):
    share = break_even(RACK, rents={"r": rent}).utilisation["r"]
    assert abs(RACK.usd_per_busy_hour(share) - rent) < Decimal("1e-9")


def test_a_month_says_what_it_does_not_know():
    told = month_cost(
        compute_usd=Decimal(850),
        people_hours=Decimal(4),
        usd_per_people_hour=Decimal(90),
    )
    assert told.usd == 850 + 360
    text = str(told.table())
    assert text.count("unknown") == 2
    assert "$94.44 to $150.00" in text, "10 and 15% of a bill with 850 USD of other things in it"
    stored = month_cost(
        compute_usd=Decimal(850),
        storage_gb=Decimal(1000),
        usd_per_gb_month=Decimal("0.023"),
        network_usd=Decimal(12),
        ownership_usd=Decimal(100),
    )
    assert stored.usd == Decimal("985")


def test_the_commands_advise(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(own_template())
    page = tmp_path / "own.html"
    words = ["tco", "h100-8", "--file", str(file), "--against", "p5.48xlarge"]
    own = CliRunner().invoke(app, [*words, "--plot", str(page)])
    assert own.exit_code == 0 and "p5.48xlarge on-demand" in own.output
    assert "An hour of work, by utilisation" in page.read_text()
    sizes = ["--params", "7e9", "--layers", "32", "--width", "4096", "--heads", "32"]
    rank = CliRunner().invoke(app, ["hardware", *sizes, "--tokens", "1e9", "--gpu", "H100"])
    assert rank.exit_code == 0 and "assumed" in rank.output
    with pytest.raises(PriceError, match="it does of h100-8"):
        read_owned(file, "p5.48xlarge")


def test_a_machine_without_a_price_is_no_rent(tmp_path):
    file, page = tmp_path / "mine.csv", tmp_path / "own.html"
    header, *rows = own_template().splitlines()
    bare = ",".join("quiet-1" if name == "sku" else "" for name in header.split(","))
    file.write_text("\n".join([header, *rows, bare]))
    words = ["tco", "h100-8", "--file", str(file), "--against", "quiet-1"]
    alone = CliRunner().invoke(app, [*words, "--plot", str(page)])
    assert isinstance(alone.exception, PriceError) and not page.exists()
    assert "no price is known of quiet-1" in str(alone.exception)
    both = CliRunner().invoke(app, [*words, "--against", "p5.48xlarge", "--plot", str(page)])
    assert both.exit_code == 0 and "left out, since no price is known: quiet-1" in both.output
    assert "p5.48xlarge on-demand" in page.read_text() and "quiet-1" not in page.read_text()
    with pytest.raises(PriceError, match="rents is empty"):
        break_even(RACK, rents={})
