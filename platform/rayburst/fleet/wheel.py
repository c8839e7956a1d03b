"""The package that runs here as a wheel, for machines that are to run the same.

    file = write_wheel(folder)          # rayburst-0.1.0+3f2c91ab-py3-none-any.whl

Made of the files of the imported package, whether it was installed or runs from a checkout, without
a build and without a network. Its version carries a digest of its content, so pip replaces what
differs and leaves what is the same. The same files make the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import rayburst
from rayburst.fleet.files import write_atomically

_WHEEL = "Wheel-Version: 1.0\nGenerator: rayburst\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (2020, 1, 1, 0, 0, 0)


def write_wheel(folder: Path) -> Path:
    """Write the wheel into `folder`, unless it is there; other wheels of rayburst there go."""
    package = Path(rayburst.__path__[0])
    files = {
        f"rayburst/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    name = f"rayburst-{_version(files)}"
    target = folder / f"{name}-py3-none-any.whl"
    for other in folder.glob("rayburst-*.whl"):
        if other != target:
            other.unlink()
    if not target.exists():
        write_atomically(target, _packed(name, files))
    return target


def _version(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{distribution('rayburst').version.partition('+')[0]}+{digest.hexdigest()[:8]}"


def _packed(name: str, files: dict[str, bytes]) -> bytes:
    info = f"{name}.dist-info"
    installed = distribution("rayburst")
    version = name.partition("-")[2]
    metadata = re.sub(
        r"(?m)^Version: .*$", f"Version: {version}", installed.read_text("METADATA") or "", count=1
    )
    scripts = installed.read_text("entry_points.txt") or ""
    licence = installed.read_text("licenses/LICENSE") or ""
    extra = {
        "METADATA": metadata,
        "WHEEL": _WHEEL,
        "entry_points.txt": scripts,
        "licenses/LICENSE": licence,
    }
    files = {**files, **{f"{info}/{file}": text.encode() for file, text in extra.items()}}
    record = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in files.items():
                entry = zipfile.ZipInfo(path, date_time=_EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
