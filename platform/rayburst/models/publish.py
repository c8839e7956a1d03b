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

__all__ = ["publish_checkpoint", "publish_variants"]

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
    run, step = _run(registry.store, checkpoint)
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
        checkpoint=_checkpoint_ref(run.uri, manifest),
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

    `text`: bytes to compare the variants on; without them the held-out text of the version's run.
    """
    schemes = _schemes(variants)
    model, parent = registry.load(ref)
    if text is None:
        found = held_out(_run(registry.store, parent.checkpoint.uri)[0])
        text = None if found is None else found[0]
    made = _made(
        registry,
        parent.name,
        model,
        schemes,
        text=text,
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


def _run(store: ObjectStore, checkpoint: str) -> tuple[ObjectStore, int | None]:
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
    text: Bytes | None,
    where: str,
    threads: int | None,
    say: Say | None,
) -> tuple[Variant, ...]:
    folder, say = registry.folder(name), say or _silent
    stored = {}
    for scheme in schemes:
        stored[scheme] = put_tensors(folder, *packed(make(model, scheme)))
        say(f"{scheme}: {sum(file.size_bytes for file in stored[scheme]) / 1e6:.2f} MB stored")
    if len(schemes) == 1:  # nothing to choose among
        return tuple(Variant(name=scheme, files=stored[scheme]) for scheme in schemes)
    if text is None:
        raise DataError(
            f"{where} keeps no held-out text, so {', '.join(schemes[1:])} cannot be compared with "
            "fp32: publish without variants, then compare on a text of yours: python "
            "jobs/quantize.py --model NAME@VERSION --text FILE"
        )
    config = model.config.to_dict()
    models = {s: unpacked(config, *get_tensors(folder, stored[s])) for s in schemes}
    table = measure(models, spread(text, block=model.config.block_size), threads=threads)
    for scheme, row in table.items():
        say(f"{scheme}: agrees {row.agreement:.2%}, {row.latency[0].median_ms:.1f} ms alone")
    return tuple(Variant(name=s, files=stored[s], measured=table[s]) for s in schemes)


def _checkpoint_ref(run_uri: str, manifest: Manifest) -> CheckpointRef:
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
