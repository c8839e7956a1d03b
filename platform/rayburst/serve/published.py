"""The model that a served language model answers with: a published version, or a checkpoint.

    served = load_served(Asked(version="gpt@production", slo_ms=500), os.environ)
    served.model, served.label, served.variant          # "gpt@3", "int8"

A version is looked up below RAYBURST_STORE, and every byte of the variant that is loaded is proven.
Which variant follows from the version's own table (rayburst.serve.variants), unless one is named.
With `overload="degrade"` it is a ladder of them: `rungs`, each loaded by `load(name)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rayburst.errors import CheckpointError
from rayburst.models.manifest import ModelVersion, Variant
from rayburst.models.measure import host_of
from rayburst.models.registry import ModelRegistry
from rayburst.serve.locate import locate
from rayburst.serve.variants import Wanted, choose, ladder
from rayburst.train.gpt import GPT
from rayburst.train.trained import load_model

__all__ = ["Asked", "Overload", "ServedModel", "load_served", "registry_of", "settled"]

Overload = Literal["wait", "shed", "degrade"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to serve: a `version` such as "gpt@3", or the `checkpoint` at an address.

    `variant` names one; without it the table decides, by `slo_ms` and `agreement`.
    """

    version: str | None = None
    checkpoint: str | None = None
    variant: str | None = None
    slo_ms: float = 1000.0
    agreement: float = 0.98
    max_batch: int = 32
    overload: Overload = "wait"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A loaded model and where it comes from; `meta` as `load_model` gives it.

    `rungs`: what may answer under overload, by agreement, this variant first; `load` gives one,
    `sizes` says how many bytes its weights are.
    """

    model: GPT
    label: str
    variant: str
    why: str
    meta: dict[str, Any]
    load: Callable[[str], GPT]
    rungs: dict[str, float]
    sizes: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def settled(asked: Asked, environ: Mapping[str, str]) -> Asked:
    """With aliases and "newest" made one version or one checkpoint, for all replicas alike."""
    if asked.version is not None:
        return replace(asked, version=registry_of(environ).get(asked.version).ref)
    if asked.checkpoint is None and "RAYBURST_STORE" in environ:
        return replace(asked, checkpoint=locate(None, environ))
    return asked


def load_served(asked: Asked, environ: Mapping[str, str]) -> ServedModel:
    """Load it, on the CPU. VersionError, VariantError, CheckpointError: it cannot be served."""
    if asked.version is None:
        model, meta = load_model(locate(asked.checkpoint, environ))
        run, step = meta.get("run"), meta.get("step")
        label = f"{run or 'unnamed'}@{'unknown' if step is None else step}"
        return ServedModel(
            model=model,
            label=label,
            variant="fp32",
            why="a checkpoint",
            meta=meta,
            load=lambda name: model,
            rungs={"fp32": 1.0},
        )
    registry = registry_of(environ)
    version = registry.get(asked.version)
    names, why = _names(version, asked)
    name = names[0]
    model, version = registry.load(version.ref, name)
    measured = {v.name: v.measured for v in version.variants}
    return ServedModel(
        model=model,
        label=version.ref,
        variant=name,
        why=why,
        meta=_meta(version, version.variant(name)),
        load=lambda n: model if n == name else registry.load(version.ref, n)[0],
        rungs={n: 1.0 if (m := measured[n]) is None else m.agreement for n in names},
        sizes={v.name: v.size_bytes for v in version.variants if v.name in names},
        data=version.data.model_dump(),
    )


def _names(version: ModelVersion, asked: Asked) -> tuple[list[str], str]:
    """The variants that may answer, the first one first; why that one."""
    if asked.variant is not None:
        return [asked.variant], "it was named"
    wanted = Wanted(slo_ms=asked.slo_ms, agreement=asked.agreement, max_batch=asked.max_batch)
    if asked.overload != "degrade":
        rungs = [choose(version.variants, wanted)]
    else:
        rungs = list(ladder(version.variants, wanted))
    return [rung.variant for rung in rungs], rungs[0].why + _elsewhere(version)


def _elsewhere(version: ModelVersion) -> str:
    """A table counts where it was made: what to say where that is another machine."""
    measured = next((v.measured for v in version.variants if v.measured is not None), None)
    here = host_of()
    there = here if measured is None else measured.host
    if (there.cpu, there.threads) == (here.cpu, here.threads):
        return ""
    return (
        f"; measured with {there.threads} threads of {there.cpu}, and this replica has "
        f"{here.threads} of {here.cpu}: measure on a node like it, python jobs/quantize.py "
        f"--model {version.ref} --threads {here.threads}"
    )


def registry_of(environ: Mapping[str, str]) -> ModelRegistry:
    """The versions of the store that RAYBURST_STORE names. CheckpointError when it is not set."""
    root = environ.get("RAYBURST_STORE")
    if not root:
        raise CheckpointError(
            "a version is looked up in the object store that RAYBURST_STORE names, and it is not "
            "set: set it where Ray starts, for example RAYBURST_STORE=s3://fleet"
        )
    return ModelRegistry.open(root)


def _meta(version: ModelVersion, variant: Variant) -> dict[str, Any]:
    """A student's own checkpoint and shape, and what was measured of it; else the version's."""
    checkpoint = variant.checkpoint or version.checkpoint
    own = {}
    if variant.checkpoint is not None and variant.measured is not None:
        own = {"val_bits_per_byte": variant.measured.bits_per_byte}
    return {
        **version.metrics,
        **own,
        "uri": checkpoint.uri,
        "run": checkpoint.run,
        "step": checkpoint.step,
        "config": version.config_of(variant),
    }
