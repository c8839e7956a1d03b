"""A model version: one sealed JSON object that says what a model is and where it comes from. Pure.

It binds the checkpoint, the data and the code behind a model to its variants: the files that are
served, each with its SHA-256, and what was measured of them. Its own SHA-256 stands at its end, so
a changed or cut manifest is refused. `encode` gives what is stored; `decode` proves and reads it.

Deliberately knows no store, no clock and no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayburst.checkpoint.manifest import SEAL_BYTES, sealed
from rayburst.errors import VersionDamagedError, VersionError, VersionNotFoundError

__all__ = [
    "CheckpointRef",
    "DataRef",
    "Escalation",
    "Host",
    "Latency",
    "Measured",
    "ModelShape",
    "ModelVersion",
    "StoredFile",
    "Variant",
    "decode",
    "encode",
    "file_digest",
]

FORMAT = "rayburst-model"
FORMAT_VERSION = 2
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
S = TypeVar("S", bound=BaseModel)


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class StoredFile(_Stored):
    """A file of weights. `key` is its place below the model's folder."""

    key: str
    sha256: str = Sha256
    size_bytes: int = Field(ge=0)


class Latency(_Stored):
    """Time of one forward pass over `batch` texts, in milliseconds."""

    batch: int = Field(ge=1)
    median_ms: float = Field(gt=0)
    p95_ms: float = Field(gt=0)
    runs: int = Field(ge=1)


class Host(_Stored):
    """The machine that latencies were measured on."""

    cpu: str
    vector_instructions: str
    cores: int
    threads: int
    torch: str
    gpu: str | None = None


class Escalation(_Stored):
    """What asking fp32 again gives wherever a variant is less sure than `threshold`.

    Sure: the probability of its likeliest token. `agreement`: with fp32, of all answers then;
    `escalated`: the share that is asked again.
    """

    threshold: float = Field(ge=0, le=1)
    agreement: float = Field(ge=0, le=1)
    escalated: float = Field(ge=0, le=1)


class Measured(_Stored):
    """What a variant is worth, on real inputs and on one host.

    `agreement` is the share of positions at which the likeliest next token is the fp32 model's;
    `tokens` is the length of the texts, `positions` how many predictions were compared;
    `escalation` says what a cascade to fp32 would give, by threshold (models/escalation.py).
    """

    agreement: float = Field(ge=0, le=1)
    bits_per_byte: float
    positions: int = Field(ge=1)
    tokens: int = Field(ge=1)
    latency: tuple[Latency, ...] = Field(min_length=1)
    host: Host
    escalation: tuple[Escalation, ...] = Field(default=(), exclude_if=lambda points: not points)


class CheckpointRef(_Stored):
    """The checkpoint that a version was made from; `sha256` is the seal of its manifest."""

    uri: str
    run: str
    step: int
    save: str
    sha256: str = Sha256
    created_ms: int


class DataRef(_Stored):
    """What a model was trained on: `places` as they were given, the text by its digest.

    `position` is how far training had read. What the run does not say is None.
    """

    places: tuple[str, ...] = ()
    text: str | None = None
    held_out: str | None = None
    position: dict[str, Any] = Field(default_factory=dict)


class ModelShape(_Stored):
    """Which kind of model the weights are of, and its shape."""

    kind: Literal["gpt"]
    config: dict[str, Any]


class Variant(_Stored):
    """A served form of a model.

    One that was trained itself, a student, says from which `checkpoint`, and its own shape in
    `model`; the others have those of their version.
    """

    name: str
    files: tuple[StoredFile, ...] = Field(min_length=1)
    measured: Measured | None = None
    model: ModelShape | None = Field(default=None, exclude_if=lambda shape: shape is None)
    checkpoint: CheckpointRef | None = Field(default=None, exclude_if=lambda ref: ref is None)

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights as they are stored and sent to a replica."""
        return sum(file.size_bytes for file in self.files)


class ModelVersion(_Stored):
    """One published version of a model. Never changes."""

    name: str
    version: int = Field(ge=1)
    created_ms: int
    parent: int | None = None
    model: ModelShape
    checkpoint: CheckpointRef
    data: DataRef
    code: dict[str, str]
    metrics: dict[str, float | None] = Field(default_factory=dict)
    variants: tuple[Variant, ...] = Field(min_length=1)

    @property
    def ref(self) -> str:
        """How it is named: `gpt@3`."""
        return f"{self.name}@{self.version}"

    @property
    def format_version(self) -> int:
        """Readers before 2 knew no students and no escalation."""
        return 1 + any(v.model or (v.measured and v.measured.escalation) for v in self.variants)

    def config_of(self, variant: Variant) -> dict[str, Any]:
        """The shape of a variant's model, as `GPTConfig` takes it."""
        return (variant.model or self.model).config

    @property
    def files(self) -> dict[str, StoredFile]:
        """Every file of every variant, by key."""
        return {file.key: file for variant in self.variants for file in variant.files}

    def variant(self, name: str) -> Variant:
        """The variant of this name. VersionNotFoundError lists those there are."""
        for found in self.variants:
            if found.name == name:
                return found
        known = ", ".join(v.name for v in self.variants)
        make = f"quantize.py --model {self.ref} --variants {name}"
        if name.startswith("student"):
            make = f"distill_lm.py --teacher {self.ref}"
        raise VersionNotFoundError(
            f"{self.ref} has no variant {name!r}; it has: {known}. `python jobs/{make}` publishes "
            "a version with it"
        )


def file_digest(data: bytes | memoryview) -> str:
    """The SHA-256 that a file of weights is named by."""
    return hashlib.sha256(data).hexdigest()


def encode(record: BaseModel) -> bytes:
    """Canonical JSON, the digest of the rest at its end. VersionError where a number is NaN."""
    number = record.format_version if isinstance(record, ModelVersion) else 1
    body = {"format": FORMAT, "format_version": number, **record.model_dump(mode="python")}
    try:
        text = json.dumps(body, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise VersionError(
            f"what a version holds must be JSON without NaN and infinity: {error}"
        ) from None
    return text[:-1] + b',"sha256":"' + file_digest(text).encode() + b'"}'


def decode(kind: type[S], where: str, data: bytes) -> S:
    """Prove and read a record. `where` is the object's name, for messages.

    VersionDamagedError: other bytes than were written. VersionError: a newer rayburst's.
    """
    seal = sealed(data[-SEAL_BYTES:])
    if seal is None or file_digest(data[:-SEAL_BYTES] + b"}") != seal:
        raise VersionDamagedError(
            f"{where} is cut short or holds other bytes than were written (its digest differs); "
            "it is refused. Publish the checkpoint again: rayburst models publish RUN@STEP"
        )
    body: Mapping[str, Any] = json.loads(data)
    if body.get("format") != FORMAT or body.get("format_version", 0) > FORMAT_VERSION:
        raise VersionError(
            f"{where}: {body.get('format')!r} of version {body.get('format_version')}; this "
            f"rayburst reads {FORMAT!r} up to {FORMAT_VERSION}. Upgrade rayburst"
        )
    kept = {k: v for k, v in body.items() if k not in ("format", "format_version", "sha256")}
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise VersionDamagedError(f"{where}: {error.errors()[0]['msg']}; it is refused") from None
