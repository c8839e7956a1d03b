"""A load test of a served model: percentiles and throughput by how many requests are under way.

told = load_test(url, {"prompt": "def f(", "max_new_tokens": 8}, sizes=(1, 8, 32))
print(told); told.html(); told.frame(); told.to_dict()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayburst.dev.load import send_all
from rayburst.report import numbers
from rayburst.report.latency_page import LoadCell, latency_page
from rayburst.report.tables import Table

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadTest:
    """One server under loads of several sizes. Prints as a table."""

    url: str
    requests: int
    cells: Sequence[LoadCell]

    def table(self) -> Table:
        """One row a size."""
        rows = [
            (
                f"{cell.size:g}",
                numbers.milliseconds(cell.p50_ms),
                numbers.milliseconds(cell.p99_ms),
                numbers.grouped(cell.requests_per_s),
                str(cell.errors),
            )
            for cell in self.cells
        ]
        return Table("load test", ("at once", "p50", "p99", "requests/s", "errors"), rows)

    def html(self) -> str:
        """The page."""
        lead = f"{self.requests} requests at each size, sent from this machine to {self.url}."
        return latency_page("load test", self.cells, lead=lead)

    def save(self, path: str | Path) -> Path:
        """Write the page; returns where."""
        file = Path(path)
        file.write_text(self.html())
        return file

    def frame(self) -> pandas.DataFrame:
        """One row a size; times in milliseconds."""
        import pandas

        return pandas.DataFrame([asdict(cell) for cell in self.cells]).set_index("size")

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        cells = [asdict(cell) for cell in self.cells]
        return {"url": self.url, "requests": self.requests, "cells": cells}

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that no style leaks."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="620"></iframe>'


def load_test(
    url: str,
    body: Mapping[str, Any],
    *,
    sizes: Sequence[int] = (1, 8, 32),
    requests: int = 64,
    timeout_s: float = 60.0,
) -> LoadTest:
    """POST `body` as JSON so many times at each size, `size` requests at once.

    Errors are counted, never raised; the latency of a failed request counts too.
    """
    cells = []
    for size in sizes:
        bodies = [dict(body)] * max(requests, 2)
        told = send_all(url, bodies, connections=size, timeout_s=timeout_s)
        cells.append(
            LoadCell(
                server=url,
                size=size,
                p50_ms=told.p50_ms,
                p99_ms=told.p99_ms,
                requests_per_s=told.requests_per_s,
                errors=told.errors,
            )
        )
    return LoadTest(url=url, requests=requests, cells=cells)
