"""Export and import in Hugging Face's layout: safetensors files and their index.

    export_safetensors(store, step, Path("out"))    out/model.safetensors, or shards and an index
    import_safetensors(Path("out"))                 flat {name: tensor}; save it as any state

Tensors go by their flat names; one shard of the file is in memory at a time. What is no tensor
goes to `rayburst.json` beside them. Deliberately does not rename weights for any model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.reader import read_state
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.tree import flatten
from rayburst.errors import CheckpointError

__all__ = ["export_safetensors", "import_safetensors"]

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
REST = "rayburst.json"


def export_safetensors(
    store: ObjectStore,
    step: int | None,
    folder: Path,
    *,
    prefix: str = "",
    shard_bytes: int = SHARD_BYTES,
    on_file: Callable[[str, int], None] = lambda name, tensors: None,
) -> list[Path]:
    """Write the tensors whose flat name starts with `prefix`, without it. Returns the files.

    CheckpointError where no name starts so, or the folder holds an export already.
    """
    from safetensors.torch import save_file

    manifest = read_manifest(store, step)
    names = [n for n in manifest.tensors if n.startswith(prefix)]
    if not names:
        raise CheckpointError(
            f"no tensor of step {manifest.step} starts with {prefix!r}. There are: "
            f"{', '.join(list(manifest.tensors)[:5])}, ..."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds safetensors files already; choose an empty folder")
    parts = list(_parts(manifest, names, shard_bytes))
    weight_map: dict[str, str] = {}
    files = []
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        name = "model.safetensors" if len(parts) == 1 else name
        tensors = _tensors(store, manifest, part)
        shown = {n.removeprefix(prefix): t.contiguous() for n, t in tensors.items()}
        save_file(shown, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shown, name)
        files.append(folder / name)
        on_file(name, len(part))
    if len(parts) > 1:
        total = sum(_size(manifest, n) for n in names)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
    rest = {"step": manifest.step, "save": manifest.save, "about": dict(manifest.about)}
    (folder / REST).write_text(json.dumps(rest, indent=1))
    return files


def import_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an export, or of any model in Hugging Face's layout, by name.

    CheckpointError for a folder without safetensors files, or with one of the index missing.
    """
    from safetensors.torch import load_file

    index = folder / INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise CheckpointError(f"{folder} holds no safetensors files")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: missing; {INDEX} names it")
    found: dict[str, torch.Tensor] = {}
    for name in names:
        found |= load_file(folder / name)
    return found


def _parts(manifest: Manifest, names: list[str], shard_bytes: int) -> Iterator[list[str]]:
    part: list[str] = []
    filled = 0
    for name in names:
        size = _size(manifest, name)
        if part and filled + size > shard_bytes:
            yield part
            part, filled = [], 0
        part.append(name)
        filled += size
    yield part


def _size(manifest: Manifest, name: str) -> int:
    return sum(c.length for shard in manifest.tensors[name].shards for c in shard.chunks)


def _tensors(store: ObjectStore, manifest: Manifest, names: list[str]) -> dict[str, Any]:
    part = replace(
        manifest,
        tensors={name: manifest.tensors[name] for name in names},
        objects={},
        paths={name: (name,) for name in names},
    )
    leaves, _ = flatten(read_state(store, part))
    return leaves
