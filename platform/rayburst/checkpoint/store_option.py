"""The option `--store` of every command line that works on a fleet's object store. Pure."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["StoreOption"]

StoreOption = Annotated[
    str,
    typer.Option(envvar="RAYBURST_STORE", help="The fleet's object store: s3://…, or a folder"),
]
