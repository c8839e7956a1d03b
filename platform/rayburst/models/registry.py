"""Model versions on an object store: published once, never changed, promoted and rolled back.

    models = ModelRegistry.open("s3://fleet")           # versions lie below s3://fleet/models
    models.publish("first@300", name="gpt")             # the checkpoint becomes gpt@1
    models.promote("gpt@1")                             # gpt@production is gpt@1 from now on
    model, version = models.load("gpt@production")
    models.rollback("gpt")                              # production is what it was before

    models/gpt/versions/000000000001.json               # the version exists when this object does
    models/gpt/weights/<sha256>.safetensors             # written before it, named by its digest
    models/gpt/aliases/production/000000000001.json     # one object a move; only ever appended

Every write that decides something is one PUT *if absent*: of two publishers each gets a number of
its own, of two people who move an alias at once one wins and the other is told. A publish that was
killed leaves no version, only weights that the next one finds. A version holds its own weights, so
it outlives the run that it came from.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rayburst.checkpoint.manifest import SEAL_BYTES, sealed
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    VersionConflictError,
    VersionDamagedError,
    VersionNotFoundError,
)
from rayburst.models import files
from rayburst.models.manifest import NAME, ModelVersion, decode, encode
from rayburst.models.moves import ALIAS, PRODUCTION, Move, Ref, parse_ref

if TYPE_CHECKING:
    from rayburst.models.trials import Trials
    from rayburst.train.gpt import GPT

__all__ = ["ModelRegistry"]

_VERSIONS, _ALIASES = "versions", "aliases"
_TRIES = 100  # publishers that take a number before us


class ModelRegistry:
    """The models of one object store. Make it with `ModelRegistry.open` or take `p.models`."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._models = store.child("models")
        self._clock = clock

    @classmethod
    def open(cls, store_uri: str) -> ModelRegistry:
        """The models of the store that `RAYBURST_STORE` names, or of any other, or of a folder."""
        return cls(ObjectStore.open(store_uri))

    def __repr__(self) -> str:
        return f"<models of {self.store.uri}: {', '.join(self.names()) or 'none yet'}>"

    # reading

    def names(self) -> list[str]:
        """All models with a published version, by name."""
        return [n for n in self._models.folders() if NAME.fullmatch(n) and self.numbers(n)]

    def numbers(self, name: str) -> list[int]:
        """The numbers of a model's versions, oldest first; empty where there is no such model."""
        return _numbers(self.folder(name), _VERSIONS)

    def versions(
        self, name: str, *, on_damage: Callable[[int, VersionDamagedError], None] | None = None
    ) -> Iterator[ModelVersion]:
        """A model's versions, newest first. Damaged ones raise, or go to `on_damage`."""
        for number in reversed(self.numbers(name)):
            try:
                yield self._read(name, number)[0]
            except VersionDamagedError as error:
                if on_damage is None:
                    raise
                on_damage(number, error)

    def get(self, ref: str) -> ModelVersion:
        """The version that `gpt@3`, `gpt@production` or `gpt` (its production) names.

        Raises:
            VersionNotFoundError: there is none; says which there are.
            VersionDamagedError: its manifest, or the move that led to it, is not as written.
        """
        return self._resolve(parse_ref(ref))[0]

    def history(self, name: str, alias: str = PRODUCTION) -> list[Move]:
        """Every move of an alias, oldest first; empty when it never pointed anywhere."""
        return [self._move_of(name, alias, number) for number in self._moves(name, alias)]

    def last_move(self, name: str, alias: str = PRODUCTION) -> Move | None:
        """The move that stands; None when the alias never pointed anywhere."""
        numbers = self._moves(name, alias)
        return self._move_of(name, alias, numbers[-1]) if numbers else None

    def move_after(self, name: str, alias: str, number: int) -> Move | None:
        """The move that follows number `number`; None while there is none. One request."""
        there = self.folder(name).exists(_key(f"{_ALIASES}/{alias}", number + 1))
        return self._move_of(name, alias, number + 1) if there else None

    def moved_to(self, name: str, move: Move) -> ModelVersion:
        """The version that a move points to. VersionDamagedError: its manifest was replaced."""
        return self._moved_to(name, move)[0]

    def trials(self, name: str, alias: str = PRODUCTION) -> Trials:
        """Candidates beside an alias: begun, decided, ended."""
        from rayburst.models.trials import Trials

        return Trials(self, name, alias)

    def aliases(self, name: str) -> dict[str, int]:
        """Where each alias of a model points."""
        found = {
            alias: self.last_move(name, alias) for alias in self.folder(name).folders(_ALIASES)
        }
        return {alias: move.version for alias, move in found.items() if move is not None}

    def verify(self, ref: str) -> ModelVersion:
        """Read every byte of a version's weights and compare every digest.

        Raises:
            VersionDamagedError: a file is missing or not as published.
        """
        version = self.get(ref)
        folder = self.folder(version.name)
        for file in version.files.values():
            files.prove(folder, file)
        return version

    def load(self, ref: str, variant: str = "fp32") -> tuple[GPT, ModelVersion]:
        """The model in the form of a variant, on the CPU and in evaluation mode; and its version.

        Raises:
            VersionNotFoundError: no such version or variant.
            VersionDamagedError: its files are not as published.
            VariantError: the variant needs a package that is not installed here.
        """
        from rayburst.models.quantize import unpacked

        version = self.get(ref)
        chosen = version.variant(variant)
        tensors, metadata = files.get_tensors(self.folder(version.name), chosen.files)
        return unpacked(version.config_of(chosen), tensors, metadata), version

    # writing

    def publish(
        self,
        checkpoint: str,
        *,
        name: str,
        variants: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> ModelVersion:
        """Publish the language model of a checkpoint as the next version of `name`.

        Args:
            checkpoint: a run of this store, `first` or `first@300`, or the address of one.
            variants: what to make besides fp32 and to measure here: "bf16", "int8",
                "int8-dynamic", "int8-onnx". `jobs/quantize.py` does it on a node of the cluster.
            say: gets a line for each step, for example `print`.

        The same checkpoint with the same variants again gives the version that is there.

        Raises:
            CheckpointError: no whole checkpoint there, or of another kind of model.
            VersionError: `name` cannot be a name.
            VariantError: a variant is not known, or cannot be made here.
        """
        from rayburst.models.publish import publish_checkpoint

        return publish_checkpoint(self, checkpoint, name=name, variants=variants, say=say)

    def commit(self, version: ModelVersion) -> ModelVersion:
        """Store a version, whose files are stored, under the next free number, which it then has.

        One PUT if absent: the version is there afterwards, or it is not.
        """
        folder = self.folder(version.name)
        for _ in range(_TRIES):
            number = max(_numbers(folder, _VERSIONS), default=0) + 1
            numbered = version.model_copy(update={"version": number})
            data = encode(numbered)
            try:
                folder.put(_key(_VERSIONS, number), data, if_absent=True)
                return numbered
            except ObjectExistsError:
                if folder.get(_key(_VERSIONS, number)) == data:
                    return numbered  # ours: the reply to the first try was lost
        raise VersionConflictError(
            f"{version.name}: {_TRIES} others took the next number first; publish again"
        )

    def promote(self, ref: str, *, alias: str = PRODUCTION, why: str = "") -> Move:
        """Let an alias point to a version, after every byte of its weights was proven.

        What points there already stays as it is.

        Raises:
            VersionNotFoundError, VersionDamagedError: the version cannot be served.
            VersionConflictError: somebody moved the alias meanwhile; their move stands.
        """
        version, seal = self._resolve(parse_ref(ref))
        last = self.last_move(version.name, alias)
        self.verify(version.ref)
        if last is not None and last.version == version.version:
            return last
        number, below = (1, None) if last is None else (last.number + 1, last.number)
        return self._move(
            version, seal, alias=alias, kind="promote", why=why, number=number, below=below
        )

    def rollback(self, name: str, *, alias: str = PRODUCTION, why: str = "") -> Move:
        """Let an alias point to what it pointed to before the promotion that stands last.

        Raises:
            VersionNotFoundError: nothing was promoted before it.
            VersionConflictError: somebody moved the alias meanwhile; their move stands.
        """
        last = self.last_move(name, alias)
        if last is None or last.below is None:
            there = "nowhere" if last is None else f"{name}@{last.version}"
            known = ", ".join(map(str, self._known(name)))
            raise VersionNotFoundError(
                f"{name}@{alias} points to {there}, and to nothing before: there is no way back. "
                f"Versions: {known}. Promote one: rayburst models promote {name}@NUMBER"
            )
        below = self._move_of(name, alias, last.below)
        version, seal = self._read(name, below.version)
        folder = self.folder(name)
        for file in version.files.values():  # every byte was proven when it was promoted
            if folder.size(file.key) != file.size_bytes:
                files.prove(folder, file)
        return self._move(
            version,
            seal,
            alias=alias,
            kind="rollback",
            why=why,
            number=last.number + 1,
            below=below.below,
        )

    # parts

    def now_ms(self) -> int:
        """Unix time in milliseconds, by the clock that the registry was given."""
        return round(self._clock() * 1000)

    def folder(self, name: str) -> ObjectStore:
        """Where a model's objects are. VersionNotFoundError when `name` cannot be one."""
        if not NAME.fullmatch(name):
            raise VersionNotFoundError(
                f"{name!r} is no name of a model: up to 63 of a-z, 0-9, '.', '_' and '-', a letter "
                "or digit first, for example gpt"
            )
        return self._models.child(name)

    def _known(self, name: str) -> list[int]:
        numbers = self.numbers(name)
        if not numbers:
            known = ", ".join(self.names()) or "none yet"
            raise VersionNotFoundError(
                f"no model {name!r} at {self._models.uri}; models: {known}. "
                f"`rayburst models publish RUN@STEP --name {name}` makes it"
            )
        return numbers

    def _resolve(self, ref: Ref) -> tuple[ModelVersion, str]:
        """The version and the seal of its manifest."""
        numbers = self._known(ref.name)
        if ref.version is not None:
            return self._read(ref.name, ref.version)
        alias = ref.alias or PRODUCTION
        move = self.last_move(ref.name, alias)
        if move is None:
            known = ", ".join(f"{ref.name}@{a}" for a in self.aliases(ref.name)) or "none"
            raise VersionNotFoundError(
                f"{ref.name}@{alias} points nowhere; aliases: {known}; versions: "
                f"{', '.join(map(str, numbers))}. Name one, {ref.name}@{numbers[-1]}, or promote "
                f"it: rayburst models promote {ref.name}@{numbers[-1]}"
            )
        return self._moved_to(ref.name, move)

    def _moved_to(self, name: str, move: Move) -> tuple[ModelVersion, str]:
        version, seal = self._read(name, move.version)
        if seal != move.manifest_sha256:
            raise VersionDamagedError(
                f"{version.ref} is not what an alias was pointed to by move {move.number}: its "
                "manifest was replaced; it is refused. Promote a version that is whole"
            )
        return version, seal

    def _read(self, name: str, number: int) -> tuple[ModelVersion, str]:
        folder, key = self.folder(name), _key(_VERSIONS, number)
        try:
            data = folder.get(key)
        except ObjectNotFoundError:
            known = ", ".join(map(str, self.numbers(name))) or "none"
            raise VersionNotFoundError(
                f"{name} has no version {number}; versions: {known}"
            ) from None
        version = decode(ModelVersion, f"{folder.uri}/{key}", data)
        if (version.name, version.version) != (name, number):
            raise VersionDamagedError(
                f"{folder.uri}/{key} holds the manifest of {version.ref}; it is refused"
            )
        return version, sealed(data[-SEAL_BYTES:]) or ""

    def _moves(self, name: str, alias: str) -> list[int]:
        if not ALIAS.fullmatch(alias):
            raise VersionNotFoundError(
                f"{alias!r} is no alias: a-z, 0-9 and '-', a letter first, for example production"
            )
        return _numbers(self.folder(name), f"{_ALIASES}/{alias}")

    def _move_of(self, name: str, alias: str, number: int) -> Move:
        folder, key = self.folder(name), _key(f"{_ALIASES}/{alias}", number)
        return decode(Move, f"{folder.uri}/{key}", folder.get(key))

    def _move(self, version: ModelVersion, seal: str, *, alias: str, **words: Any) -> Move:
        move = Move(
            version=version.version,
            manifest_sha256=seal,
            at_ms=self.now_ms(),
            id=secrets.token_hex(8),
            **words,
        )
        folder, key = self.folder(version.name), _key(f"{_ALIASES}/{alias}", move.number)
        try:
            folder.put(key, encode(move), if_absent=True)
        except ObjectExistsError:
            winner = decode(Move, f"{folder.uri}/{key}", folder.get(key))
            if winner.id != move.id:
                raise VersionConflictError(
                    f"{version.name}@{alias} was meanwhile pointed to version {winner.version} "
                    f"({winner.kind}); that stands. Look, and call again if it is still right: "
                    f"rayburst models show {version.name}@{alias}"
                ) from None
        return move


def _key(folder: str, number: int) -> str:
    return f"{folder}/{number:012}.json"


def _numbers(store: ObjectStore, folder: str) -> list[int]:
    """Numbers of the objects in a folder, ascending."""
    names = (item.key.removeprefix(f"{folder}/") for item in store.list(folder))
    return sorted(int(n[:12]) for n in names if len(n) == 17 and n[:12].isdecimal())
