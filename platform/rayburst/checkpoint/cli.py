"""`rayburst checkpoints`: ls, show, verify, diff, gc, pin, unpin, export, import.

A typer app that the main command line mounts. Every command takes the URI of a run's checkpoints
(`s3://bucket/runs/x/checkpoints`, a local folder, ...). Deliberately holds no logic of its own;
errors are the main command line's to print.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID
from rich.table import Table

from rayburst.errors import CheckpointNotFoundError

__all__ = ["app"]

app = typer.Typer(
    name="checkpoints",
    help="Look at, prove, compare, clean up and convert checkpoints on an object store.",
    no_args_is_help=True,
)
out = Console()
Uri = Annotated[str, typer.Argument(help="Where the checkpoints are: s3://…, gs://…, or a folder")]
Step = Annotated[int | None, typer.Option(help="Which step; without it the newest")]
Newest = Annotated[int, typer.Option("--keep", min=1, help="Keep the newest so many")]
Metric = Annotated[str | None, typer.Option(help="Keep the best by this metric")]


def _store(uri: str, command: str, *words: object, or_packs: bool = False) -> Any:
    """The store at `uri`, or an error that shows the right call of this command."""
    from rayburst.checkpoint.finding import open_with_checkpoints

    call = " ".join(["rayburst checkpoints", command, "{uri}", *map(str, words)])
    return open_with_checkpoints(uri, call, or_packs=or_packs)


def _step(step: int | None) -> list[str]:
    return [] if step is None else ["--step", str(step)]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


@app.command()
def ls(uri: Uri) -> None:
    """List the checkpoints: step, when, size, what the save had to send, metrics.

    Example: rayburst checkpoints ls s3://models/runs/a
    """
    from rayburst.checkpoint.catalog import whole_manifests
    from rayburst.checkpoint.gc import pinned

    store = _store(uri, "ls")
    pins = pinned(store)
    damaged: dict[int, str] = {}
    found = list(whole_manifests(store, lambda step, error: damaged.update({step: str(error)})))
    table = Table(title=f"{uri}: {_count(len(found), 'checkpoint')}")
    for column in ("step", "saved", "state", "new", "world", "metrics", ""):
        table.add_column(column, justify="right" if column in ("step", "state", "new") else "left")
    for m in found:
        own = {c for _, c in m.chunks() if m.save in c.pack}
        words = ", ".join(f"{k}={v:.4g}" for k, v in (m.about.get("metrics") or {}).items())
        when = f"{datetime.fromtimestamp(m.created_ms / 1000):%Y-%m-%d %H:%M:%S}"
        new = _bytes(sum(c.length for c in own))
        mark = "pinned" if m.step in pins else ""
        table.add_row(str(m.step), when, _bytes(m.state_bytes), new, str(m.world), words, mark)
    for step, error in damaged.items():
        table.add_row(str(step), "", "", "", "", f"[red]damaged[/red]: {error}", "")
    out.print(table)
    if damaged:
        raise typer.Exit(1)


@app.command()
def show(uri: Uri, step: Step = None) -> None:
    """Show one checkpoint: its tensors, and the config, data position and metrics bound to it.

    Example: rayburst checkpoints show s3://models/runs/a --step 400
    """
    from rayburst.checkpoint.catalog import read_manifest

    m = read_manifest(_store(uri, "show", *_step(step)), step)
    parent = "none" if m.parent is None else f"step {m.parent.step}"
    out.print(
        f"[bold]step {m.step}[/bold]  save {m.save}  parent {parent}  sealed {m.sha256[:16]}…"
    )
    packs, ranks = _count(len(m.packs()), "pack"), _count(m.world, "rank")
    out.print(f"{_bytes(m.state_bytes)} in {packs}, saved by {ranks}")
    for word, value in m.about.items():
        if value and word != "rng":
            out.print(f"{word}: {value}")
    table = Table()
    for column in ("tensor", "dtype", "shape", "size", "pieces"):
        table.add_column(column)
    for name, t in m.tensors.items():
        size = sum(c.length for s in t.shards for c in s.chunks)
        shape = "×".join(map(str, t.shape)) or "scalar"
        table.add_row(name, t.dtype, shape, _bytes(size), str(len(t.shards)))
    for name, o in m.objects.items():
        size = sum(c.length for c in o.chunks)
        table.add_row(name, o.encoding, "no tensor", _bytes(size), "1")
    out.print(table)


@app.command()
def verify(
    uri: Uri,
    step: Step = None,
    every: Annotated[bool, typer.Option("--all", help="Every checkpoint, not one")] = False,
) -> None:
    """Read every byte and compare every digest. Status 1 if anything is damaged.

    Example: rayburst checkpoints verify s3://models/runs/a --all
    """
    from rayburst.checkpoint import verify as proof
    from rayburst.checkpoint.catalog import read_manifest, step_numbers

    store = _store(uri, "verify", *(["--all"] if every else _step(step)))
    if every:
        chosen = step_numbers(store)
    else:
        chosen = [step if step is not None else read_manifest(store).step]
    failed = 0
    with Bar(console=out, transient=True) as bar:
        for number in chosen:
            task = bar.add_task(f"step {number}", total=None)
            found = proof.verify(store, number, partial(_advance, bar, task))
            bar.remove_task(task)
            failed += not found.whole
            verdict = "[green]whole[/green]" if found.whole else "[red]damaged[/red]"
            size = _bytes(found.read_bytes)
            bar.print(f"step {number}: {verdict}, {_count(found.chunks, 'chunk')}, {size}")
            for error in found.errors:
                bar.print(f"  {error}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _advance(bar: Bar, task: TaskID, done: int, of: int) -> None:
    bar.update(task, completed=done, total=of)


@app.command()
def diff(
    uri: Uri,
    first: Annotated[int, typer.Argument(help="A step")],
    second: Annotated[int, typer.Argument(help="Another step")],
) -> None:
    """What differs between two checkpoints, by digests alone: nothing is downloaded.

    Example: rayburst checkpoints diff s3://models/runs/a 400 600
    """
    from rayburst.checkpoint.catalog import read_manifest
    from rayburst.checkpoint.compare import compare

    store = _store(uri, "diff", first, second)
    rows = compare(read_manifest(store, first), read_manifest(store, second))
    table = Table(title=f"step {first} → step {second}")
    for column in ("leaf", "what", "changed"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.name, row.what, _bytes(row.changed_bytes) if row.changed_bytes else "")
    out.print(table if rows else f"steps {first} and {second} hold the same state")


@app.command()
def gc(
    uri: Uri,
    keep: Newest = 3,
    every: Annotated[int | None, typer.Option(min=1, help="Keep steps divisible by this")] = None,
    best: Metric = None,
    mode: Annotated[Literal["min", "max"], typer.Option(help="Which metric value is best")] = "min",
    best_count: Annotated[int, typer.Option(min=1, help="How many of the best")] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this, only say")] = False,
    drop_damaged: Annotated[
        bool, typer.Option(help="Give up checkpoints whose manifest cannot be read")
    ] = False,
    grace: Annotated[float, typer.Option(help="Spare garbage younger than so many seconds")] = 3600,
    compact: Annotated[bool, typer.Option(help="Rewrite packs that are mostly garbage")] = True,
) -> None:
    """Remove old checkpoints and what nothing refers to. Says what it would do; --delete does it.

    Safe beside running jobs. Pinned checkpoints and the newest one always stay.
    Example: rayburst checkpoints gc s3://models/runs/a --keep 3 --every 1000 --best loss --delete
    """
    from rayburst.checkpoint.gc import collect, plan_gc
    from rayburst.checkpoint.retention import Best, Retention
    from rayburst.checkpoint.strays import abort_stray_uploads

    words = ["--keep", keep]
    words += ["--every", every] if every else []
    words += ["--best", best] if best else []
    store = _store(uri, "gc", *words, *(["--delete"] if delete else []), or_packs=True)
    chosen = Best(metric=best, mode=mode, count=best_count) if best else None
    plan = plan_gc(store, Retention(newest=keep, every=every, best=chosen))
    for number, why in sorted(plan.keep.items()):
        out.print(f"keep step {number}: {why}")
    for number in plan.drop:
        out.print(f"{'drop' if delete else 'would drop'} step {number}")
    for number, error in plan.damaged.items():
        out.print(f"[red]damaged[/red] step {number}: {error}", highlight=False)
    with out.status("collecting"):
        done = collect(
            store,
            plan,
            dry_run=not delete,
            grace_s=grace,
            compact_below=0.95 if compact else 0.0,
            drop_damaged=drop_damaged,
            new_id=lambda: secrets.token_hex(8),
        )
        strays = abort_stray_uploads(store, older_than_s=grace, dry_run=not delete)
    verb, moved = ("deleted", "moved") if delete else ("would delete", "would move")
    out.print(
        f"{verb} {_count(done.deleted_objects, 'object')}, {_bytes(done.deleted_bytes)}; {moved} "
        f"{_bytes(done.moved_bytes)}; spared {_bytes(done.spared_bytes)} (young or in use); "
        f"{_count(strays, 'stray multipart upload')}"
    )
    out.print(f"stored {_bytes(done.stored_bytes)}, needed {_bytes(done.referenced_bytes)}")
    if not delete:
        out.print("nothing was deleted; add --delete to do it")


@app.command()
def pin(uri: Uri, step: Annotated[int, typer.Argument(help="The step")]) -> None:
    """Keep a checkpoint whatever the retention says."""
    from rayburst.checkpoint import gc as collection
    from rayburst.checkpoint.catalog import read_manifest

    store = _store(uri, "pin", step)
    collection.pin(store, read_manifest(store, step).step)
    out.print(f"step {step} stays until: rayburst checkpoints unpin {uri} {step}")


@app.command()
def unpin(uri: Uri, step: Annotated[int, typer.Argument(help="The step")]) -> None:
    """Let the retention decide about a checkpoint again."""
    from rayburst.checkpoint import gc as collection

    store = _store(uri, "unpin", step)
    pins = collection.pinned(store)
    if step not in pins:
        known = ", ".join(map(str, sorted(pins))) or "none"
        raise CheckpointNotFoundError(f"{uri}: step {step} is not pinned. Pinned are: {known}.")
    collection.unpin(store, step)
    out.print(f"step {step} is no longer pinned")


@app.command()
def export(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="An empty or new folder")],
    step: Step = None,
    prefix: Annotated[str, typer.Option(help="Only tensors below this name, as in 'model.'")] = "",
) -> None:
    """Write a checkpoint as safetensors files in Hugging Face's layout. Every digest is checked.

    Example: rayburst checkpoints export s3://models/runs/a ./out --prefix model.
    """
    from rayburst.checkpoint.exchange import export_safetensors

    with out.status("exporting"):
        files = export_safetensors(
            _store(uri, "export", folder, *_step(step)),
            step,
            folder,
            prefix=prefix,
            on_file=lambda name, tensors: out.print(f"{name}: {_count(tensors, 'tensor')}"),
        )
    out.print(f"{_count(len(files), 'file')} in {folder}")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder with safetensors files")],
    uri: Uri,
    step: Annotated[int, typer.Option(help="The step to save as")] = 0,
) -> None:
    """Save safetensors files as a checkpoint, under the names that they have.

    Example: rayburst checkpoints import ./llama s3://models/runs/b
    """
    from rayburst.checkpoint.checkpointer import Checkpointer
    from rayburst.checkpoint.exchange import import_safetensors

    with out.status("importing"), Checkpointer(uri) as checkpoints:
        saved = checkpoints.save(import_safetensors(folder), step=step)
    out.print(f"step {saved.step}: {_bytes(saved.state_bytes)} at {uri}")
