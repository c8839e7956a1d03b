"""The fleet file: what is read, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rayburst.errors import SpecError
from rayburst.fleet.spec import FleetSpec, Hosts, Market, PoolSpec, Shape, default_path

GOOD = """\
name: test
region: us-east-1
object_store: {uri: s3://bucket/folder/, endpoint: "http://127.0.0.1:8333"}
limits: {budget: 5 USD, idle_timeout: 1.5m, drain: 20s}
head: {cpus: 2}
pools:
  - name: rack
    kind: process
    market: on-prem
    shape: {cpus: 4, memory: 1.5GiB, gpus: 2, accelerator: A100}
    zone: "1"
    price: 0.35 USD/h
    hosts: {min: 1, max: 2}
  - name: burst
    kind: process
    market: spot
    shape:
      cpus: 1
      memory: 512MiB
    price: unknown
    hosts: {max: 3}
"""


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        FleetSpec.parse(text, "fleet.yaml")
    return str(caught.value)


def test_a_good_file_is_read_with_its_units() -> None:
    spec = FleetSpec.parse(GOOD)
    rack, burst = spec.pools
    assert (spec.name, spec.region, spec.head.cpus) == ("test", "us-east-1", 2)
    assert (spec.object_store.kind, spec.object_store.uri) == ("s3", "s3://bucket/folder")
    assert spec.object_store.endpoint == "http://127.0.0.1:8333"
    limits = spec.limits
    assert (limits.budget_usd, limits.idle_timeout_s, limits.drain_s) == (5.0, 90.0, 20.0)
    assert (rack.market, rack.zone, rack.price_usd_per_hour) == (Market.ON_PREM, "1", 0.35)
    assert (rack.min_hosts, rack.max_hosts) == (1, 2)
    assert rack.shape == Shape(cpus=4, memory_bytes=3 * 2**29, gpus=2, accelerator="A100")
    assert (burst.price_usd_per_hour, burst.shape.memory_bytes) == (None, 2**29)
    assert (burst.min_hosts, burst.max_hosts, burst.zone) == (0, 3, None)


def test_what_a_file_leaves_out_has_the_documented_value() -> None:
    text = GOOD.replace("limits: {budget: 5 USD, idle_timeout: 1.5m, drain: 20s}\n", "")
    spec = FleetSpec.parse(text.replace("head: {cpus: 2}\n", ""))
    assert spec.head.cpus == 0
    assert (spec.limits.budget_usd, spec.limits.idle_timeout_s, spec.limits.drain_s) == (
        None,
        60.0,
        30.0,
    )


def test_code_builds_a_spec_with_plain_numbers() -> None:
    pool = PoolSpec(
        name="rack",
        kind="process",
        market=Market.SPOT,
        shape=Shape(cpus=1, memory_bytes=2**30),
        price_usd_per_hour=0.5,
        min_hosts=1,
        max_hosts=2,
    )
    assert pool.hosts == Hosts(min=1, max=2)
    spec = FleetSpec(name="a", object_store={"kind": "embedded"}, pools=[pool])
    assert spec.pool("rack") is pool
    with pytest.raises(ValidationError, match=r"pools\[0\] already has the name rack"):
        FleetSpec(name="a", object_store={"kind": "embedded"}, pools=[pool, pool])


def test_an_unknown_pool_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="no pool 'rak' in fleet 'test'; its pools: rack, burst"):
        FleetSpec.parse(GOOD).pool("rak")


MISTAKES = [  # the line as someone wrote it, where the mistake is, what is said, the right line
    ("name: My Test", "1:7", "a letter first, at most 40", "name: my-test"),
    ("regoin: us-east-1", "2:1", "the nearest is region", "region: us-east-1"),
    ("limits: {budget: $5}  # all", "4:18", "number with USD", "limits: {budget: 5 USD}  # all"),
    ("limits: {budget: 5}", "4:18", "a number with USD", "limits: {budget: 5 USD}"),
    ("limits: {drain: 60}", "4:17", "with s, m, h or d", "limits: {drain: 60s}"),
    ("limits: {drain: 2 minutes}", "4:17", "with s, m, h or d", "limits: {drain: 2m}"),
    ("limits: {drain: 20S}", "4:17", "with s, m, h or d", "limits: {drain: 20s}"),
    ("limits: {drain_s: 20s}", "4:10", "the nearest is drain", "limits: {drain: 20s}"),
    ('head: {cpus: "2"}', "5:14", "whole number without quotes", "head: {cpus: 2}"),
    ("head: {cpus: 2.0}", "5:14", "whole number without quotes", "head: {cpus: 2}"),
    ("head: {cpus: -1}", "5:14", "0 or more is meant", "head: {cpus: 0}"),
    ("    kind: proces", "8:11", "the kinds of pools here are process, ssh, ec2", "kind: process"),
    ("    market: onprem", "9:13", "one of on-prem, spot, on-demand", "market: on-prem"),
    ("    zone: 1", "11:11", "needs quotes", 'zone: "1"'),
    ("    zone: rack 1", "11:11", "letters, digits and . _ -", "zone: rack-1"),
    ("    price: 0.35", "12:12", "a number with USD/h", "price: 0.35 USD/h"),
    ("    price: $0.35/hour", "12:12", "a number with USD/h", "price: 0.35 USD/h"),
    ("    price: Unknown", "12:12", "or the word unknown", "price: unknown"),
    ("    traffic: {read: 0.09}", "12:21", "number with USD/GB", "traffic: {read: 0.09 USD/GB}"),
    ("    hosts: {min: 3, max: 1}", "13:26", "max is min (3) or more", "hosts: {min: 3, max: 3}"),
    ("    hosts: {mx: 3}", "13:13", "the nearest is max", "hosts: {max: 3}"),
    ("    hosts: 3", "13:12", "a mapping of keys is meant", "hosts: {min: 0, max: 2}"),
    ("  - name: rack", "14:11", "pools[0] already has the name rack", "- name: rack-2"),
    ("      memory: 512MB", "19:15", "MiB, GiB or TiB", "memory: 512MiB"),
    ("      memory: 2147483648", "19:15", "MiB, GiB or TiB", "memory: 2GiB"),
    ("      memory: 4", "19:15", "MiB, GiB or TiB", "memory: 4GiB"),
    ("      memory_bytes: 1GiB", "19:7", "the nearest is memory", "memory: 1GiB"),
]


@pytest.mark.parametrize(("wrong", "place", "says", "right"), MISTAKES)
def test_a_mistake_names_its_place_and_the_line_that_helps(
    wrong: str, place: str, says: str, right: str
) -> None:
    lines = GOOD.splitlines()
    at = int(place.split(":")[0]) - 1
    lines[at] = wrong
    message = refusal("\n".join(lines))
    assert message.startswith("fleet.yaml: 1 problem\n"), message
    assert f"fleet.yaml:{place}: " in message, message
    assert says in message
    assert message.endswith(f"\n      write:  {right}")
    lines[at] = wrong[: len(wrong) - len(wrong.lstrip())] + right
    FleetSpec.parse("\n".join(lines))  # the line it says to write is right


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("kind: slurm", "the kinds of pools here are process, ssh, ec2"),
        ("market: reserved", "one of on-prem, spot, on-demand"),
        ("price: 0.35 EUR/h", "a number with USD/h"),
        ("price: 8.4 USD/day", "a number with USD/h"),
        ("price: .nan", "a number with USD/h"),
        ("traffic: {write: 1 EUR/GB}", "a number with USD/GB"),
        ("zone:", "pools[0].zone has no value"),
        ("price: ~", "pools[0].price has no value"),
        ("zone: [a]", "letters, digits"),
        ("zone: !secret a", "tag !secret is not used"),
        ("name: head", "belongs to the head node"),
        ("shape: {cpus: 0, memory: 0GiB}", "above zero"),
        ("shape: {cpus: 1, memory: 2 months}", "MiB, GiB or TiB"),
        ("shape: {cpus: 1, memory: 1GiB, accelerator: A100}", "needs gpus"),
        ("shape: {cpus: true, memory: 1GiB}", "whole number"),
        ("hosts: {min: 0}", "pools[0].hosts.max is missing"),
        ("hosts: {max: 100001}", "100000"),
        ("colour: red", "no such key; known: name, kind, market, shape"),
        ("? {a: b}\n    : c", "a key is one word"),
    ],
)
def test_a_mistake_without_one_clear_correction_says_what_is_allowed(bad: str, says: str) -> None:
    key = bad.split(":")[0].split(" ")[0]
    lines = GOOD.splitlines()
    at = next((i for i in range(6, 13) if lines[i].strip(" -").startswith(key + ":")), 8)
    kept = lines[at][: len(lines[at]) - len(lines[at].lstrip(" -"))]
    lines[at : at + (key != "?" and key != "colour")] = [kept + bad]
    assert says in refusal("\n".join(lines))


def test_all_problems_of_a_file_come_at_once() -> None:
    text = GOOD.replace("budget: 5 USD, idle_timeout: 1.5m", "budgt: 5 USD, idle_timeout: 90")
    text = text.replace("market: spot", "market: sport").replace("name: burst", "name: rack")
    text = text.replace("    kind: process\n    market: on-prem\n", "    market: on-prem\n")
    message = refusal(text)
    assert message.splitlines()[0] == "fleet.yaml: 5 problems"
    for said in (
        "fleet.yaml:4:10: limits.budgt: no such key, the nearest is budget",
        "fleet.yaml:4:38: limits.idle_timeout is 90",
        "fleet.yaml:7:5: pools[0].kind is missing\n      add:    kind: process",
        "fleet.yaml:13:11: pools[1].name: pools[0] already has the name rack",
        "fleet.yaml:15:13: pools[1].market is sport",
    ):
        assert said in message, message
    assert "write:  limits: {budget: 5 USD, idle_timeout: 90s, drain: 20s}\n" in message
    lines = [line.split(":")[1] for line in message.splitlines() if line.startswith("  fleet")]
    assert lines == sorted(lines, key=int)


def test_two_regions_are_refused() -> None:
    message = refusal(GOOD.replace("    zone:", "    region: us-west-2\n    zone:"))
    assert "fleet.yaml:11:13: pools[0].region: a fleet is in one region" in message


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("{}", "object_store.kind is missing"),
        ("{kind: s3}", "needs a uri"),
        ("{kind: embedded, uri: s3://bucket}", "has its own uri"),
        ("{uri: gs://bucket}", "s3://bucket or s3://bucket/folder"),
        ("{uri: s3://bucket, endpoint: 'ftp://host'}", "http(s)://host"),
        ("{uri: s3://bucket, endpoint: localhost:8333}", "http://localhost:8333"),
        ("embedded", "a mapping of keys is meant"),
    ],
)
def test_an_object_store_that_cannot_be_is_refused(store: str, says: str) -> None:
    lines = GOOD.splitlines()
    lines[2] = f"object_store: {store}"
    assert says in refusal("\n".join(lines))


@pytest.mark.parametrize(
    "store",
    [
        "{uri: 's3://key:s3cr3t@bucket', endpont: x}",
        "{uri: s3://bucket, endpoint: 'https://key:s3cr3t@host', kin: s3}",
        "{uri: 's3://bucket?key=s3cr3t', kin: s3}",
        "[s3://key:s3cr3t@bucket]",
    ],
)
def test_credentials_are_refused_and_never_shown(store: str) -> None:
    lines = GOOD.splitlines()
    lines[2] = f"object_store: {store}"
    message = refusal("\n".join(lines))
    assert "s3cr3t" not in message
    assert "credentials do not belong in a fleet file" in message or store.startswith("[")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "fleet.yaml:1:1: the file is empty; it begins with:  name: my-fleet"),
        ("# only words\n", "the file is empty"),
        ("- a\n- b\n", "fleet.yaml:1:1: a fleet file is a mapping of keys"),
        ("just words\n", "a fleet file is a mapping of keys"),
        ("name: a\n\thead: b\n", "fleet.yaml:2:1: not YAML: a tab; YAML is indented with spaces"),
        ("name: [a\n", "not YAML: "),
        ("name: 'a\n", "not YAML: "),
        ("name: a\n---\nname: b\n", "fleet.yaml:2:1: not YAML: "),
        ("name: a\nname: b\n", "fleet.yaml:2:1: name is given twice, first in line 1; keep one"),
        ("name: &a [*a]\n", "fleet.yaml:1:7: an anchor that holds itself"),
        ("name: *a\n", "not YAML: "),
        ("name: \x07\n", "fleet.yaml:1:7: character #x0007 cannot stand in YAML"),
        ("[" * 1000, "nested too deep"),
        ('name: "\\UFFFFFFFF"\n', "not YAML: "),
        ("x" * 1_000_001, "over 1,000,000 characters"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{c}: &{c} [{','.join('*' + p for _ in range(10))}]\n" for p, c in
                      zip("abcdef", "bcdefg", strict=True)),
            "unfolds into too many values",
        ),
    ],
)  # fmt: skip
def test_what_is_not_a_fleet_file_is_told_with_its_place(text: str, says: str) -> None:
    assert says in refusal(text)


def test_words_that_older_yaml_reads_as_true_stay_words() -> None:
    spec = FleetSpec.parse(GOOD.replace("name: test", "name: on").replace('"1"', "2026-01-01"))
    assert (spec.name, spec.pools[0].zone) == ("on", "2026-01-01")


def test_a_part_that_is_used_twice_may_be_an_alias() -> None:
    text = GOOD.replace("hosts: {min: 1, max: 2}", "hosts: &few {min: 1, max: 2}")
    spec = FleetSpec.parse(text.replace("hosts: {max: 3}", "hosts: *few"))
    assert spec.pools[0].hosts == spec.pools[1].hosts


def test_a_byte_order_mark_does_not_shift_columns() -> None:
    assert FleetSpec.parse("\ufeff" + GOOD).name == "test"
    assert "fleet.yaml:1:7: name is Test" in refusal("\ufeff" + GOOD.replace("test", "Test", 1))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(GOOD)
    with pytest.raises(SpecError, match=r"no such file; fleet files there: .*other\.yaml"):
        FleetSpec.load(tmp_path / "fleet.yaml")
    with pytest.raises(SpecError, match=r"no such file; no \.yaml file is there"):
        FleetSpec.load(tmp_path / "none" / "fleet.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        FleetSpec.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(SpecError, match="byte 9 is not UTF-8"):
        FleetSpec.load(tmp_path / "latin.yaml")
    with pytest.raises(SpecError, match="not a file name"):
        FleetSpec.load(tmp_path / "a\0b")


def test_the_default_file_is_the_one_under_cluster_configs() -> None:
    assert default_path() == Path(__file__).parents[3] / "cluster_configs" / "local.yaml"
    spec = FleetSpec.load(default_path())
    found = [(p.name, str(p.market), p.max_hosts, p.price_usd_per_hour) for p in spec.pools]
    assert found == [
        ("rack", "on-prem", 2, 0.35),
        ("spot-a", "spot", 2, 0.92),
        ("spot-b", "spot", 2, 0.95),
        ("cloud", "on-demand", 2, 3.06),
    ]
    assert (spec.object_store.kind, spec.limits.idle_timeout_s, spec.limits.drain_s) == (
        "embedded",
        60.0,
        20.0,
    )


EC2 = """
name: burst
object_store: {uri: s3://bucket}
pools:
  - name: spot
    kind: ec2
    market: spot
    region: us-east-1
    shape: {cpus: 2, memory: 8GiB}
    hosts: {max: 4}
    ec2: {types: [m6i.large], image: ami-1, subnets: [subnet-1]}
"""


def test_a_pool_of_ec2_has_its_block() -> None:
    ec2 = FleetSpec.parse(EC2).pool("spot").ec2
    assert ec2 is not None
    assert (ec2.types, ec2.subnets, ec2.key) == (("m6i.large",), ("subnet-1",), None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    ec2: {", "    # {", "needs a block ec2: {types:"),
        ("    region: us-east-1\n", "", "needs its region"),
        ("market: spot", "market: on-prem", "bought on spot or on-demand"),
        ("{uri: s3://bucket}", "{kind: embedded}", "cannot reach a store on this machine"),
        ("kind: ec2", "kind: process", "only pools of kind ec2 have this block"),
        ("types: [m6i.large]", "types: []", "a list of instance types, one or more"),
        ("types: [m6i.large]", "types: m6i.large", "a list of instance types, one or more"),
        ("subnets:", "subnet:", "the nearest is subnets"),
    ],
)
def test_a_pool_of_ec2_is_told_what_it_lacks(old: str, new: str, says: str) -> None:
    text = EC2.replace(old, new)
    assert text != EC2
    assert says in refusal(text)


SSH = """
name: ours
object_store: {uri: s3://bucket}
pools:
  - name: rack
    kind: ssh
    market: on-prem
    shape: {cpus: 8, memory: 32GiB}
    hosts: {max: 2}
    ssh: {hosts: [10.0.0.7, 10.0.0.8], user: ray, open: [mon-fri 20:00-08:00, sat-sun]}
"""


def test_a_pool_of_ssh_has_its_block() -> None:
    ssh = FleetSpec.parse(SSH).pool("rack").ssh
    assert ssh is not None
    assert (ssh.hosts, ssh.user, ssh.port) == (("10.0.0.7", "10.0.0.8"), "ray", 22)
    assert (ssh.open, ssh.timezone) == (("mon-fri 20:00-08:00", "sat-sun"), "UTC")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    ssh: {", "    # {", "needs a block ssh: {hosts:"),
        ("{uri: s3://bucket}", "{kind: embedded}", "machines of yours cannot reach a store"),
        ("kind: ssh", "kind: process", "only pools of kind ssh have this block"),
        ("hosts: [10.0.0.7, 10.0.0.8]", "hosts: []", "a list of addresses, one or more"),
        ("20:00-08:00", "8pm", "is no opening hours"),
        ("user: ray", "user: ray, timezone: Mars", "no such zone"),
    ],
)
def test_a_pool_of_ssh_is_told_what_it_lacks(old: str, new: str, says: str) -> None:
    text = SSH.replace(old, new)
    assert text != SSH
    assert says in refusal(text)
