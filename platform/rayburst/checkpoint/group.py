"""The ranks that save or load together: agree, gather, tell. Alone where there is one process.

Own gloo groups, so that a save in the background never meets the training's collectives, and NCCL
jobs need no host tensors in theirs. A failure on one rank becomes the same error on all.

Making a Group is collective: all ranks, the same order, the main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rayburst.errors import CheckpointAbandonedError, RayburstError

__all__ = ["Group"]

T = TypeVar("T")


class Group:
    """One gloo group over all ranks of the job, or over `members` of them (their global ranks).

    `rank` and `world` count within the group. `is_alone`: of this process only.
    """

    def __init__(
        self, timeout_s: float, members: Sequence[int] | None = None, *, is_alone: bool = False
    ) -> None:
        self._group: Any = None
        self._timeout_s = timeout_s
        self.rank, self.world, self._first = 0, 1, 0
        if is_alone or not (dist.is_available() and dist.is_initialized()):
            return
        ranks = list(range(dist.get_world_size()) if members is None else members)
        if len(ranks) > 1:
            # torch wants every rank here, members or not. `use_local_synchronization` would spare
            # the others, but it names groups by their ranks alone: a second one of the same ranks
            # meets the addresses that the first left in the store, and hangs
            self._group = dist.new_group(
                ranks, backend="gloo", timeout=timedelta(seconds=timeout_s)
            )
        if dist.get_rank() in ranks:
            self._first = ranks[0]
            self.rank, self.world = ranks.index(dist.get_rank()), len(ranks)

    def split(self, key: str) -> Group:
        """The group of the ranks that gave the same key. Only for a group over all ranks."""
        keys = self.tell(self.gather(key))
        groups = {
            k: Group(self._timeout_s, [rank for rank, other in enumerate(keys) if other == k])
            for k in dict.fromkeys(keys)
        }
        return groups[key]

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    def gather(self, value: T) -> list[T]:
        """All values on rank 0, by rank; an empty list elsewhere."""
        if self.world == 1:
            return [value]
        found: list[Any] | None = [None] * self.world if self.rank == 0 else None
        _collective(lambda: dist.gather_object(value, found, dst=self._first, group=self._group))
        return found or []

    def tell(self, value: T) -> T:
        """Rank 0's value, everywhere."""
        if self.world == 1:
            return value
        box = [value]
        _collective(lambda: dist.broadcast_object_list(box, src=self._first, group=self._group))
        return box[0]

    def deal(self, action: Callable[[], list[T]]) -> T:
        """Rank 0 makes a list, one value for each rank; its error is raised on all."""
        given: list[Any] | None = None
        if self.rank == 0:
            values, error = _attempt(action)
            given = [(v, None) for v in values] if values else [(None, error)] * self.world
        box: list[Any] = [given[0] if given else None]
        if self.world > 1:
            _collective(
                lambda: dist.scatter_object_list(box, given, src=self._first, group=self._group)
            )
        mine: T = _open(box[0])
        return mine

    def everyone(self, claim: bool) -> bool:
        """Whether it holds on every rank. One small collective."""
        if self.world == 1:
            return claim
        flag = torch.tensor(claim, dtype=torch.uint8)
        _collective(lambda: dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._group))
        return bool(flag)

    def tell_flag(self, claim: bool) -> bool:
        """`tell` for a truth value: one small collective instead of two, and no pickling."""
        if self.world == 1:
            return claim
        flag = torch.tensor(claim, dtype=torch.uint8)
        _collective(lambda: dist.broadcast(flag, src=self._first, group=self._group))
        return bool(flag)

    def rows(self, row: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor, stacked by rank; shapes and dtypes are the same on all."""
        if self.world == 1:
            return row.unsqueeze(0)
        found = [torch.empty_like(row) for _ in range(self.world)]
        _collective(lambda: dist.all_gather(found, row, group=self._group))
        return torch.stack(found)

    def rank0(self, action: Callable[[], T]) -> T:
        """Run on rank 0; its result or its error everywhere."""
        outcome: tuple[T | None, BaseException | None] = (None, None)
        if self.rank == 0:
            outcome = _attempt(action)
        return _open(self.tell(outcome))

    def together(self, action: Callable[[], T]) -> list[T]:
        """Run on every rank; all results on rank 0. An error of any rank is raised on all."""
        mine = _attempt(action)
        self._agree(mine[1])
        return self.gather(mine[0])  # type: ignore[arg-type]

    def each(self, action: Callable[[], None]) -> None:
        """`together` without results: one small collective where all goes well."""
        self._agree(_attempt(action)[1])

    def _agree(self, error: BaseException | None) -> None:
        """Raise on every rank what failed on any."""
        if self.everyone(error is None):
            return
        failed = [e for e in self.gather(error) if e is not None]
        first = self.tell(failed[0] if failed else None)
        if error is not None or first is not None:
            raise error or first  # type: ignore[misc]


def _attempt(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return action(), None
    except RayburstError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - every rank must reach the next collective
        return None, error


def _open(outcome: tuple[T | None, BaseException | None]) -> T:
    value, error = outcome
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _collective(action: Callable[[], Any]) -> None:
    try:
        action()
    except RuntimeError as error:
        raise CheckpointAbandonedError(
            f"a rank left while the checkpoint was being agreed on ({str(error)[:200]}); nothing "
            f"was committed by this rank. Earlier checkpoints stand."
        ) from error
