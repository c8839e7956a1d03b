"""Every window of a text as a dataset: inputs, and targets one byte later.

    data = text_windows(block=64)               # Python's own sources
    data = text_windows(("s3://corpus/wiki",), column="body", block=256)

It gives whole batches (`rayburst.train.feed.Samples`), and measures on the held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayburst.errors import DataError
from rayburst.train.order import Ints
from rayburst.train.sources import DEFAULT_COLUMN
from rayburst.train.text import Text, load_text, windows

__all__ = ["TextWindows", "text_windows"]

_VALIDATION_WINDOWS = 128


def text_windows(
    data: Sequence[str] = (), *, column: str = DEFAULT_COLUMN, block: int = 64
) -> TextWindows:
    """The windows of the text at `data`; DataError when it is too short."""
    return TextWindows(load_text(tuple(data), column), block)


class TextWindows:
    """Windows of `block` bytes that do not overlap."""

    def __init__(self, text: Text, block: int) -> None:
        if min(text.train.size, text.validation.size) <= block:
            raise DataError(
                f"the text has {text.train.size} bytes and {text.validation.size} held out; a "
                f"window needs {block + 1}: give more text or a smaller block"
            )
        self._text, self._block = text, block
        self.fingerprint = text.fingerprint
        self.tokens_per_sample = block

    def __len__(self) -> int:
        return (self._text.train.size - 1) // self._block

    def batch(self, epochs: Ints, indices: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these windows, LongTensor [windows, block] each."""
        return windows(self._text.train, np.asarray(indices) * self._block, self._block)

    @torch.no_grad()
    def bits_per_byte(self, nats: Callable[[Tensor, Tensor], Tensor]) -> float:
        """By `nats`, the mean loss of a model, on windows spread over the held-out text."""
        data = self._text.validation
        last = data.size - self._block - 1
        starts = np.linspace(0, last, _VALIDATION_WINDOWS).astype(np.int64)
        return float(nats(*windows(data, starts, self._block))) / float(np.log(2))
