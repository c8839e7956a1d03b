"""The public surface and the command line are frozen here: changing them is a decision."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
import typer
from typer.testing import CliRunner

import rayburst
from rayburst.cli import app

PUBLIC = ["Job", "Platform", "RayburstError", "__version__", "connect", "runtime_env", "serve"]

COMMANDS = {
    "checkpoints diff": ["--help", "first", "second", "uri"],
    "checkpoints export": ["--help", "--prefix", "--step", "folder", "uri"],
    "checkpoints gc": [
        "--best",
        "--best-count",
        "--compact",
        "--delete",
        "--drop-damaged",
        "--every",
        "--grace",
        "--help",
        "--keep",
        "--mode",
        "--no-compact",
        "--no-drop-damaged",
        "uri",
    ],
    "checkpoints import": ["--help", "--step", "folder", "uri"],
    "checkpoints ls": ["--help", "uri"],
    "checkpoints pin": ["--help", "step", "uri"],
    "checkpoints show": ["--help", "--step", "uri"],
    "checkpoints unpin": ["--help", "step", "uri"],
    "checkpoints verify": ["--all", "--help", "--step", "uri"],
    "cost": ["--by", "--focus", "--help", "--json", "name"],
    "dashboard": ["--help"],
    "demo": ["--help", "--keep", "--name"],
    "dev cloud down": ["--folder", "--help"],
    "dev cloud run": ["--folder", "--help", "--host", "command"],
    "dev cloud status": ["--folder", "--help"],
    "dev cloud up": [
        "--folder",
        "--help",
        "--hosts",
        "--no-store",
        "--notice",
        "--per-zone",
        "--script",
        "--speed",
        "--store",
        "--trace",
        "--zones",
    ],
    "down": ["--help", "name"],
    "env": ["--help", "name"],
    "events": ["--help", "--json", "--node", "name"],
    "fleet check": ["--help", "--live", "file"],
    "fleet explain": ["--about", "--help", "--last", "name"],
    "fleet replan": ["--file", "--help", "name"],
    "fleet render": ["--entrypoint", "--help", "--image", "--serve", "--to", "file"],
    "fleet schema": ["--help"],
    "hardware": [
        "--file",
        "--gpu",
        "--heads",
        "--help",
        "--layers",
        "--market",
        "--micro-batch",
        "--params",
        "--precision",
        "--recompute",
        "--sequence",
        "--tokens",
        "--utilisation",
        "--width",
    ],
    "interrupt": ["--fleet", "--help", "--notice", "node"],
    "keys create": ["--days", "--help", "--model", "--store", "tenant"],
    "keys ls": ["--help", "--store"],
    "keys revoke": ["--help", "--store", "key"],
    "keys rotate": ["--help", "--overlap", "--store", "key"],
    "logs": ["--fleet", "--follow", "--help", "-f", "what"],
    "market": ["--fleet", "--help", "--hosts", "--notice", "pool"],
    "models canary": [
        "--agreement",
        "--alias",
        "--errors",
        "--help",
        "--no-shadow",
        "--risk",
        "--shadow",
        "--slower",
        "--store",
        "--weight",
        "--why",
        "ref",
    ],
    "models ls": ["--help", "--store", "name"],
    "models promote": ["--alias", "--help", "--store", "--why", "ref"],
    "models publish": ["--help", "--name", "--store", "--variant", "run"],
    "models rollback": ["--alias", "--help", "--store", "--why", "name"],
    "models show": ["--help", "--store", "ref"],
    "models verify": ["--help", "--store", "ref"],
    "models withdraw": ["--alias", "--help", "--store", "--why", "name"],
    "plan": [
        "--budget",
        "--changeover",
        "--deadline",
        "--file",
        "--futures",
        "--help",
        "--jobs",
        "--json",
        "--nodes",
        "--plot",
        "--seed",
        "--steps",
        "--traces",
        "--work",
        "run",
    ],
    "prices check": ["--help", "file"],
    "prices ls": ["--file", "--gpu", "--help", "--json", "--provider", "--region", "--sku"],
    "prices template": ["--help"],
    "queue": ["--help", "name"],
    "report": ["--by", "--help", "--out", "--run", "name"],
    "simulate": [
        "--changeover",
        "--every",
        "--fraction",
        "--help",
        "--json",
        "--nodes",
        "--plot",
        "--polarity",
        "--policies",
        "--thin",
        "--traces",
        "--work",
        "--zones",
    ],
    "status": ["--help", "name"],
    "submit": [
        "--budget",
        "--deadline",
        "--fleet",
        "--floor",
        "--help",
        "--market",
        "--no-wait",
        "--priority",
        "--span",
        "--tenant",
        "--wait",
        "--working-dir",
        "entrypoint",
    ],
    "tco": ["--against", "--file", "--help", "--plot", "--useful", "sku"],
    "top": ["--every", "--help", "--once", "--svg", "name"],
    "up": ["--dashboard-port", "--help", "--name", "--recover", "--serve-port", "file"],
    "watch": ["--address", "--help", "--imds", "--node-ip", "--rebalance"],
}


def commands(group: click.Group, prefix: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            words = [w for p in command.params for w in (*p.opts, *p.secondary_opts)]
            found[prefix + name] = sorted({*words, "--help"})
    return found


def test_the_package_exports_what_it_promises():
    assert sorted(rayburst.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(rayburst, name) is not None
    with pytest.raises(AttributeError, match="connect"):
        _ = rayburst.conect


def test_the_command_line_has_these_commands_and_options():
    found = commands(typer.main.get_command(app))
    assert found == COMMANDS


@pytest.mark.parametrize("command", [[], *(name.split() for name in COMMANDS)])
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_both_ways_in_print_the_same():
    answers = [
        subprocess.run(
            [*way, "fleet", "schema"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for way in ([sys.executable, "-m", "rayburst"], [f"{sys.prefix}/bin/rayburst"])
    ]
    assert answers[0] == answers[1]
    assert json.loads(answers[0])["title"]


def test_errors_are_one_clear_line_and_exit_code_1(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "rayburst", "status", "nope"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: no fleet named 'nope'")
    assert "rayburst up" in result.stderr
    assert "Traceback" not in result.stderr
