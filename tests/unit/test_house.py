"""The rules of the house that a machine can check. CONTRIBUTING.md says why they are there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "rayburst"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "_pb2" not in p.name)  # made by protoc
THIN = [p for folder in ("jobs", "serve_apps") for p in sorted((ROOT / folder).rglob("*.py"))]
SHIPPED = [*MODULES, *THIN]

_PRIVATE_RAY = re.compile(r"^ray\.((.*\.)?_\w+|core\.generated|autoscaler\.v2)(\.|$)")
_EFFECTS = {"ray", "torch", "time", "random", "secrets", "socket", "subprocess", "requests"}
_LISTED_ONCE = "one exception tree, drawn at the top of rayburst/errors.py"


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Every dotted name that a module imports, names taken from a package included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _reached(tree: ast.Module) -> Iterator[str]:
    """Dotted names in expressions, and texts that name a module (for import_module)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def private_ray(source: str) -> list[str]:
    """The private parts of Ray that a module touches."""
    tree = ast.parse(source)
    return [name for name in (*_imported(tree), *_reached(tree)) if _PRIVATE_RAY.match(name)]


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray import _raylet",
        "from ray._raylet import GcsClient",
        "from ray.serve._private.replica import start_asgi_http_server",
        "from ray.train.v2._internal.execution import controller",
        "from ray.core.generated import autoscaler_pb2",
        "from ray.autoscaler.v2 import sdk",
        "import ray\nray._private.worker.global_worker",
        "import importlib\nimportlib.import_module('ray._private.worker')",
    ],
)
def test_the_guard_sees_every_way_into_rays_private_parts(source: str) -> None:
    assert private_ray(source)


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray.init()",
        "from ray.job_submission import JobSubmissionClient",
        "from ray.autoscaler.node_provider import NodeProvider",
        "from __future__ import annotations",
    ],
)
def test_the_guard_lets_rays_public_parts_pass(source: str) -> None:
    assert private_ray(source) == []


def test_rays_private_modules_are_touched_in_hook_files_only() -> None:
    others = [path for path in SHIPPED if path.name != "_ray_hooks.py"]
    touched = {_id(path): found for path in others if (found := private_ray(path.read_text()))}
    assert touched == {}, "move this into a _ray_hooks.py of its subpackage"


def test_platform_holds_the_package_and_nothing_else() -> None:
    held = {path.name for path in (ROOT / "platform").iterdir() if path.suffix != ".egg-info"}
    assert held == {"rayburst"}, "a module here would shadow the standard library's `platform`"


def test_import_platform_from_the_root_is_the_standard_library() -> None:
    where = _run("import platform; print(platform.__file__)")
    assert Path(where).is_relative_to(sysconfig.get_paths()["stdlib"])


def test_import_rayburst_loads_nothing_heavy() -> None:
    heavy = ("ray", "torch", "pyarrow", "pandas", "plotly", "numpy", "pydantic")
    check = f"import sys, rayburst; print([m for m in {heavy} if m in sys.modules])"
    assert _run(check) == "[]"


def _run(code: str) -> str:
    """The output of a fresh interpreter in the repository's root."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _longer(paths: list[Path], most: int) -> list[str]:
    return [_id(path) for path in paths if len(path.read_text().splitlines()) >= most]


def test_a_file_of_the_package_stays_under_500_lines() -> None:
    assert _longer(MODULES, 500) == [], "split it: one noun a file"


def test_jobs_and_apps_stay_under_80_lines() -> None:
    told = "jobs/ and serve_apps/ parse, build and run; the logic lives in rayburst"
    assert _longer(THIN, 80) == [], told


def test_functions_stay_readable() -> None:
    for path, node in ((p, n) for p in SHIPPED for n in ast.walk(_tree(p))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [a for a in arguments if a.arg not in ("self", "cls")]
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 100, f"{_id(path)}:{node.lineno}: {node.name} has {length} lines"
            is_command = path.name.endswith("_cli.py") or any(
                "command" in ast.unparse(d) for d in node.decorator_list
            )
            if not is_command:  # a command has a parameter for each of its options
                assert len(own) <= 9, f"{_id(path)}:{node.lineno}: {node.name}: {len(own)} params"


def test_a_module_says_what_it_is_and_is_finished() -> None:
    for path in SHIPPED:
        text, tree, name = path.read_text(), _tree(path), _id(path)
        assert not text.strip() or ast.get_docstring(tree), f"{name}: what is it, how is it run?"
        unfinished = re.findall(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b", text)
        assert not unfinished, f"{name}: finish it, or leave it out"
        asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not asserts, f"{name}:{asserts}: raise an error that says what is allowed"


def test_what_calls_itself_pure_has_no_clock_no_ray_and_no_network() -> None:
    for path in MODULES:
        doc = ast.get_docstring(_tree(path)) or ""
        if re.search(r"(?:^|[.\n] ?)Pure[.:]", doc):
            found = {name.split(".")[0] for name in _imported(_tree(path))} & _EFFECTS
            assert not found, f"{_id(path)} says that it is pure and imports {sorted(found)}"


def test_what_the_platform_stands_on_knows_nothing_of_dev() -> None:
    inner = [
        path for path in MODULES if path.parent != PACKAGE and PACKAGE / "dev" not in path.parents
    ]
    knows = {
        _id(p): d
        for p in inner
        if (d := [n for n in _imported(_tree(p)) if n.startswith("rayburst.dev")])
    }
    assert knows == {}, "the command line and the SDK alone start fleets of this machine"


def test_every_exception_stands_in_the_one_tree() -> None:
    home = PACKAGE / "errors.py"
    drawn = ast.get_docstring(_tree(home)) or ""
    for node in _tree(home).body:
        if isinstance(node, ast.ClassDef):
            assert re.search(rf"\b{node.name}\b", drawn), f"{node.name}: {_LISTED_ONCE}"
    for path in MODULES:
        for inner in ast.walk(_tree(path)):
            private = isinstance(inner, ast.ClassDef) and inner.name.startswith("_")
            if isinstance(inner, ast.ClassDef) and path != home and not private:
                bases = [ast.unparse(base).rsplit(".", 1)[-1] for base in inner.bases]
                raised = [b for b in bases if b.endswith(("Error", "Exception"))]
                assert not raised, f"{_id(path)}: {inner.name}: {_LISTED_ONCE}"


def test_the_library_is_linted_for_print() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "T20" in lint["select"]
    spared = [where for where, rules in lint["per-file-ignores"].items() if "T20" in rules]
    allowed = {
        "benchmarks/**",
        "jobs/**",
        "notebooks/**",
        "scripts/**",
        "tests/integration/fleet/work.py",
    }
    assert set(spared) <= allowed, "the command line prints through rich and typer"


def test_tests_have_no_packages_and_names_of_their_own() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not [path for path in tests if path.name == "__init__.py"]
    twice = [name for name, count in Counter(path.name for path in tests).items() if count > 1]
    assert not twice, f"two test files of one name: {twice}"
