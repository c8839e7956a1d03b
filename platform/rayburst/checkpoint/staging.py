"""Host memory that state is copied into while training waits.

One buffer for the whole state of a rank, reused from save to save: fresh pages cost twenty times
the copy (0.6 against 12 GB/s measured). On CUDA it is pinned and filled on a side stream. The
layout is made once; while names, shapes and dtypes stay the same, a save is one batched copy.

Deliberately does not know where the bytes go next.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from rayburst.checkpoint.tree import Outline

__all__ = ["HostBuffer", "Snapshot", "Span", "bytes_of", "local_tensor", "memory_of"]

_ALIGN = 16
_SAFE = (torch.Tensor, int, float, str, bool, bytes, type(None))  # staged, or cannot change


class Span(NamedTuple):
    """`length` bytes from `start` of `buffer`."""

    buffer: memoryview
    start: int
    length: int

    @classmethod
    def whole(cls, buffer: memoryview) -> Span:
        """All of a buffer."""
        return cls(buffer, 0, len(buffer))


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A staged state. `leaves` tells names, shapes and placements; `staged` holds the bytes.

    `layout` is the same number for the same names, shapes and dtypes.
    """

    leaves: dict[str, Any]
    paths: dict[str, Any]
    staged: Mapping[str, Any]
    layout: int


def local_tensor(value: Any) -> torch.Tensor | None:
    """This rank's part of a tensor or DTensor; None for any other leaf."""
    if isinstance(value, DTensor):
        return value.to_local().detach()
    if isinstance(value, torch.Tensor):
        return value.detach()
    return None


def bytes_of(tensor: torch.Tensor) -> Span:
    """Row-major bytes of a tensor; its own memory where that is contiguous and on the host."""
    host = tensor.detach().cpu().resolve_conj().resolve_neg()
    flat = host.contiguous().reshape(-1)
    if flat.numel() == 0:
        return Span(memoryview(b""), 0, 0)
    return Span.whole(memory_of(flat.view(torch.uint8)))


def memory_of(flat: torch.Tensor) -> memoryview:
    """The memory of a contiguous uint8 host tensor."""
    array: Any = flat.numpy()
    return memoryview(array)


class HostBuffer:
    """The staged copy of one rank's state. `stage` again reuses everything it can."""

    def __init__(self) -> None:
        self._outline: Outline | None = None
        self._shapes: list[torch.Size] = []
        self._dtypes: list[torch.dtype] = []
        self._tensors: list[int] = []  # which leaves are tensors
        self._flat = torch.zeros(0, dtype=torch.uint8)
        self._memory = memoryview(b"")
        self._views: list[torch.Tensor] = []
        self._device: str | None = None  # of the accelerator that holds tensors of the state
        self._stream: Any = None
        self.layout = 0  # counts layouts: the same number means the same names, shapes, dtypes

    @property
    def size_bytes(self) -> int:
        """Host memory held."""
        return self._flat.numel()

    @property
    def memory(self) -> memoryview:
        """All of it; the same object while the layout stays the same."""
        return self._memory

    def stage(self, state: Mapping[Any, Any]) -> Snapshot:
        """Copy the state. Returns when the copy is complete; the next call overwrites it."""
        outline = self._outline
        leaves = None if outline is None else outline.leaves(state)
        if outline is None or leaves is None:
            outline = self._outline = Outline(state)
            leaves = list(outline.named.values())
            self._tensors = [i for i, v in enumerate(leaves) if isinstance(v, torch.Tensor)]
            self._shapes = []
        tensors = leaves
        if len(self._tensors) != len(leaves):
            tensors = [leaves[i] for i in self._tensors]
        tensors = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        shapes, dtypes = [t.shape for t in tensors], [t.dtype for t in tensors]
        if shapes != self._shapes or dtypes != self._dtypes or not self.layout:
            self._lay_out(tensors)
            self._shapes, self._dtypes = shapes, dtypes
        self._copy(tensors)
        staged = list(leaves)
        for i, view in zip(self._tensors, self._views, strict=True):
            staged[i] = view
        if len(self._tensors) != len(leaves):
            staged = [v if isinstance(v, _SAFE) else copy.deepcopy(v) for v in staged]
        return Snapshot(
            leaves=dict(zip(outline.names, leaves, strict=True)),
            paths=outline.paths,
            staged=dict(zip(outline.names, staged, strict=True)),
            layout=self.layout,
        )

    def span(self, tensor: torch.Tensor) -> Span:
        """Bytes of a tensor, as part of this buffer where it lies inside."""
        start = tensor.data_ptr() - self._flat.data_ptr()
        if tensor.device.type == "cpu" and 0 <= start < len(self._memory) and _plain(tensor):
            return Span(self._memory, start, tensor.numel() * tensor.element_size())
        return bytes_of(tensor)

    def _lay_out(self, tensors: list[torch.Tensor]) -> None:
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
        self._device = next((t.device.type for t in tensors if t.device.type != "cpu"), None)
        if self._flat.numel() < end or self._flat.numel() > 1.1 * end:
            self._views, self._memory = [], memoryview(b"")
            self._flat = torch.zeros(0, dtype=torch.uint8)  # the old one goes before the new comes
            self._flat = _host_memory(end, pinned=self._device is not None)
        self._memory = memory_of(self._flat) if end else memoryview(b"")
        self._views = [
            self._flat[start : start + t.numel() * t.element_size()].view(t.dtype).view(t.shape)
            for start, t in zip(offsets, tensors, strict=True)
        ]
        self.layout += 1

    def _copy(self, tensors: list[torch.Tensor]) -> None:
        if self._device is not None:
            self._copy_beside(torch.get_device_module(self._device), tensors)
        elif tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._views, tensors)

    def _copy_beside(self, device: Any, tensors: list[torch.Tensor]) -> None:
        """On a side stream, after what the training has queued; pinned memory takes it by DMA."""
        if self._stream is None:
            self._stream = device.Stream()
        self._stream.wait_stream(device.current_stream())
        with device.stream(self._stream), torch.no_grad():
            for view, tensor in zip(self._views, tensors, strict=True):
                view.copy_(tensor, non_blocking=True)
        self._stream.synchronize()


def _host_memory(size: int, *, pinned: bool) -> torch.Tensor:
    if pinned:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    # numpy asks for huge pages where torch does not: the first save touches all of it, and a
    # fault for each 4 KiB costs more than the copy
    return torch.from_numpy(np.empty(size, dtype=np.uint8))


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.numel() > 0 and not tensor.is_conj()
