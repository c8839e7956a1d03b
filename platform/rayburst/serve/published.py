"""The model that a served language model answers with: a published version, or a checkpoint.

    served = load_served(Asked(version="gpt@production", slo_ms=500), os.environ)
    served.model, served.label, served.variant          # "gpt@3", "int8"

A version is looked up below RAYBURST_STORE, and every byte of the variant that is loaded is proven.
Which variant follows from the version's own table (rayburst.serve.variants), unless one is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rayburst.errors import CheckpointError
from rayburst.models.manifest import ModelVersion, Variant
from rayburst.models.registry import ModelRegistry
from rayburst.serve.locate import locate
from rayburst.serve.variants import Wanted, choose
from rayburst.train.gpt import GPT
from rayburst.train.trained import load_model

__all__ = ["Asked", "ServedModel", "load_served", "settled"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A loaded model and where it comes from; `meta` as `load_model` gives it."""

    model: GPT
    label: str
    variant: str
    why: str
    meta: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)


def settled(asked: Asked, environ: Mapping[str, str]) -> Asked:
    """With aliases and "newest" made one version or one checkpoint, for all replicas alike."""
    if asked.version is not None:
        return replace(asked, version=_registry(environ).get(asked.version).ref)
    if asked.checkpoint is None and "RAYBURST_STORE" in environ:
        return replace(asked, checkpoint=locate(None, environ))
    return asked


def load_served(asked: Asked, environ: Mapping[str, str]) -> ServedModel:
    """Load it, on the CPU. VersionError, VariantError, CheckpointError: it cannot be served."""
    if asked.version is None:
        model, meta = load_model(locate(asked.checkpoint, environ))
        run, step = meta.get("run"), meta.get("step")
        label = f"{run or 'unnamed'}@{'unknown' if step is None else step}"
        return ServedModel(model=model, label=label, variant="fp32", why="a checkpoint", meta=meta)
    registry = _registry(environ)
    version = registry.get(asked.version)
    name, why = asked.variant, "it was named"
    if name is None:
        wanted = Wanted(slo_ms=asked.slo_ms, agreement=asked.agreement, max_batch=asked.max_batch)
        choice = choose(version.variants, wanted)
        name, why = choice.variant, choice.why
    model, version = registry.load(version.ref, name)
    return ServedModel(
        model=model,
        label=version.ref,
        variant=name,
        why=why,
        meta=_meta(version, version.variant(name)),
        data=version.data.model_dump(),
    )


def _registry(environ: Mapping[str, str]) -> ModelRegistry:
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
