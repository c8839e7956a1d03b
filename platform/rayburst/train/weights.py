"""Weights in and out as safetensors, in Hugging Face's layout, on any storage.

    load_weights(model, "s3://models/base")            # a folder, or one .safetensors file
    write_weights("s3://models/tuned", model, {"model_type": "gpt"})

Names are the model's own. A tied weight is written once, and is taken under any of its names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rayburst.checkpoint.exchange import INDEX, SHARD_BYTES
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError

__all__ = ["load_weights", "parts", "put_tensors", "read_tensors", "write_weights"]

_SUFFIX = ".safetensors"


def read_tensors(uri: str) -> dict[str, Tensor]:
    """All tensors of a file or of the safetensors files of a folder. CheckpointError if none."""
    from safetensors.torch import load

    if uri.endswith(_SUFFIX):
        folder, _, name = uri.rpartition("/")
        store, names = ObjectStore.open(folder or "."), [name]
    else:
        store = ObjectStore.open(uri)
        names = sorted(i.key for i in store.list() if i.key.endswith(_SUFFIX) and "/" not in i.key)
    if not names:
        raise CheckpointError(f"{store.uri} holds no safetensors files: give a folder that does")
    found: dict[str, Tensor] = {}
    for name in names:
        found |= load(bytes(store.get(name)))
    return found


def load_weights(model: nn.Module, uri: str) -> None:
    """Fill all of `model`. CheckpointError names what is missing, unknown or of another shape."""
    given = read_tensors(uri)
    own = model.state_dict()
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), []).append(name)
    missing = [names[0] for names in groups.values() if not given.keys() & set(names)]
    unknown = sorted(given.keys() - own.keys())
    shapes = [n for n in own if n in given and given[n].shape != own[n].shape]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{uri} does not fit {type(model).__name__}: missing {missing[:5] or 'nothing'}, "
            f"unknown {unknown[:5] or 'nothing'}, other shape {shapes[:5] or 'none'}"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def write_weights(uri: str, model: nn.Module, config: Mapping[str, Any]) -> str:
    """Weights and `config.json` below `uri`, which is returned."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            tensors[name] = tensor
    store = ObjectStore.open(uri)
    put_tensors(store, "model", tensors)
    store.put("config.json", json.dumps(dict(config), indent=1).encode())
    return store.uri


def put_tensors(
    store: ObjectStore, name: str, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """As NAME.safetensors, or as numbered files of `shard_bytes` with their index."""
    from safetensors.torch import save

    files = list(parts(tensors, shard_bytes))
    places: dict[str, str] = {}
    for number, part in enumerate(files, start=1):
        file = f"{name}{_SUFFIX}"
        if len(files) > 1:
            file = f"{name}-{number:05d}-of-{len(files):05d}{_SUFFIX}"
        plain = {key: tensors[key].detach().cpu().contiguous() for key in part}
        store.put(file, save(plain, metadata={"format": "pt"}))
        places |= dict.fromkeys(part, file)
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        store.put(INDEX, json.dumps(index, indent=1, sort_keys=True).encode())


def parts(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[list[str]]:
    """Names in runs of about `shard_bytes`, at least one to a run."""
    part: list[str] = []
    filled = 0
    for name, tensor in tensors.items():
        if part and filled + tensor.nbytes > shard_bytes:
            yield part
            part, filled = [], 0
        part.append(name)
        filled += tensor.nbytes
    yield part
