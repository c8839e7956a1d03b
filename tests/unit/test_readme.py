"""README and docs are held to the repository: commands, names, files, keys and the tree exist.

Nothing is run here (`tests/integration/docs` does). Commands are parsed by the command lines they
are for, Python is compiled and its calls are bound to the signatures they meet.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import typer
import yaml
from docs_blocks import (
    NOT_RUN,
    OWN,
    PAGES,
    README,
    ROOT,
    Block,
    blocks,
    commands,
    not_run,
    pages_to_run,
)
from typer.exceptions import TyperException

import rayburst
from rayburst.checkpoint.store import ObjectStore
from rayburst.cli import app
from rayburst.cost.bill import Bill, MarketUsage
from rayburst.cost.entries import Entry
from rayburst.cost.statement import Statement
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.status import FleetStatus, NodeStatus
from rayburst.job import Job
from rayburst.models import ModelRegistry, ModelVersion
from rayburst.report.fleet_page import FleetStory
from rayburst.report.run_page import RunStory
from rayburst.sdk import Platform
from rayburst.serve.deploy import DeployStatus

# What names stand for in the examples; `p = rb.connect()` is said in each of them.
KNOWN: dict[str, Any] = {
    "rb": rayburst,
    "p": Platform,
    "job": Job,
    "status": FleetStatus,
    "node": NodeStatus,
    "event": NodeEvent,
    "deployed": DeployStatus,
    "bill": Bill,
    "told": Statement,
    "page": RunStory,
    "story": FleetStory,
    "entry": Entry,
    "market": MarketUsage,
    "store": ObjectStore,
    "models": ModelRegistry,
    "version": ModelVersion,
    "error": Exception,
}
SHELL = {"cd", "curl", "docker", "export", "git", "kubectl", "pip", "source", "tar"}
PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|ya?ml|md|txt|svg)")
NOT_OURS = (
    "fleet.schema.json",
    "fleet.yaml",
    "no_such_file.py",
    "notes/hello.txt",
    "lab.yaml",
    "lab.ray.yaml",
    "onprem.ray.yaml",
    "spread.py",
)
REFUSED = (click.ClickException, TyperException, AssertionError)


def test_blocks_say_their_language_or_are_plain_text():
    known = {"bash", "python", "yaml", "json", "text", ""}
    assert [str(b) for b in blocks("sh", "shell", "py", "yml", "console")] == []
    assert {b.language for b in blocks(*known)} >= {"bash", "python", "yaml", "json", "text"}


# commands


def parse(command: Any, name: str, words: list[str]) -> None:
    """Parse words as the command line would; raises its own error. Typer has a click of its own."""
    context = command.make_context(name, list(words))
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        child = command.get_command(context, rest[0])
        assert child is not None, f"{name} has no command {rest[0]!r}"
        parse(child, rest[0], rest[1:])


@pytest.fixture(scope="module")
def lines() -> dict[str, Any]:
    """The command lines that the pages use, ours and Ray's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own use of deprecated parts
        from ray.scripts.scripts import cli as ray
        from ray.serve.scripts import cli as serve
    return {"rayburst": typer.main.get_command(app), "ray": ray, "serve": serve}


def make_targets() -> list[str]:
    rules = re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [rule.replace("%", "[A-Za-z-]+") for rule in rules]


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_every_command_exists_with_its_options(block, lines, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(block):
        name, *rest = words
        if name in ("rayburst", "ray", "serve"):
            before, _, _ = " ".join(rest).partition(" > ")
            try:
                parse(lines[name], name, rest[: len(before.split())] if before else rest)
            except REFUSED as error:
                pytest.fail(f"{block}: `{shlex.join(words)}`: {error}")
        elif name == "make":
            for target in rest:
                assert any(re.fullmatch(rule, target) for rule in make_targets()), target
        elif name == "eval":
            assert rest == ["SUBSTITUTED"]
        else:
            assert name in SHELL or (ROOT / name).is_file(), f"{block}: what is {name!r}?"


@pytest.mark.parametrize("block", blocks("bash", "python"), ids=str)
def test_files_that_examples_name_exist(block):
    for found in PATH.findall(re.sub(r"\w+://\S+", "", block.text)):
        assert (ROOT / found).is_file() or found in NOT_OURS, f"{block}: no {found}"


def test_what_is_not_run_is_there_and_pages_with_a_test_of_their_own_have_it():
    used = set()
    for name, found in pages_to_run().items():
        for block in found:
            texts = [block.text]
            if block.language == "bash":
                texts = [shlex.join(words) for words in commands(block)]
            used |= {not_run(name, text) for text in texts}
    assert set(NOT_RUN) - used == set(), "nothing on the page is like this any more"
    for page, test in OWN.items():
        assert page in (ROOT / test).read_text(), f"{test} does not run {page}"


def test_a_wrong_command_would_be_noticed(lines):
    for words in (["up", "--nme", "x"], ["fleet", "chek", "x"], ["interrupt"]):
        with pytest.raises(REFUSED):
            parse(lines["rayburst"], "rayburst", words)


def test_options_of_jobs_exist():
    for page in PAGES:
        for job, words in re.findall(r"python (jobs/\w+\.py)([^\"`\n]*)", page.read_text()):
            source = (ROOT / job).read_text()
            for option in re.findall(r"--[a-z-]+", words):
                told = f'"{option}"' in source or f'"{option[2:]}"' in source
                assert told, f"{page.name}: {job} has no {option}"


def test_make_and_rayburst_in_the_prose_exist(lines):
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)`", page.read_text()):
            assert any(re.fullmatch(rule, target) for rule in make_targets()), (page, target)
        for name in re.findall(r"`rayburst ([a-z]+)\b[^`]*`", page.read_text()):
            assert name in lines["rayburst"].commands, (page, name)


def test_every_command_is_told_of_somewhere(lines):
    told = "\n".join(page.read_text() for page in PAGES)
    for name in lines["rayburst"].commands:
        assert f"rayburst {name}" in told, f"neither README nor docs say what {name!r} is for"


# Python


def attribute(owner: Any, name: str) -> Any:
    """A member of a class or module; fields of dataclasses and set in __init__ count."""
    if inspect.isclass(owner):
        annotated = {n for kind in owner.__mro__ for n in getattr(kind, "__annotations__", {})}
        if name in annotated and not hasattr(owner, name):
            return None
        if owner in (Platform, Job) and f"self.{name} = " in inspect.getsource(owner.__init__):
            return None
    return getattr(owner, name)


def unpacked(target: Any) -> set[str]:
    """The keywords of a function that takes `**terms: Unpack[SomeTypedDict]`, which bind any."""
    for parameter in inspect.signature(target).parameters.values():
        match = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation))
        if match:
            return set(getattr(inspect.getmodule(target), match[1]).__annotations__)
    return set()


def meets(owner: Any, call: ast.Call) -> None:
    """The call's arguments fit what it calls."""
    assert isinstance(call.func, ast.Attribute)
    target = attribute(owner, call.func.attr)
    if target is None or not callable(target):
        return
    given = {k.arg: None for k in call.keywords if k.arg and k.arg not in unpacked(target)}
    positional = [None] * len(call.args)
    if inspect.isclass(owner) and not inspect.ismethod(target):
        positional.insert(0, None)  # self
    signature = inspect.signature(target)
    if unpacked(target):
        known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        signature = signature.replace(parameters=known)
    signature.bind(*positional, **given)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles_and_uses_what_exists(block):
    tree = ast.parse(block.text, filename=str(block))
    names = dict(KNOWN)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                names[alias.asname or alias.name] = getattr(module, alias.name)
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    for node in used:
        if isinstance(node.value, ast.Name) and node.value.id in names:
            owner = names[node.value.id]
            assert not node.attr.startswith("_")
            if owner is rayburst:
                assert node.attr in rayburst.__all__, f"{block}: rb.{node.attr}"
            attribute(owner, node.attr)
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        at = call.func.value if isinstance(call.func, ast.Attribute) else None
        if isinstance(at, ast.Name) and at.id in names:
            meets(names[at.id], call)


def test_a_wrong_name_or_argument_would_be_noticed():
    for text in ("p.sumbit('x')", "p.submit('x', workingdir=1)", "rb.conect()"):
        with pytest.raises((AssertionError, AttributeError, TypeError)):
            test_python_compiles_and_uses_what_exists(Block(README, 0, "python", text))


def test_the_sdk_page_shows_every_public_method():
    text = (ROOT / "docs" / "sdk.md").read_text()
    for owner, name in ((Platform, "p"), (Job, "job")):
        for member in (m for m in vars(owner) if not m.startswith("_")):
            assert re.search(rf"\b{name}\.{member}\b", text), f"docs/sdk.md: {name}.{member}"


# fleet files, events, numbers


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_loads_and_whole_fleet_files_are_valid(block):
    loaded = yaml.safe_load(block.text)
    if "pools" in loaded:
        assert FleetSpec.parse(block.text, source=str(block)).pools


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_loads_and_an_event_has_the_fields_of_one(block):
    loaded = json.loads(block.text)
    if "kind" in loaded:
        assert set(loaded) == {field.name for field in fields(NodeEvent)}


def test_the_fleet_page_names_every_key_of_the_file():
    text = (ROOT / "docs" / "fleet.md").read_text()
    schema = json.dumps(FleetSpec.model_json_schema(by_alias=True))
    for part in (json.loads(schema), *json.loads(schema)["$defs"].values()):
        for key in part.get("properties", {}):
            assert re.search(rf"`{key}`|`{{{key}:|[{{ ]{key}: ", text), f"docs/fleet.md: {key}"
    for field in fields(NodeEvent):
        assert f"`{field.name}`" in text


def test_the_fleet_page_has_the_defaults_of_the_code():
    text = (ROOT / "docs" / "fleet.md").read_text()
    limits = FleetSpec.model_fields["limits"].default
    assert f"| `idle_timeout` | `{limits.idle_timeout_s:.0f}s` |" in text
    assert f"| `drain` | `{limits.drain_s:.0f}s` |" in text
    assert limits.budget_usd is None


def test_versions_in_the_readme_are_the_pinned_ones():
    pinned = dict(re.findall(r"^(ray|torch)(?:\[.*\])?==(\S+)", _read("constraints.txt"), re.M))
    for name, version in pinned.items():
        assert f"{name.title() if name == 'ray' else name} {version}" in _read("README.md")


# links, picture, tree


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(goal), f"{page.name}: {target}; has {sorted(anchors(goal))}"


def test_the_picture_is_whole_and_says_what_it_shows():
    picture = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    tags = {element.tag.rpartition("}")[2] for element in picture.iter()}
    assert {"title", "desc", "style"} <= tags
    assert not tags & {"script", "foreignObject", "image"}, "GitHub shows none of these"


def tree() -> dict[str, str]:
    """The README's tree: path from the root, and what it says about it."""
    block = next(b for b in blocks("text") if b.page == README and "platform/rayburst/" in b.text)
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in block.text.splitlines():
        match = re.fullmatch(r"( *)(\S+/) +(\S.*)", line)
        assert match, f"a folder and one line about it, not: {line!r}"
        above = [(depth, path) for depth, path in above if depth < len(match[1])]
        path = "".join(path for _, path in above) + match[2]
        above.append((len(match[1]), match[2]))
        found[path.rstrip("/")] = match[3]
    return found


def test_the_tree_is_true():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    folders = {Path(file).parts[:-1] for file in listed if (ROOT / file).exists()}
    top = {parts[0] for parts in folders if parts}
    package = {parts[2] for parts in folders if len(parts) > 2 and parts[0] == "platform"}
    told = {Path(path).parts for path in tree()}
    assert {parts[0] for parts in told} == top
    assert {parts[2] for parts in told if len(parts) == 3} == package
    for path in tree():
        assert (ROOT / path).is_dir(), f"README's tree: no folder {path}"


def _read(name: str) -> str:
    return (ROOT / name).read_text()
