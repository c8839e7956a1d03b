"""Logical shards: a gradient sum whose bits do not depend on how many workers compute it.

    tree = GradientTree(shards=8, rank=1, world=3, like=flat)
    for shard in tree.mine:                  # this rank's shards, in order
        tree.add(shard, fill(tree.buffer())) # a flat gradient
    total = tree.total()                     # the same bits on every rank, at every world size
    tree.give_back(total)

The global batch is cut into a fixed number of logical shards. Floating-point addition is not
associative, so the shards' gradients are added along a fixed binary tree: the shards `lo..hi-1` are
split in the middle, and a node's value is left plus right. A rank holds a contiguous run of shards
and adds up whole subtrees of it. The rest of the tree is evaluated by all ranks, each for its own
piece of the vector, after one all-to-all; one all-gather brings the pieces together.

Bytes on the wire for a vector of N: where the world is a power of two that divides the shards,
every rank holds one subtree and sends N (W-1)/W twice, the least that an all-reduce can send
(Chan et al., Collective communication: theory, practice, and experience, 2007). Recursive halving
with neighbours first evaluates the same tree at the same price in log2 W rounds; here it is one
call, and the same one for every world. In other worlds the first half carries as many pieces as a
rank has subtrees, at most 2 log2(shards).

Knows no model and no optimizer.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from rayburst.train.order import rank_slice

__all__ = ["GradientTree", "Node", "subtrees"]

Node = tuple[int, int]
"""A node of the tree: the shards lo..hi-1."""
BUCKET_ELEMENTS = 16 * 1024 * 1024


def subtrees(part: range, shards: int) -> list[Node]:
    """The fewest whole nodes of the tree over `shards` that make up the shards of `part`."""

    def walk(lo: int, hi: int) -> list[Node]:
        if hi <= part.start or lo >= part.stop:
            return []
        if part.start <= lo and hi <= part.stop:
            return [(lo, hi)]
        middle = (lo + hi) // 2
        return walk(lo, middle) + walk(middle, hi)

    return walk(0, shards)


class GradientTree:
    """Sums of one rank, step after step. All ranks call `total` together."""

    def __init__(self, *, shards: int, rank: int, world: int, like: Tensor) -> None:
        self.shards, self._rank, self._world = shards, rank, world
        self.mine = rank_slice(shards, rank, world)
        self._like = like
        parts = [rank_slice(shards, r, world) for r in range(world)]
        self._nodes = [subtrees(part, shards) for part in parts]
        self._sums: dict[Node, Tensor] = {}
        self._free: list[Tensor] = []

    def buffer(self) -> Tensor:
        """A vector to fill; its content is undefined. Reused, for fresh memory is slow memory."""
        return self._free.pop() if self._free else self._like.new_empty(self._like.shape)

    def give_back(self, buffer: Tensor) -> None:
        """Let go of a vector that `buffer` or `total` gave."""
        self._free.append(buffer)

    def add(self, shard: int, flat: Tensor) -> None:
        """Take over the gradient of `shard`; siblings that are both there become their parent."""
        node = (shard, shard + 1)
        self._sums[node] = flat
        for parent in _above(shard, self.shards):
            left, right = _children(parent)
            if node != right or left not in self._sums:
                return
            other = self._sums.pop(right)
            self._sums[parent] = self._sums.pop(left).add_(other)
            self.give_back(other)
            node = parent

    def forget(self) -> None:
        """Drop what was added: the step was given up."""
        self._free += self._sums.values()
        self._sums.clear()

    def total(self) -> Tensor:
        """The sum over all shards. ValueError when this rank has not added all of its own."""
        nodes = self._nodes[self._rank]
        if sorted(self._sums) != nodes:
            raise ValueError(f"shards {sorted(self._sums)} were added; expected {nodes}")
        if self._world == 1:
            return self._sums.pop((0, self.shards))
        out = self.buffer()
        for start in range(0, out.numel(), BUCKET_ELEMENTS):
            part = slice(start, min(start + BUCKET_ELEMENTS, out.numel()))
            self._exchange([self._sums[node][part] for node in nodes], out[part])
        self.forget()
        return out

    def _exchange(self, parts: list[Tensor], out: Tensor) -> None:
        """The sum of one stretch of the vector: each rank evaluates the tree for a piece of it."""
        world, counts = self._world, [len(nodes) for nodes in self._nodes]
        piece = -(-out.numel() // world)
        sent = out.new_zeros(world, len(parts), piece)
        for place, part in enumerate(parts):
            for to in range(world):
                cut = part[to * piece : (to + 1) * piece]
                sent[to, place, : cut.numel()] = cut
        got = out.new_empty(sum(counts), piece)
        dist.all_to_all_single(
            got.view(-1),
            sent.view(-1),
            [count * piece for count in counts],
            [len(parts) * piece] * world,
        )
        nodes = [node for held in self._nodes for node in held]
        whole = out.new_empty(world * piece)
        mine = _evaluate((0, self.shards), dict(zip(nodes, got.unbind(), strict=True)))
        dist.all_gather_single(whole, mine)
        out.copy_(whole[: out.numel()])


def _evaluate(node: Node, known: dict[Node, Tensor]) -> Tensor:
    if node in known:
        return known[node]
    left, right = _children(node)
    return _evaluate(left, known).add_(_evaluate(right, known))


def _children(node: Node) -> tuple[Node, Node]:
    middle = (node[0] + node[1]) // 2
    return (node[0], middle), (middle, node[1])


def _above(shard: int, shards: int) -> list[Node]:
    """The nodes above a shard, nearest first."""
    path: list[Node] = []
    node = (0, shards)
    while node[1] - node[0] > 1:
        path.append(node)
        left, right = _children(node)
        node = left if shard < left[1] else right
    return path[::-1]
