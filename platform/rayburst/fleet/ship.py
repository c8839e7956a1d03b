"""What `ray up` carries from the user's machine to the head: package, fleet file, token, keys.

    ship = pack("onprem", text, home=Path.home(), environment=os.environ)

It all lies in `~/.rayburst/NAME/ship` of both machines: the package as a wheel, the fleet file,
Ray's token and, where the environment holds them, the keys of the object store. The token is made
once and kept, so that the next `ray up` or `ray exec` reaches the same cluster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

from rayburst.fleet.files import write_atomically
from rayburst.fleet.wheel import write_wheel

STORE_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


def home_of(name: str) -> str:
    """The folder of a fleet on machines that `ray up` reaches, for a shell."""
    return f"~/.rayburst/{name}"


def pack(name: str, text: str, *, home: Path, environment: Mapping[str, str]) -> Path:
    """Write the ship of a fleet; what is there and right stays. Returns its folder.

    Args:
        text: the fleet file.
        environment: where the keys of the object store are looked for.
    """
    folder = home / ".rayburst" / name / "ship"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_wheel(folder)
    write_atomically(folder / "fleet.yaml", text)
    if not (folder / "token").exists():
        write_atomically(folder / "token", token_hex(32), private=True)
    keys = {key: environment[key] for key in STORE_KEYS if key in environment}
    if "AWS_ACCESS_KEY_ID" in keys:
        write_atomically(folder / "store.json", json.dumps(keys), private=True)
    return folder
