"""Compare the version in pyproject.toml, the package and the newest entry of CHANGELOG.md."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
package = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "platform/rayburst/__init__.py").read_text(), re.M
)
entry = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
found = {
    "pyproject.toml": project,
    "rayburst/__init__.py": package and package[1],
    "CHANGELOG.md": entry and entry[1],
}
if len(set(found.values())) != 1:
    raise SystemExit(f"versions differ: {found}")
