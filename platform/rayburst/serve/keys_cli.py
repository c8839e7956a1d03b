"""`rayburst keys`: create, ls, rotate, revoke the API keys of served models' tenants.

A typer app that the main command line mounts. Keys live below `serve/keys` of the fleet's object
store (RAYBURST_STORE, which `rayburst env` sets), or where --store says.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rayburst.checkpoint.store_option import StoreOption

__all__ = ["app"]

app = typer.Typer(
    name="keys",
    help="API keys of the tenants of served models: made, listed, rotated, revoked.",
    no_args_is_help=True,
)
out = Console(highlight=False)
KeyId = Annotated[str, typer.Argument(help="The key's id: the part between rbk_ and the next _")]


def _keys(store: str) -> Any:
    from rayburst.checkpoint.store import ObjectStore
    from rayburst.serve.keys import KeyStore

    return KeyStore(ObjectStore.open(f"{store.rstrip('/')}/serve/keys"))


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Who will ask: limits and shares go by this name")],
    store: StoreOption,
    model: Annotated[
        list[str] | None, typer.Option(help="A served class it may ask; without it, all")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="It ends after so many days")] = None,
) -> None:
    """Make a key and show its secret, this once.

    Example: rayburst keys create ads --model Classifier --store s3://fleet
    """
    now_s = time.time()
    ends_s = None if days is None else now_s + days * 86_400
    made, secret = _keys(store).create(
        tenant, models=model or ("*",), now_s=now_s, expires_s=ends_s
    )
    out.print(f"key {made.id} of {tenant}; keep its secret, it is shown this once:", soft_wrap=True)
    out.print(secret, soft_wrap=True)


@app.command()
def ls(store: StoreOption) -> None:
    """List the keys: tenant, models, when made, whether they work. No secrets.

    Example: rayburst keys ls --store s3://fleet
    """
    table = Table()
    for column in ("id", "tenant", "models", "made", "state"):
        table.add_column(column)
    now_s = time.time()
    for key in _keys(store).all():
        made = f"{datetime.fromtimestamp(key.created_s):%Y-%m-%d %H:%M}"
        ends = (
            ""
            if key.expires_s is None
            else f" until {datetime.fromtimestamp(key.expires_s):%F %H:%M}"
        )
        state = f"works{ends}" if key.works_at(now_s) else "revoked" if key.is_revoked else "ended"
        table.add_row(key.id, key.tenant, ", ".join(key.models), made, state)
    out.print(table)


@app.command()
def rotate(
    key: KeyId,
    store: StoreOption,
    overlap: Annotated[
        float, typer.Option(min=0, help="Hours for which the old key still works")
    ] = 24.0,
) -> None:
    """Make a key for the same tenant and models, and let the old one end.

    Example: rayburst keys rotate 3f2c91ab77e0 --overlap 1 --store s3://fleet
    """
    made, secret = _keys(store).rotate(key, now_s=time.time(), overlap_s=overlap * 3600)
    out.print(f"key {made.id} follows {key}; its secret, this once:", soft_wrap=True)
    out.print(secret, soft_wrap=True)


@app.command()
def revoke(key: KeyId, store: StoreOption) -> None:
    """End a key; replicas notice within 15 seconds.

    Example: rayburst keys revoke 3f2c91ab77e0 --store s3://fleet
    """
    ended = _keys(store).revoke(key)
    out.print(f"key {ended.id} of {ended.tenant} is revoked")
