"""Which blocks of a paged cache are free, in use, or kept for the next text that begins alike.

    pool = BlockPool(count=64, size=16)
    shared = pool.match(keys)       # blocks that hold these tokens already, now in use once more
    fresh = pool.take(3)            # None when there are not so many
    pool.keep(fresh[0], key)        # it is read in full: others may find it by what it holds
    pool.release(shared + fresh)

Pure. A block holds keys and values of `size` tokens; its key is a hash of those tokens and of all
tokens before them (`chain`), so equal keys mean equal contents. A block that nobody uses any more
stays findable until its place is needed; the longest unused goes first.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ["BlockPool", "chain", "root"]


def root(salt: bytes) -> bytes:
    """What the first block of a text comes after; texts of different salts share no block."""
    return blake2b(salt, digest_size=16, person=b"salt").digest()


def chain(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a whole block: its tokens after what `before` stands for."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """`count` blocks of `size` tokens. A block in use has a count of its users."""

    def __init__(self, *, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"count={count}, size={size}: give 1 or more of each")
        self.count, self.size = count, size
        self._free = list(range(count))[::-1]
        self._users = [0] * count
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._idle: dict[int, None] = {}  # findable and unused, the longest unused first

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones, and those that are kept only to be found."""
        return len(self._free) + len(self._idle)

    @property
    def findable(self) -> int:
        """Blocks that can be found by what they hold."""
        return len(self._by_key)

    def users(self, block: int) -> int:
        """How many texts use a block."""
        return self._users[block]

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest run of `keys` that is here, each in use once more."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._users[block] += 1
            found.append(block)
        return found

    def take(self, number: int) -> list[int] | None:
        """`number` blocks of unknown contents, in use once; None (and nothing done) if too few."""
        if number > self.available:
            return None
        return [self._take_one() for _ in range(number)]

    def _take_one(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._by_key[self._keys.pop(block)]
        self._users[block] = 1
        return block

    def keep(self, block: int, key: bytes) -> None:
        """Lets others find a block by what it holds; the first of equal ones is found."""
        if key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each. The end of a text is forgotten before its beginning."""
        for block in reversed(blocks):
            if not self._users[block]:
                raise ValueError(f"block {block} is released and nobody uses it")
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._keys:
                    self._idle[block] = None
                else:
                    self._free.append(block)
