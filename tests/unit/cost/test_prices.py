"""The catalogue holds nothing impossible, and files of others are read as what they are."""

from __future__ import annotations

import gzip
import json
from datetime import date, timedelta
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.cost.on_prem import OwnedMachine
from rayburst.cost.price_files import own_template, read_prices
from rayburst.cost.prices import STALE_DAYS, Catalogue, Offer, Price
from rayburst.cost.spot_history import SpotHistory
from rayburst.errors import PriceError

DAY = date(2026, 10, 1)
TRACES = Path(__file__).parents[4] / "shared" / "traces" / "prices-2021"


@pytest.fixture(scope="module")
def ours() -> Catalogue:
    return Catalogue.load()


def offer(sku: str = "m", **usd: str) -> Offer:
    prices = {
        market.replace("_", "-"): Price(usd_per_hour=Decimal(value), as_of=DAY, source="s")
        for market, value in usd.items()
    }
    return Offer(provider="p", region="r", sku=sku, cpus=1, prices=prices)


def test_the_catalogue_holds_nothing_impossible(ours):
    assert ours.problems() == []
    assert len(ours.offers) > 50
    assert {o.provider for o in ours.offers} == {"aws", "azure", "gcp", "oci"}


def test_every_price_has_a_source_with_a_licence_and_a_date(ours):
    for rate in (
        *ours.storage,
        *ours.transfer,
        *(p for o in ours.offers for p in o.prices.values()),
    ):
        assert ours.sources[rate.source]["licence"] in ("MIT", "Apache-2.0")
        assert rate.as_of > date(2026, 1, 1)


def test_every_cloud_has_storage_and_traffic_prices(ours):
    for provider in ("aws", "azure", "gcp", "oci"):
        kinds = {r.kind for r in ours.storage if r.provider == provider}
        assert {"block", "object"} <= kinds
        assert {r.to for r in ours.transfer if r.provider == provider} == {"internet", "region"}


def test_specs_of_ec2_machines_are_those_that_moto_has(ours):
    packed = (files("moto") / "ec2/resources/instance_types.json.gz").read_bytes()
    specs = json.loads(gzip.decompress(packed))
    compared = 0
    for one in (o for o in ours.offers if o.provider == "aws" and o.sku in specs):
        told = specs[one.sku]
        gpu = told.get("GpuInfo", {}).get("Gpus", [{}])[0]
        assert one.cpus == told["VCpuInfo"]["DefaultVCpus"], one.sku
        assert one.memory_gib == told["MemoryInfo"]["SizeInMiB"] / 1024, one.sku
        assert (one.gpus, one.gpu) == (gpu.get("Count", 0), gpu.get("Name", "")), one.sku
        if gpu:
            assert one.gpu_memory_gib == gpu["MemoryInfo"]["SizeInMiB"] / 1024, one.sku
        compared += 1
    unknown = {o.sku for o in ours.offers if o.provider == "aws"} - set(specs)
    assert compared > 20
    assert unknown == {"p3.2xlarge"}, "retired by EC2; kept because recorded traces are of it"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (offer(on_demand="0"), "no machine is free"),
        (offer(on_demand="1", spot="1.01"), "dearer than on-demand"),
        (offer(on_demand="1", spot="0.001"), "under 2% of on-demand"),
    ],
)
def test_what_cannot_be_true_is_told(wrong, why):
    assert any(why in text for text in Catalogue(offers=[wrong], sources={"s": {}}).problems())
    assert any("nothing is known" in t for t in Catalogue(offers=[offer(spot="1")]).problems())


def test_an_unknown_spot_price_stays_unknown(ours):
    assert ours.offer("p3.2xlarge").usd_per_hour("spot") is None
    assert ours.offer("p3.2xlarge").usd_per_hour("on-demand") == Decimal("3.06")
    assert ours.offer("p3.2xlarge").best() == ("on-demand", Decimal("3.06"))


def test_a_name_nobody_has_names_the_nearest(ours):
    with pytest.raises(PriceError, match=r"p3\.2xlarge"):
        ours.offer("p3.2xlrge")


def test_old_prices_are_told_of_and_fresh_ones_are_not():
    catalogue = Catalogue(offers=[offer(spot="1")])
    assert catalogue.warnings(DAY + timedelta(days=STALE_DAYS)) == []
    (told,) = catalogue.warnings(DAY + timedelta(days=STALE_DAYS + 1))
    assert f"{STALE_DAYS + 1} days old" in told


def test_a_contract_beats_the_list_and_leaves_the_rest(ours, tmp_path):
    file = tmp_path / "contract.csv"
    file.write_text(
        "provider,region,sku,on_demand_usd_per_hour,as_of\naws,us-east-1,m5.large,0.05,2026-11-01\n"
    )
    mine = ours.plus(read_prices(file)).offer("m5.large")
    listed = ours.offer("m5.large")
    assert mine.usd_per_hour("on-demand") == Decimal("0.05")
    assert mine.prices["on-demand"].source == "contract.csv"
    assert mine.prices["spot"] == listed.prices["spot"]
    assert mine.cpus == listed.cpus


def test_the_template_is_what_is_read(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(own_template())
    found = read_prices(file)
    assert found.problems() == []
    owned = found.offer("h100-8")
    by_hand = (Decimal(260000) / 4 + 9000) / 8760 + 8 * Decimal("1.4") * Decimal("0.15")
    assert owned.usd_per_hour("on-prem") == by_hand
    assert (owned.gpus, owned.gpu) == (8, "H100")


def test_a_file_that_cannot_be_used_says_where(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("sku,spot_usd_per_hour\na,0.1\nb,cheap\n")
    with pytest.raises(PriceError, match="line 3"):
        read_prices(file)
    file.write_text("machine,price\na,1\n")
    with pytest.raises(PriceError, match="its columns are machine, price"):
        read_prices(file)
    file.write_text("sku,spot_usd_per_hour\na,0.1\na,0.2\n")
    with pytest.raises(PriceError, match="twice"):
        read_prices(file)
    with pytest.raises(PriceError, match="cannot be read"):
        read_prices(tmp_path / "nothing.csv")


def test_skypilots_catalogue(tmp_path):
    file = tmp_path / "aws" / "vms.csv"
    file.parent.mkdir()
    file.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,"
        "Region,AvailabilityZone,Arch\n"
        'p3.2xlarge,V100,1.0,8.0,61.0,"{}",3.06,0.9731,us-east-1,use1-az2,x86_64\n'
        "m9.large,,,2.0,8.0,,0.1,,us-east-1,use1-az2,x86_64\n"
        ",T4,1.0,,,,0.35,0.11,us-east-1,,\n"
    )
    found = read_prices(file, as_of=DAY)
    assert [o.sku for o in found.offers] == ["p3.2xlarge", "m9.large"]
    first, second = found.offers
    assert (first.provider, first.zone, first.gpus, first.gpu) == ("aws", "use1-az2", 1, "V100")
    assert first.usd_per_hour("spot") == Decimal("0.9731")
    assert second.usd_per_hour("spot") is None
    assert first.prices["spot"].as_of == DAY


HISTORY = {
    "SpotPriceHistory": [
        {
            "AvailabilityZone": "us-east-1a",
            "InstanceType": "p3.2xlarge",
            "ProductDescription": product,
            "SpotPrice": usd,
            "Timestamp": f"2021-05-01T{hour:02d}:00:00+00:00",
        }
        for hour, usd, product in (
            (6, "1.20", "Linux/UNIX"),
            (2, "0.90", "Linux/UNIX"),
            (4, "9.99", "Windows"),
        )
    ]
}
MIDNIGHT = 1619827200.0


def test_a_spot_price_holds_until_the_next_one():
    history = SpotHistory.parse(json.dumps(HISTORY), name="h.json")
    two, six = MIDNIGHT + 7200, MIDNIGHT + 21600
    assert history.at("us-east-1a", two - 1) is None
    assert history.at("us-east-1a", two) == Decimal("0.90")
    assert history.at("us-east-1a", six - 1) == Decimal("0.90")
    assert history.pieces("us-east-1a", two - 10, six + 10) == [
        (two - 10, two, None),
        (two, six, Decimal("0.90")),
        (six, six + 10, Decimal("1.20")),
    ]
    with pytest.raises(PriceError, match="us-east-1a"):
        history.at("us-east-1z", two)


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"needs the recorded prices in {TRACES}")
def test_recorded_spot_prices_are_read_whole():
    for file in sorted(TRACES.glob("*.json")):
        history = SpotHistory.parse(file.read_text(), name=file.name)
        found = read_prices(file)
        assert {o.zone for o in found.offers} == set(history.by_zone)
        assert all(o.sku == file.stem for o in found.offers)
        joined = Catalogue.load().plus(found)
        assert not [text for text in joined.problems() if file.stem in text]


@given(
    capital=st.integers(0, 10**7),
    years=st.integers(1, 10),
    share=st.decimals("0.05", "1", places=2),
)
def test_an_idle_machine_makes_its_busy_hours_dearer(capital, years, share):
    owned = OwnedMachine(
        capital_usd=Decimal(capital),
        life_years=Decimal(years),
        power_kw=Decimal(1),
        usd_per_kwh=Decimal("0.1"),
    )
    assert owned.usd_per_busy_hour(share) >= owned.usd_per_hour()
    over_life = owned.fixed_usd_per_hour() * 8760 * years
    assert abs(over_life - capital) < Decimal("0.0001")


def test_traffic_is_paid_in_steps(ours):
    (aws,) = [t for t in ours.transfer if t.provider == "aws" and t.to == "internet"]
    assert aws.usd(Decimal(100)) == 0
    assert aws.usd(Decimal(1100)) == Decimal("90")
    assert aws.usd(Decimal(20100)) == 10000 * Decimal("0.09") + 10000 * Decimal("0.085")


def test_the_command_line_lists_and_checks(tmp_path):
    listed = CliRunner().invoke(app, ["prices", "ls", "--gpu", "H100", "--json"])
    assert {row["gpu"] for row in json.loads(listed.output)} == {"H100"}
    table = CliRunner().invoke(app, ["prices", "ls", "--sku", "p3.2xlarge"])
    assert "p3.2xlarge" in table.output and "3.0600" in table.output
    file = tmp_path / "mine.csv"
    file.write_text("provider,region,sku,spot_usd_per_hour\naws,us-east-1,m5.large,7\n")
    wrong = CliRunner().invoke(app, ["prices", "check", str(file)])
    assert isinstance(wrong.exception, PriceError)
    assert "dearer than on-demand" in str(wrong.exception)
    assert CliRunner().invoke(app, ["prices", "check"]).exit_code == 0
