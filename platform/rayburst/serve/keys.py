"""API keys of tenants: made, rotated, revoked on the object store; checked on every replica.

    keys = KeyStore(ObjectStore.open("s3://fleet/serve/keys"))
    key, secret = keys.create("ads", models=("Classifier",), now_s=time.time())
    ring = KeyRing(keys.all())
    ring.tenant(secret, model="Classifier", now_s=time.time())     # "ads"

A secret is 256 bits from the system's random source, shown once; the store holds its SHA-256
(a slow hash guards what people choose, and nobody chose this). One object a key: two commands at
the same time cannot undo each other. Times are Unix seconds.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import KeyRefusedError, RayburstError, StoreError

__all__ = ["Key", "KeyGate", "KeyRing", "KeyStore"]

_PREFIX = "rbk"
_REFRESH_S = 15.0  # so long a revoked key may still be taken
_EVERY = "*"


class Key(BaseModel):
    """What the store holds of a key. `models` are names of served classes, `*` stands for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    tenant: str = Field(min_length=1, max_length=64)
    models: tuple[str, ...] = (_EVERY,)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_s: float
    expires_s: float | None = None
    is_revoked: bool = False

    def works_at(self, now_s: float) -> bool:
        """Neither revoked nor expired."""
        return not self.is_revoked and (self.expires_s is None or now_s < self.expires_s)


class KeyStore:
    """Keys below one address. Errors are the store's."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(
        self,
        tenant: str,
        *,
        models: Iterable[str] = (_EVERY,),
        now_s: float,
        expires_s: float | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its secret, which is nowhere else."""
        name = secrets.token_hex(6)
        secret = f"{_PREFIX}_{name}_{secrets.token_urlsafe(32)}"
        key = Key(
            id=name,
            tenant=tenant,
            models=tuple(models),
            sha256=_digest(secret),
            created_s=now_s,
            expires_s=expires_s,
        )
        self._store.put(f"{name}.json", key.model_dump_json().encode(), if_absent=True)
        return key, secret

    def all(self) -> list[Key]:
        """Every key, oldest first; objects that are none are an error."""
        found = []
        for item in self._store.list():
            try:
                found.append(Key.model_validate_json(self._store.get(item.key)))
            except ValidationError as error:
                raise StoreError(f"{item.key} is no key: {error.errors()[0]['msg']}") from None
        return sorted(found, key=lambda key: key.created_s)

    def revoke(self, name: str) -> Key:
        """Ends a key; replicas notice within 15 s."""
        return self._change(name, is_revoked=True)

    def rotate(self, name: str, *, now_s: float, overlap_s: float) -> tuple[Key, str]:
        """A new key for the same tenant and models; the old one ends after `overlap_s`."""
        old = self._get(name)
        made = self.create(old.tenant, models=old.models, now_s=now_s)
        ends_s = now_s + overlap_s
        self._change(name, expires_s=min(ends_s, old.expires_s or ends_s))
        return made

    def _get(self, name: str) -> Key:
        known = {key.id: key for key in self.all()}
        if name not in known:
            raise RayburstError(f"no key {name!r}; there are: {', '.join(known) or 'none'}")
        return known[name]

    def _change(self, name: str, **changes: object) -> Key:
        key = self._get(name).model_copy(update=changes)
        self._store.put(f"{name}.json", key.model_dump_json().encode())
        return key


class KeyRing:
    """Keys to look up by secret. Immutable: a newer ring replaces it."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {key.sha256: key for key in keys}

    def tenant(self, secret: str, *, model: str, now_s: float) -> str:
        """Whose request it is. KeyRefusedError: 401 without a key that works, 403 for others."""
        key = self._keys.get(_digest(secret)) if secret else None
        if key is None or not key.works_at(now_s):
            why = "the key is not known, or has ended" if secret else "a key is needed"
            raise KeyRefusedError(f"{why}: send `authorization: Bearer rbk_...`", status=401)
        if _EVERY not in key.models and model not in key.models:
            raise KeyRefusedError(f"this key is not for {model}", status=403)
        return key.tenant


class KeyGate:
    """The endpoint's gate: asks a ring that a thread renews from the store.

    When the store cannot be reached, the last ring stays: who could ask still can, and a key that
    was revoked meanwhile too, until the store is back.
    """

    def __init__(
        self, keys: KeyStore, *, model: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys, self._model, self._clock = keys, model, clock
        self._ring = KeyRing(keys.all())
        self._end = threading.Event()
        threading.Thread(target=self._renew, name="keys", daemon=True).start()

    def tenant(self, headers: Mapping[bytes, bytes], now_s: float) -> str:
        """The tenant of a request by its `authorization` or `x-api-key`; endpoint.Gate."""
        given = headers.get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        secret = token.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return self._ring.tenant(secret.decode("latin-1"), model=self._model, now_s=self._clock())

    def close(self) -> None:
        """Renews no more."""
        self._end.set()

    def _renew(self) -> None:
        while not self._end.wait(_REFRESH_S):
            try:
                self._ring = KeyRing(self._keys.all())
            except StoreError:
                continue  # the last ring stays


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
