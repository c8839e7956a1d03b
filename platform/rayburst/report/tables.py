"""Tables that print well in a terminal and in a notebook.

table = Table("Nodes", ("node", "market"), [("rack-3f2c", "on-prem")])
print(table)          # plain text
table                 # in a notebook: HTML
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

_SENTENCE = 20

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title. `note` stands below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __rich__(self) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable

        drawn = RichTable(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            caption=self.note or None,
            caption_justify="left",
        )
        for name in self.columns:
            drawn.add_column(
                name,
                justify="right" if self._numeric(name) else "left",
                no_wrap=not self._wide(name),
                overflow="fold",
            )
        for row in self.rows:
            drawn.add_row(*row)
        return drawn

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120).print(self.__rich__())
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return (
            f"<table><caption>{escape(self.title)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"
        )

    def _wide(self, name: str) -> bool:
        """Whether a column holds sentences, which may wrap; names and numbers may not."""
        index = list(self.columns).index(name)
        return any(len(row[index]) > _SENTENCE for row in self.rows)

    def _numeric(self, name: str) -> bool:
        index = list(self.columns).index(name)
        cells = [row[index] for row in self.rows if row[index]]
        return bool(cells) and all(
            cell.lstrip("$-").replace(".", "", 1).isdigit() for cell in cells
        )
