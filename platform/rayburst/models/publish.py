"""From a checkpoint of a run, or from a version, to the next version with its variants.

    publish_checkpoint(registry, "first@300", name="gpt", variants=["int8"])    # gpt@1
    publish_variants(registry, "gpt@1", ["bf16", "int8"])                       # gpt@2, from gpt@1

What is measured is what was stored: each variant is read back from the store first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import DataError, VersionError
from rayburst.models.files import get_tensors, put_tensors
from rayburst.models.manifest import (
    NAME,
    CheckpointRef,
    DataRef,
    ModelShape,
    ModelVersion,
    Variant,
)
from rayburst.models.measure import measure, spread
from rayburst.models.quantize import check_scheme, make, packed, unpacked
from rayburst.train.corpus import held_out
from rayburst.train.gpt import GPT
from rayburst.train.text import Bytes
from rayburst.train.trained import address, load_checkpoint, run_and_step
from rayburst.train.versions import recorded

if TYPE_CHECKING:
    from rayburst.models.registry import ModelRegistry

__all__ = [
    "checkpoint_ref",
    "held_out_of",
    "measured",
    "publish_checkpoint",
    "publish_variants",
    "run_folder",
    "stored_variant",
]

Say = Callable[[str], None]


def _silent(text: str) -> None:
    """Nobody listens."""


def publish_checkpoint(
    registry: ModelRegistry,
    checkpoint: str,
    *,
    name: str,
    variants: Sequence[str] = (),
    threads: int | None = None,
    say: Say | None = None,
) -> ModelVersion:
    """The next version of `name`; see ModelRegistry.publish."""
    if not NAME.fullmatch(name):
        raise VersionError(
            f"a model cannot be named {name!r}: up to 63 of a-z, 0-9, '.', '_' and '-', a letter "
            "or digit first, for example gpt"
        )
    schemes = _schemes(variants)
    run, step = run_folder(registry.store, checkpoint)
    model, manifest = load_checkpoint(run, step)  # every chunk is proven
    for known in registry.versions(name, on_damage=lambda number, error: None):
        if known.checkpoint.sha256 == manifest.sha256 and _names(known) == set(schemes):
            (say or _silent)(f"{known.ref} is this checkpoint with these variants already")
            return known
    text = held_out(run)
    draft = ModelVersion(
        name=name,
        version=1,
        created_ms=registry.now_ms(),
        model=ModelShape(kind="gpt", config=model.config.to_dict()),
        checkpoint=checkpoint_ref(run.uri, manifest),
        data=_data_ref(manifest, None if text is None else text[1]),
        code=_code(manifest),
        metrics=manifest.about.get("metrics") or {},
        variants=_made(
            registry,
            name,
            model,
            schemes,
            text=None if text is None else text[0],
            where=run.uri,
            threads=threads,
            say=say,
        ),
    )
    return registry.commit(draft)


def publish_variants(
    registry: ModelRegistry,
    ref: str,
    variants: Sequence[str],
    *,
    text: Bytes | None = None,
    threads: int | None = None,
    say: Say | None = None,
) -> ModelVersion:
    """A version with the fp32 weights of `ref` and these variants, all measured on this host.

    Students that `ref` has stay, measured anew beside the others. `text`: bytes to compare the
    variants on; without them the held-out text of the version's run.
    """
    schemes = _schemes(variants)
    model, parent = registry.load(ref)
    made = _made(
        registry,
        parent.name,
        model,
        schemes,
        students=[v for v in parent.variants if v.model is not None],
        text=held_out_of(registry, parent) if text is None else text,
        where=parent.checkpoint.uri,
        threads=threads,
        say=say,
    )
    changes: dict[str, Any] = {
        "parent": parent.version,
        "created_ms": registry.now_ms(),
        "variants": made,
    }
    return registry.commit(parent.model_copy(update=changes))


def _schemes(variants: Sequence[str]) -> list[str]:
    """fp32 first, each once."""
    return [check_scheme(name) for name in dict.fromkeys(["fp32", *variants])]


def _names(version: ModelVersion) -> set[str]:
    return {variant.name for variant in version.variants}


def run_folder(store: ObjectStore, checkpoint: str) -> tuple[ObjectStore, int | None]:
    """The run's folder, and the step that is named; a bare name is a run of this store."""
    run_uri, step = run_and_step(checkpoint)
    if "/" not in run_uri:
        return store.child(f"runs/{run_uri}"), step
    if run_uri.startswith(f"{store.uri}/"):  # over the connections that there are
        return store.child(run_uri.removeprefix(f"{store.uri}/")), step
    return ObjectStore.open(run_uri), step


def _made(
    registry: ModelRegistry,
    name: str,
    model: GPT,
    schemes: Sequence[str],
    *,
    students: Sequence[Variant] = (),
    text: Bytes | None,
    where: str,
    threads: int | None,
    say: Say | None,
) -> tuple[Variant, ...]:
    shape = ModelShape(kind="gpt", config=model.config.to_dict())
    stored = [stored_variant(registry, name, s, make(model, s), say or _silent) for s in schemes]
    return measured(
        registry,
        name,
        shape,
        (*stored, *students),
        text=text,
        where=where,
        threads=threads,
        say=say,
    )


def stored_variant(
    registry: ModelRegistry, name: str, variant: str, model: GPT, say: Say
) -> Variant:
    """The weights of `model` on the store, as a variant that nobody has measured yet."""
    found = Variant(name=variant, files=put_tensors(registry.folder(name), *packed(model)))
    say(f"{variant}: {found.size_bytes / 1e6:.2f} MB stored")
    return found


def measured(
    registry: ModelRegistry,
    name: str,
    shape: ModelShape,
    variants: Sequence[Variant],
    *,
    text: Bytes | None,
    where: str,
    threads: int | None,
    say: Say | None,
) -> tuple[Variant, ...]:
    """The variants with what each is worth here, beside the first; as they are where it is alone.

    What was stored is read back and measured. DataError without a `text`.
    """
    if len(variants) == 1:  # nothing to choose among
        return tuple(variants)
    if text is None:
        others = ", ".join(v.name for v in variants[1:])
        raise DataError(
            f"{where} keeps no held-out text, so {others} cannot be compared with "
            "fp32: publish without variants, then compare on a text of yours: python "
            "jobs/quantize.py --model NAME@VERSION --text FILE"
        )
    folder = registry.folder(name)
    models = {
        v.name: unpacked((v.model or shape).config, *get_tensors(folder, v.files)) for v in variants
    }
    table = measure(models, spread(text, block=shape.config["block_size"]), threads=threads)
    for variant, row in table.items():
        (say or _silent)(
            f"{variant}: agrees {row.agreement:.2%}, {row.latency[0].median_ms:.1f} ms alone"
        )
    return tuple(v.model_copy(update={"measured": table[v.name]}) for v in variants)


def held_out_of(registry: ModelRegistry, version: ModelVersion) -> Bytes | None:
    """The text that the run of a version held out; None where the run kept none."""
    found = held_out(run_folder(registry.store, version.checkpoint.uri)[0])
    return None if found is None else found[0]


def checkpoint_ref(run_uri: str, manifest: Manifest) -> CheckpointRef:
    """What a version says of the checkpoint that it was made from."""
    return CheckpointRef(
        uri=address(run_uri, manifest.step),
        run=manifest.about["config"]["run"],
        step=manifest.step,
        save=manifest.save,
        sha256=manifest.sha256,
        created_ms=manifest.created_ms,
    )


def _code(manifest: Manifest) -> dict[str, str]:
    """Versions that trained it, as the run recorded them, and those that published it."""
    config = manifest.about.get("config") or {}
    trained = {f"trained with {name}": text for name, text in config.get("versions", {}).items()}
    published = {f"published with {name}": text for name, text in recorded().items()}
    return {"checkpoint": str(manifest.about.get("code")), **trained, **published}


def _data_ref(manifest: Manifest, about: dict[str, Any] | None) -> DataRef:
    """What the run's config and its tokens say; a text instead of a list is a name."""
    given = manifest.about.get("config", {}).get("user", {}).get("data", ())
    words = about or {}
    return DataRef(
        places=(given,) if isinstance(given, str) else tuple(given),
        text=words.get("text"),
        held_out=words.get("validation"),
        position=manifest.about.get("data") or {},
    )
