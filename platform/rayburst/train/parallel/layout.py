"""How many ways a model and its batch are split, and which rank holds what. Pure.

    layout = Layout.parse("shard=2,tensor=2")
    layout.world, layout.place_of(3)       # 4, Place(pipeline=0, data=0, shard=1, tensor=1)

Ranks are numbered with tensor innermost, so that a tensor group is neighbours (one node), and
pipeline outermost, so that its stages may stand on different nodes. Megatron-LM numbers them
likewise (Narayanan et al., 2021, https://arxiv.org/abs/2104.04473).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import product
from math import prod

from rayburst.errors import LayoutError

__all__ = ["DIMENSIONS", "Layout", "Place"]

DIMENSIONS = ("pipeline", "data", "shard", "tensor")
"""Outermost first: the order of ranks and of the device mesh."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one rank stands along each dimension."""

    pipeline: int
    data: int
    shard: int
    tensor: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Counts along each dimension; their product is the world size.

    data: whole copies of the model, each on its own samples (DDP).
    shard: copies that keep only their part of weights, gradients and optimizer state between uses
      (FSDP2; ZeRO-3, Rajbhandari et al. 2020). With `data` too it is hybrid sharding (HSDP).
    tensor: ranks that share every matrix product (Shoeybi et al. 2019).
    pipeline: ranks that hold consecutive blocks (1F1B; Narayanan et al. 2021).
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            count = getattr(self, field.name)
            if not isinstance(count, int) or count < 1:
                raise LayoutError(
                    f"{field.name}={count!r}: give a whole number of 1 or more, for example "
                    f"Layout({field.name}=2)"
                )

    @classmethod
    def parse(cls, text: str) -> Layout:
        """From `shard=2,tensor=2`; an empty text is one process. LayoutError says what is wrong."""
        counts: dict[str, int] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, _, count = part.partition("=")
            if name not in DIMENSIONS or name in counts or not count.isdecimal():
                raise LayoutError(
                    f"layout {text!r}: {part!r} is not understood. Give each of "
                    f"{', '.join(reversed(DIMENSIONS))} at most once, for example shard=2,tensor=2"
                )
            counts[name] = int(count)
        return cls(**counts)

    def __str__(self) -> str:
        split = [f"{name}={count}" for name, count in asdict(self).items() if count > 1]
        return ",".join(split) or "one process"

    @property
    def shape(self) -> tuple[int, ...]:
        """Counts in the order of `DIMENSIONS`."""
        return tuple(getattr(self, name) for name in DIMENSIONS)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return prod(self.shape)

    @property
    def copies(self) -> int:
        """Into how many parts the global batch is cut: ranks along data and shard."""
        return self.data * self.shard

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 holds the weights.

        DDP does not know DTensors, so copies of tensor groups go through FSDP2 too, with a shard
        group of one: it then only reduces gradients. A pipeline reduces them itself, once for all
        its parts.
        """
        return self.shard > 1 or (self.data > 1 and self.tensor > 1 and self.pipeline == 1)

    def place_of(self, rank: int) -> Place:
        """Where `rank` stands. LayoutError when there is no such rank."""
        if not 0 <= rank < self.world:
            raise LayoutError(f"rank {rank}: {self} has ranks 0 to {self.world - 1}")
        places = list(product(*(range(count) for count in self.shape)))
        return Place(**dict(zip(DIMENSIONS, places[rank], strict=True)))

    def rank_of(self, place: Place) -> int:
        """The rank that stands at `place`."""
        rank = 0
        for name, count in zip(DIMENSIONS, self.shape, strict=True):
            rank = rank * count + getattr(place, name)
        return rank

    def copy_of(self, rank: int) -> int:
        """Which part of the global batch `rank` reads, from 0 below `copies`."""
        place = self.place_of(rank)
        return place.data * self.shard + place.shard

    def groups(self, along: Iterable[str]) -> list[tuple[int, ...]]:
        """The ranks that differ only in the dimensions `along`, as groups in the order of ranks."""
        fixed = [name for name in DIMENSIONS if name not in set(along)]
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world):
            place = self.place_of(rank)
            found.setdefault(tuple(getattr(place, name) for name in fixed), []).append(rank)
        return [tuple(group) for group in found.values()]
