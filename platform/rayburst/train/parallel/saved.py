"""How many bytes autograd keeps for the backward pass, weights aside.

    with SavedBytes(model) as saved:
        loss = loss_of(model(inputs))
    saved.bytes

Each storage counts once, however many operations keep it. Works on any device, meta included.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["SavedBytes"]


class SavedBytes:
    """A context that counts; `bytes` holds what was kept while it was open."""

    def __init__(self, *modules: nn.Module) -> None:
        self.bytes = 0
        self._modules = modules
        self._held: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        parameters = {_key(_storage(p)) for module in self._modules for p in module.parameters()}
        if _key(storage) not in parameters and _key(storage) not in self._held:
            self._held[_key(storage)] = storage  # alive, so that its key is not given again
            self.bytes += storage.nbytes()
        return tensor


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage()


def _key(storage: torch.UntypedStorage) -> int:
    """Identifies a living storage; on the meta device addresses would not."""
    return int(StorageWeakRef(storage).cdata)  # type: ignore[no-untyped-call]
