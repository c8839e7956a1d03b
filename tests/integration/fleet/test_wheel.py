"""The package as a wheel for other machines: what pip installs from it is what runs here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import rayburst
from rayburst.fleet.wheel import write_wheel


def test_pip_installs_it_into_an_empty_folder_and_it_runs(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "ship")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    command = [*pip, "--disable-pip-version-check", "--target", str(tmp_path / "empty"), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import rayburst; "
        "from importlib.metadata import distribution as d; "
        "print(rayburst.__file__, d('rayburst').version)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "empty")],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    where, version = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "empty")
    assert version == wheel.name.split("-")[1]
    package, installed = Path(rayburst.__path__[0]), tmp_path / "empty" / "rayburst"
    for file in package.rglob("*.yaml"):
        assert (installed / file.relative_to(package)).read_bytes() == file.read_bytes()
    assert (tmp_path / "empty" / "bin" / "rayburst").exists(), "the command is there"


def test_the_same_files_make_the_same_wheel_once(tmp_path: Path) -> None:
    stale = tmp_path / "rayburst-0.0.1-py3-none-any.whl"
    stale.touch()
    first = write_wheel(tmp_path)
    made, content = first.stat().st_mtime_ns, first.read_bytes()
    assert write_wheel(tmp_path) == first
    assert first.stat().st_mtime_ns == made, "it was there"
    first.unlink()
    assert write_wheel(tmp_path).read_bytes() == content
    assert not stale.exists()
    assert not any("__pycache__" in name for name in zipfile.ZipFile(first).namelist())
