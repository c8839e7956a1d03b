"""What an EC2 instance of a cloud in a box is told about itself, and the image it runs. Pure."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME = "/run/home"


def user_data_of(instance: Any) -> str | None:
    """The user data of one of moto's instances, as text; None when there is none."""
    data = instance.user_data
    if data is None:
        return None
    text: str = data.decode() if hasattr(data, "as_bytes") else base64.b64decode(data).decode()
    return text or None


def described(instance: Any, *, zone: str, region: str) -> Mapping[str, str]:
    """The metadata of an instance, by path."""
    return {
        "instance-id": instance.id,
        "instance-type": instance.instance_type,
        "instance-life-cycle": "spot" if instance.lifecycle == "spot" else "on-demand",
        "local-ipv4": instance.private_ip,
        "local-hostname": instance.id,
        "placement/availability-zone": zone,
        "placement/region": region,
    }


def image_environment() -> dict[str, str]:
    """The environment of user data: an image on which this Python and rayburst are installed."""
    path = f"{Path(sys.executable).parent}:/run/bin:{_PATH}"
    return {"PATH": path, "HOME": HOME, "LANG": "C.UTF-8", "USER": "root"}
