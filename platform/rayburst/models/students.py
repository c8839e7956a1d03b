"""A distilled student as a variant of its teacher's version.

    publish_student(registry, "gpt@1", "s3://fleet/runs/student-1")     # gpt@2: gpt@1 and a student

The next version has the weights of `gpt@1` in all their forms, and the student beside them: other
weights of another shape, from a checkpoint of its own. All are measured here in turns, the student
against fp32 like the others, so the table alone decides who answers (rayburst.serve.variants).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rayburst.errors import VariantError
from rayburst.models.manifest import NAME, CheckpointRef, ModelShape, ModelVersion, Variant
from rayburst.models.publish import (
    checkpoint_ref,
    held_out_of,
    measured,
    run_folder,
    stored_variant,
)
from rayburst.models.quantize import SCHEMES, check_scheme, make
from rayburst.train.gpt import GPT
from rayburst.train.text import Bytes
from rayburst.train.trained import load_checkpoint

if TYPE_CHECKING:
    from rayburst.models.registry import ModelRegistry

__all__ = ["publish_student"]


def publish_student(
    registry: ModelRegistry,
    ref: str,
    checkpoint: str,
    *,
    name: str = "student",
    schemes: Sequence[str] = (),
    text: Bytes | None = None,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> ModelVersion:
    """A version with all variants of `ref` and the student, measured on this host.

    Args:
        checkpoint: of the student, as `ModelRegistry.publish` takes it.
        name: of the variant; one of the same name in `ref` is left out.
        schemes: cheaper forms of the student besides: "int8" gives the variant NAME-int8.
        text: bytes to compare on; without them what the run of `ref` held out.

    The same student of the same version again gives the version that is there.

    Raises:
        VariantError: the student reads texts of another length or alphabet than `ref`.
        DataError: there is no text to compare on.
    """
    parent, student, source = _read(registry, ref, checkpoint, name)
    known = _known(registry, parent, _forms(name, schemes), source)
    if known is not None:
        (say or _silent)(f"{known.ref} is {parent.ref} with this student already")
        return known
    shape = ModelShape(kind="gpt", config=student.config.to_dict())
    of_student = {"model": shape, "checkpoint": source}
    students = [
        stored_variant(
            registry, parent.name, form, make(student, scheme), say or _silent
        ).model_copy(update=of_student)
        for form, scheme in _forms(name, schemes).items()
    ]
    kept = [v for v in parent.variants if v.name not in _forms(name, schemes)]
    changes: dict[str, Any] = {
        "parent": parent.version,
        "created_ms": registry.now_ms(),
        "variants": measured(
            registry,
            parent.name,
            parent.model,
            (*kept, *students),
            text=held_out_of(registry, parent) if text is None else text,
            where=parent.checkpoint.uri,
            threads=threads,
            say=say,
        ),
    }
    return registry.commit(parent.model_copy(update=changes))


def _read(
    registry: ModelRegistry, ref: str, checkpoint: str, name: str
) -> tuple[ModelVersion, GPT, CheckpointRef]:
    if not NAME.fullmatch(name) or name in SCHEMES:
        raise VariantError(
            f"a student cannot be named {name!r}: a-z, 0-9, '.', '_' and '-', and none of "
            f"{', '.join(SCHEMES)}; for example student"
        )
    parent = registry.get(ref)
    run, step = run_folder(registry.store, checkpoint)
    student, manifest = load_checkpoint(run, step)
    for field in ("vocab_size", "block_size"):
        own, wanted = getattr(student.config, field), parent.model.config[field]
        if own != wanted:
            raise VariantError(
                f"{checkpoint} has {field} {own} and {parent.ref} {wanted}: a variant answers the "
                f"same texts. Distil it from {parent.ref}: python jobs/distill_lm.py --teacher "
                f"{parent.ref}"
            )
    return parent, student, checkpoint_ref(run.uri, manifest)


def _forms(name: str, schemes: Sequence[str]) -> dict[str, str]:
    """Variants of the student by name: it as it was trained, and each cheaper form."""
    more = {f"{name}-{s}": check_scheme(s) for s in schemes if s != "fp32"}
    return {name: "fp32", **more}


def _known(
    registry: ModelRegistry, parent: ModelVersion, forms: dict[str, str], source: CheckpointRef
) -> ModelVersion | None:
    """A version made from this parent with this very student."""

    def from_it(variant: Variant) -> bool:
        return variant.checkpoint is not None and variant.checkpoint.sha256 == source.sha256

    for known in registry.versions(parent.name, on_damage=lambda number, error: None):
        mine = {v.name for v in known.variants if from_it(v)}
        if known.parent == parent.version and mine == set(forms):
            return known
    return None


def _silent(text: str) -> None:
    """Nobody listens."""
