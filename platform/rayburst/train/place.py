"""Where a worker is. PURE."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Place"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Rank, world size and node of this worker. `threads`: its share of the node's CPUs; 0 where
    nobody says.
    """

    rank: int
    world: int
    node_id: str = "unknown"
    host: str = "unknown"
    market: str = "unknown"
    pool: str = "unknown"
    threads: int = 0

    @property
    def words(self) -> dict[str, str]:
        """The node, as the run log tells it."""
        return {"host": self.host, "market": self.market, "pool": self.pool, "node": self.node_id}
