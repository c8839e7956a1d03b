"""`rayburst models`: publish, ls, show, canary, withdraw, promote, rollback, verify.

A typer app that the main command line mounts. Models live below `models` of the fleet's object
store (RAYBURST_STORE, which `rayburst env` sets), or where --store says. Deliberately holds no
logic of its own; errors are the main command line's to print.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayburst.checkpoint.store_option import StoreOption

if TYPE_CHECKING:
    from rayburst.models.manifest import ModelVersion
    from rayburst.models.registry import ModelRegistry
    from rayburst.models.trials import Ending, Trial

__all__ = ["app"]

app = typer.Typer(
    name="models",
    help="Model versions: published from checkpoints, tried, promoted, rolled back.",
    no_args_is_help=True,
)
out = Console(highlight=False)
_TRIALS_SHOWN = 5
RefArgument = Annotated[str, typer.Argument(help="gpt@3, gpt@production, or gpt for the latter")]
Alias = Annotated[str, typer.Option(help="The name that points to it")]
Why = Annotated[str, typer.Option(help="A word for the history")]


def _models(store: str) -> ModelRegistry:
    from rayburst.checkpoint.store import local_path
    from rayburst.errors import VersionNotFoundError
    from rayburst.models.registry import ModelRegistry

    folder = local_path(store)
    if folder is not None and not folder.is_dir():  # opening it would make it
        raise VersionNotFoundError(
            f"--store {store}: there is no folder {folder}. Give the store that holds `runs` and "
            "`models`, for example --store s3://fleet"
        )
    return ModelRegistry.open(store)


@app.command()
def publish(
    run: Annotated[
        str, typer.Argument(help="A run of this store, `first` or `first@300`, or its address")
    ],
    name: Annotated[str, typer.Option(help="The model's name, for example gpt")],
    store: StoreOption,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Measured beside fp32: bf16, int8, int8-dynamic, int8-onnx"),
    ] = None,
) -> None:
    """Publish a checkpoint as the next version of a model. What was published never changes.

    Example: rayburst models publish first@300 --name gpt --variant int8 --store s3://fleet
    """
    version = _models(store).publish(
        run, name=name, variants=variant or (), say=lambda text: out.print(f"  {text}")
    )
    out.print(f"{version.ref} is {version.checkpoint.uri}", soft_wrap=True)
    out.print(f"let it answer: rayburst models promote {version.ref}", soft_wrap=True)


@app.command()
def ls(
    store: StoreOption,
    name: Annotated[str | None, typer.Argument(help="One model; without it, all")] = None,
) -> None:
    """List models and their versions: from which checkpoint, which variants, where aliases point.

    Status 1 if a version is damaged. Example: rayburst models ls gpt --store s3://fleet
    """
    models = _models(store)
    table = Table()
    for column in ("version", "published", "checkpoint", "variants", "aliases"):
        table.add_column(column, overflow="fold")
    damaged = 0
    if name is not None and not models.numbers(name):
        models.get(f"{name}@1")  # says which models there are
    for model in models.names() if name is None else [name]:
        pointed = models.aliases(model)
        bad: dict[int, str] = {}
        found = {
            v.version: v
            for v in models.versions(model, on_damage=lambda n, e, bad=bad: bad.update({n: str(e)}))  # type: ignore[misc]
        }
        for number in sorted({*found, *bad}, reverse=True):
            marks = ", ".join(alias for alias, at in pointed.items() if at == number)
            if number in bad:
                table.add_row(f"{model}@{number}", "", f"[red]damaged[/red]: {bad[number]}", "", "")
                continue
            v = found[number]
            table.add_row(v.ref, _when(v.created_ms), v.checkpoint.uri, _names(v), marks)
        damaged += len(bad)
    out.print(table)
    if damaged:
        raise typer.Exit(1)


@app.command()
def show(ref: RefArgument, store: StoreOption) -> None:
    """Show a version: its checkpoint, its data, the code, and what each variant is worth.

    Of an alias also its last trials. Example: rayburst models show gpt@3 --store s3://fleet
    """
    from rayburst.models.moves import parse_ref

    models = _models(store)
    v = models.get(ref)
    c, d = v.checkpoint, v.data
    parent = "" if v.parent is None else f", made from {v.name}@{v.parent}"
    out.print(f"[bold]{v.ref}[/bold]  published {_when(v.created_ms)}{parent}")
    out.print(f"checkpoint  {c.uri}  save {c.save}  sealed {c.sha256[:16]}…", soft_wrap=True)
    out.print(f"data        {', '.join(d.places) or 'not told'}  text {d.text or 'not told'}")
    out.print(f"position    {d.position or 'not told'}", soft_wrap=True)
    for what, text in v.code.items():
        out.print(f"{what}: {text}", soft_wrap=True)
    for what, value in v.metrics.items():
        out.print(f"{what}: {'unknown' if value is None else f'{value:.4g}'}")
    out.print(_variants(v))
    for student in v.variants:
        if student.checkpoint is not None:
            out.print(f"{student.name}: distilled, {student.checkpoint.uri}", soft_wrap=True)
    asked = parse_ref(ref)
    if asked.alias is not None:
        for trial, ending in models.trials(v.name, asked.alias).history()[-_TRIALS_SHOWN:]:
            _say_trial(v.name, trial, ending)


@app.command()
def verify(ref: RefArgument, store: StoreOption) -> None:
    """Read every byte of a version's weights and compare every digest. Status 1 if it is damaged.

    Example: rayburst models verify gpt@3 --store s3://fleet
    """
    version = _models(store).verify(ref)
    size = sum(file.size_bytes for file in version.files.values())
    out.print(f"{version.ref} is whole: {len(version.files)} files, {size / 1e6:.2f} MB")


@app.command()
def canary(
    ref: Annotated[str, typer.Argument(help="The candidate: gpt@2")],
    store: StoreOption,
    alias: Alias = "production",
    weight: Annotated[float, typer.Option(help="Share of requests that it answers, 0 to 1")] = 0.1,
    shadow: Annotated[
        bool, typer.Option(help="It also computes, unseen, what production answered")
    ] = True,
    agreement: Annotated[
        float, typer.Option(help="Least share of positions with production's likeliest byte")
    ] = 0.9,
    errors: Annotated[float, typer.Option(help="Largest share of requests it may fail on")] = 0.02,
    slower: Annotated[float, typer.Option(help="So many times production's time is slow")] = 1.5,
    risk: Annotated[float, typer.Option(help="Chance of a wrong decision")] = 0.05,
    why: Why = "",
) -> None:
    """Try a version on some of the traffic; it is promoted or rolled back by what is measured.

    Deployments that follow the alias (p.deploy("gpt@production", args={"follow": True})) see it
    within a second. Clients see no error of the candidate: production answers in its place.

    Example: rayburst models canary gpt@2 --weight 0.1 --agreement 0.8 --store s3://fleet
    """
    from pydantic import ValidationError

    from rayburst.errors import VersionError
    from rayburst.models.judge import Limits

    try:
        limits = Limits(agreement=agreement, errors=errors, slower=slower, risk=risk)
    except ValidationError as error:
        first = error.errors()[0]
        raise VersionError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from None
    name = ref.partition("@")[0]
    trials = _models(store).trials(name, alias)
    trial = trials.begin(ref, weight=weight, shadow=shadow, limits=limits, why=why)
    out.print(f"{ref} answers {weight:.0%} of what {name}@{alias} is asked (trial {trial.number})")
    out.print(f"how it goes: rayburst models show {name}@{alias}", soft_wrap=True)


@app.command()
def withdraw(
    name: Annotated[str, typer.Argument(help="The model's name")],
    store: StoreOption,
    alias: Alias = "production",
    why: Why = "",
) -> None:
    """End the trial that runs, undecided: production answers everything again.

    Example: rayburst models withdraw gpt --why "not today" --store s3://fleet
    """
    trials = _models(store).trials(name, alias)
    trial = trials.running()
    if trial is None:
        out.print(f"no trial of {name} runs")
        return
    _say_trial(name, trial, trials.end(trial, "withdrawn", why=why))


@app.command()
def promote(
    ref: RefArgument, store: StoreOption, alias: Alias = "production", why: Why = ""
) -> None:
    """Let production, or another alias, point to a version, once all its bytes are proven.

    Example: rayburst models promote gpt@3 --why "0.1 bits better" --store s3://fleet
    """
    models = _models(store)
    move = models.promote(ref, alias=alias, why=why)
    name = ref.partition("@")[0]
    out.print(f"{name}@{alias} is {name}@{move.version} (move {move.number})")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The model's name")],
    store: StoreOption,
    alias: Alias = "production",
    why: Why = "",
) -> None:
    """Let production, or another alias, point to what it pointed to before.

    Example: rayburst models rollback gpt --why "it errs" --store s3://fleet
    """
    move = _models(store).rollback(name, alias=alias, why=why)
    out.print(f"{name}@{alias} is back at {name}@{move.version} (move {move.number})")


def _say_trial(name: str, trial: Trial, ending: Ending | None) -> None:
    how = f"answers {trial.weight:.0%}, shadow {'on' if trial.shadow else 'off'}"
    end = "runs" if ending is None else ending.outcome
    words = "" if ending is None or not ending.why else f": {ending.why}"
    out.print(
        f"trial {trial.number}: {name}@{trial.version} since {_when(trial.at_ms)}, {how}; "
        f"[bold]{end}[/bold]{words}",
        soft_wrap=True,
    )


def _variants(version: ModelVersion) -> Table:
    table = Table()
    batches = sorted(
        {row.batch for v in version.variants if v.measured for row in v.measured.latency}
    )
    for column in ("variant", "MB", "agrees", "bits/byte", *(f"ms, {b}" for b in batches)):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for v in version.variants:
        size = f"{v.size_bytes / 1e6:.2f}"
        if v.measured is None:
            table.add_row(v.name, size, "not measured", *[""] * (1 + len(batches)))
            continue
        by = {row.batch: f"{row.median_ms:.1f}" for row in v.measured.latency}
        words = (f"{v.measured.agreement:.2%}", f"{v.measured.bits_per_byte:.4f}")
        table.add_row(v.name, size, *words, *(by.get(b, "") for b in batches))
    measured = next((v.measured for v in version.variants if v.measured), None)
    if measured is not None:
        host = measured.host
        table.caption = (
            f"{measured.positions} positions of held-out text; median ms of one pass over so many "
            f"texts of {measured.tokens} bytes, {host.threads} of {host.cores} cores of {host.cpu}"
        )
        table.caption_justify = "left"
    return table


def _names(version: ModelVersion) -> str:
    return ", ".join(v.name for v in version.variants)


def _when(created_ms: int) -> str:
    return f"{datetime.fromtimestamp(created_ms / 1000):%Y-%m-%d %H:%M:%S}"
