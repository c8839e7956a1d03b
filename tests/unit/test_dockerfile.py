"""The Dockerfile: linted, true to the pinned versions, and given all that it copies."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")
TEXT = (ROOT / "Dockerfile").read_text()


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(HADOLINT), "--no-color", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copied() -> list[str]:
    """What the image is given of this repository."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_the_linter_finds_nothing() -> None:
    done = lint(ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "broken",
    [
        TEXT.replace("python:3.11-slim-bookworm", "python:latest"),
        TEXT.replace("WORKDIR /home/ray", "WORKDIR home"),
        TEXT.replace("--no-install-recommends ", ""),
        TEXT.replace("CMD [", "CMDS ["),
    ],
)
def test_the_linter_bites(broken: str, tmp_path: Path) -> None:
    assert broken != TEXT
    (tmp_path / "Dockerfile").write_text(broken)
    assert lint(tmp_path / "Dockerfile").returncode != 0


def test_its_versions_are_the_tested_ones() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert set(re.findall(r"torch==([\d.]+)", TEXT)) == {pins["torch"]}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=" + re.findall(r"FROM python:([\d.]+)-", TEXT)[0]


def test_each_flavour_is_a_stage_and_one_is_the_default() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", TEXT, re.MULTILINE))
    assert {"cpu", "cuda"} <= stages
    assert re.findall(r"^ARG FLAVOUR=(\w+)$", TEXT, re.MULTILINE) == ["cpu"]


def test_all_that_is_copied_is_there_and_let_through() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in rules, f"{name} is not in the build's context"
    given = [(ROOT / name).resolve() for name in copied()]
    links = [path for name in copied() for path in (ROOT / name).rglob("*") if path.is_symlink()]
    for link in links:
        assert any(link.resolve().is_relative_to(one) for one in given), f"{link} leads outside"
