"""Turns the client's errors into rayburst's, with the object's name and without secrets.

Deliberately does not know which call failed or what the object was for.
"""

from __future__ import annotations

import os
import re

from obstore.exceptions import (
    AlreadyExistsError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from rayburst.errors import ObjectExistsError, ObjectNotFoundError, StoreError

_SECRET_NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_CLIENT_SECRET",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
)
_CODE = re.compile(r"(?:<Code>|\(code: )([A-Za-z0-9]{1,80})[<)]")
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


def translate(name: str, error: Exception) -> StoreError:
    """The StoreError for a failed call on the object `name`."""
    if isinstance(error, StoreError):
        return error
    text = summary(error)
    codes = _CODE.findall(str(error))
    if "NoSuchBucket" in codes:
        return StoreError(f"{name}: the bucket does not exist. Create it, or correct the URI.")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"{name}: no such object")
    if isinstance(error, AlreadyExistsError | PreconditionError | FileExistsError):
        return ObjectExistsError(f"{name}: the object is already there; another writer was first")
    if "RequestTimeTooSkewed" in codes:
        return StoreError(
            f"{name}: the store refused a request because this machine's clock and the store's "
            f"differ by too much. Set the clock right (NTP). {text}"
        )
    if "169.254.169.254" in text:
        return StoreError(
            f"{name}: no credentials. They come from the environment (AWS_ACCESS_KEY_ID, ...) or "
            f"the instance role, and neither has any. {text}"
        )
    refused = isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
    if refused or is_refusal(str(error)):
        # an answer to HEAD has no code, and a clock that is off is refused in the same way
        clock = "" if codes else " A clock that is off is refused like this too."
        return StoreError(
            f"{name}: the store refused these credentials. They come from the environment "
            f"(AWS_ACCESS_KEY_ID, ...) or the instance role and need to read, write and list "
            f"here.{clock} {text}"
        )
    return StoreError(f"{name}: {text}")


def is_refusal(text: str) -> bool:
    """Whether an answer says that the credentials are not taken, or not for this."""
    return bool(_REFUSED & set(_CODE.findall(text)))


def summary(error: Exception) -> str:
    """One line of what the client said: no request dump, no XML, no secrets."""
    codes = _CODE.findall(str(error))
    line = str(error).split("Debug source:")[0].split("<?xml")[0].split("<Error>")[0]
    line = " ".join(line.split())[:400]
    if codes:
        line = f"{line} {codes[0]}"
    for variable in _SECRET_NAMES:
        secret = os.environ.get(variable)
        if secret:
            line = line.replace(secret, "***")
    return f"({type(error).__name__}) {line}"
