"""What a request's bytes mean to a model, and what its answer looks like on the wire.

    codec = Codec.of(Classifier)             # from the annotations of predict() and the example
    value = codec.decode(body, "application/json")
    batch = codec.stack([value, ...])
    answers = codec.split(model.predict(batch), n)
    body = codec.encode(answers[0], "application/json")

The annotation of predict's batch decides what is taken:

    np.ndarray, torch.Tensor   one array of rows, each of the example's shape and dtype
    list[np.ndarray]           rows whose first axis varies; batches are of like length
    list[Model]                pydantic models
    list[T]                    anything msgspec can check: str, dict, dataclasses, Structs...

JSON is always taken; arrays also as npy and as an Arrow stream of one column and one row. A body is
checked by itself before it can meet others.
"""

from __future__ import annotations

import inspect
import io
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pydantic

from rayburst.errors import BadRequestError, ModelError, RequestFailedError
from rayburst.serve.arrow import NO_ARROW as _NO_ARROW
from rayburst.serve.arrow import from_arrow, to_arrow

__all__ = ["ARROW", "JSON", "NPY", "Codec"]

JSON = "application/json"
NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"
_SCALARS: dict[str, type] = {"f": float, "i": int, "u": int, "b": bool}
_to_json = msgspec.json.Encoder(enc_hook=lambda value: _plain(value)).encode


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Bytes to values, values to a batch, and back. `kinds` are the content types it takes."""

    decode: Callable[[bytes, str], Any]
    stack: Callable[[Sequence[Any]], Any]
    length: Callable[[Any], int]
    kinds: tuple[str, ...]
    schema: dict[str, Any]

    @classmethod
    def of(cls, model: type) -> Codec:
        """The codec that a model class asks for by its annotations and its `example`."""
        item, is_list = _batch_type(model)
        example = getattr(model, "example", None)
        if item is np.ndarray or _is_tensor(item):
            return _arrays(model, example, is_list=is_list, is_tensor=_is_tensor(item))
        if isinstance(item, type) and issubclass(item, pydantic.BaseModel):
            return _pydantic(item)
        return _typed(item)

    def split(self, made: Any, n: int) -> list[Any]:
        """One answer for each of `n` requests. Arrays and tensors go by their first axis."""
        if _is_tensor(type(made)):
            made = made.detach().cpu().numpy()
        is_rows = isinstance(made, list | tuple) or getattr(made, "ndim", 0) > 0
        if not is_rows or len(made) != n:
            size = f"{len(made)} answers" if is_rows else repr(type(made))
            raise RequestFailedError(
                f"predict got {n} requests and returned {size}; it must return one answer for "
                "each, in order: a list, or an array whose first axis is the batch"
            )
        return list(made)

    def encode(self, answer: Any, kind: str) -> bytes:
        """The body of a response. Arrays alone can be npy or Arrow."""
        if kind == JSON:
            return _to_json(answer)
        if _is_tensor(type(answer)):
            answer = answer.detach().cpu().numpy()
        array = np.ascontiguousarray(answer)
        if array.dtype.kind not in _SCALARS:
            raise BadRequestError(f"this answer is no array, so it cannot be sent as {kind}")
        return _to_npy(array) if kind == NPY else to_arrow(array)


def _batch_type(model: type) -> tuple[Any, bool]:
    predict = getattr(model, "predict", None)
    if not callable(predict):
        raise ModelError(f"{model.__name__} has no predict(self, batch): it is what is served")
    try:
        known = typing.get_type_hints(predict)
    except NameError as error:
        raise ModelError(
            f"an annotation of {model.__name__}.predict cannot be read: {error}. Import what it "
            "names where the class is defined, not under TYPE_CHECKING only"
        ) from None
    # A class that travels by value leaves its module's names behind, but takes these along.
    predict.__annotations__ = known
    hints = {name: kind for name, kind in known.items() if name != "return"}
    if not hints:
        raise ModelError(
            f"{model.__name__}.predict does not say what it takes: annotate its batch, for "
            "example `def predict(self, batch: np.ndarray)` or `batch: list[MyInput]`"
        )
    if hasattr(model, "model_ids") and len(inspect.signature(predict).parameters) < 3:
        raise ModelError(
            f"{model.__name__} has model_ids, and its predict is not told which one to use: write "
            "`def predict(self, batch: ..., model_id: str)`"
        )
    if hasattr(model, "variants") and hasattr(model, "model_ids"):
        raise ModelError(
            f"{model.__name__} has variants and model_ids: a batch is told one of them. Serve each "
            "model by a class of its own, with its variants"
        )
    if hasattr(model, "variants") and len(inspect.signature(predict).parameters) < 3:
        raise ModelError(
            f"{model.__name__} has variants, and its predict is not told which one to use: write "
            "`def predict(self, batch: ..., variant: str)`"
        )
    kind = next(iter(hints.values()))
    if typing.get_origin(kind) is list:
        return typing.get_args(kind)[0], True
    if kind is np.ndarray or typing.get_origin(kind) is np.ndarray or _is_tensor(kind):
        return (kind if _is_tensor(kind) else np.ndarray), False
    raise ModelError(
        f"{model.__name__}.predict takes {kind!r}; it can be given np.ndarray, torch.Tensor, "
        "list[np.ndarray], or a list of pydantic models, dataclasses or plain JSON types"
    )


def _is_tensor(kind: Any) -> bool:
    return getattr(kind, "__module__", "") == "torch" and kind.__name__ == "Tensor"


def _arrays(model: type, example: Any, *, is_list: bool, is_tensor: bool) -> Codec:
    if example is None:
        raise ModelError(
            f"{model.__name__} takes arrays and has no example: set one input of the right shape "
            "and dtype, for example `example = np.zeros(64, np.float32)`"
        )
    sample = np.asarray(example.detach().cpu() if _is_tensor(type(example)) else example)
    if sample.dtype.kind not in _SCALARS or (is_list and not sample.ndim):
        raise ModelError(f"{model.__name__}.example is {sample!r}: give an array of numbers")
    shape = (None, *sample.shape[1:]) if is_list else sample.shape
    reader = _ArrayReader(shape, sample.dtype)
    return Codec(
        decode=reader.read,
        stack=_stacker(sample.dtype, is_list=is_list, is_tensor=is_tensor),
        length=len if is_list else _one,
        kinds=(JSON, NPY, ARROW),
        schema=_array_schema(shape, sample.dtype),
    )


class _ArrayReader:
    """Reads one row; a list of numbers stays a list until its batch is stacked."""

    def __init__(self, shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> None:
        self._shape, self._dtype = shape, dtype
        kind: Any = _SCALARS[dtype.kind]
        for _ in shape:
            kind = list[kind]
        self._from_json = msgspec.json.Decoder(kind).decode
        self._is_flat = len(shape) == 1 and shape[0] is not None
        self._is_float = dtype.kind == "f"

    def read(self, body: bytes, kind: str) -> Any:
        if kind != JSON:
            return self._fitting(_from_npy(body) if kind == NPY else self._from_arrow(body))
        try:
            row = self._from_json(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequestError(str(error)) from None
        if self._is_flat and self._is_float:
            if len(row) != self._shape[0]:
                raise self._wrong(f"{len(row)} numbers")
            return row
        try:
            return self._fitting(_cast(row, self._dtype))
        except (ValueError, OverflowError) as error:
            raise self._wrong(str(error)) from None

    def _fitting(self, array: np.ndarray) -> np.ndarray:
        fits = len(array.shape) == len(self._shape) and all(
            want is None or want == size
            for want, size in zip(self._shape, array.shape, strict=True)
        )
        if not fits or array.size == 0:
            raise self._wrong(f"shape {array.shape}")
        if not np.can_cast(array.dtype, self._dtype, "same_kind"):
            raise self._wrong(f"dtype {array.dtype}")
        return array if array.dtype == self._dtype else _cast(array, self._dtype)

    def _from_arrow(self, body: bytes) -> np.ndarray:
        try:
            flat = from_arrow(body)
            return flat.reshape([-1 if size is None else size for size in self._shape])
        except _NO_ARROW as error:
            raise BadRequestError(f"no Arrow stream of one row of numbers: {error}") from None

    def _wrong(self, given: str) -> BadRequestError:
        shape = tuple("any" if size is None else size for size in self._shape)
        return BadRequestError(f"got {given}; wanted shape {shape} of {self._dtype}")


def _stacker(
    dtype: np.dtype[Any], *, is_list: bool, is_tensor: bool
) -> Callable[[Sequence[Any]], Any]:
    if not is_tensor:
        return list if is_list else lambda rows: _cast(rows, dtype)
    import torch

    pinned = torch.cuda.is_available()  # a pinned batch goes to the GPU while the CPU goes on

    def tensor(rows: Any) -> Any:
        made = torch.from_numpy(_cast(rows, dtype))
        return made.pin_memory() if pinned else made

    return (lambda rows: [tensor(row) for row in rows]) if is_list else tensor


def _cast(rows: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """One array of rows. A number that its type cannot hold would be an infinity nobody sent."""
    try:
        with np.errstate(over="raise"):
            return np.array(rows, dtype)
    except FloatingPointError:
        raise BadRequestError(
            f"a number is too large for {dtype}; it holds up to {np.finfo(dtype).max:.4g}"
        ) from None


def _from_npy(body: bytes) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError) as error:
        raise BadRequestError(f"no npy file: {error}") from None
    return array


def _to_npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def _pydantic(item: type[pydantic.BaseModel]) -> Codec:
    validate = item.__pydantic_validator__.validate_json

    def decode(body: bytes, kind: str) -> Any:
        try:
            return validate(body)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            first = found[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise BadRequestError(f"{where}: {first['msg']}{more}") from None

    schema = item.model_json_schema()
    return Codec(decode=decode, stack=list, length=_one, kinds=(JSON,), schema=schema)


def _typed(item: Any) -> Codec:
    try:
        from_json = msgspec.json.Decoder(item).decode
        schema = msgspec.json.schema(item)
    except TypeError as error:
        raise ModelError(
            f"predict takes a list of {item!r}, which JSON cannot be: {error}"
        ) from None

    def decode(body: bytes, kind: str) -> Any:
        try:
            return from_json(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequestError(str(error)) from None

    length = len if item in (str, bytes, list) else _one
    return Codec(decode=decode, stack=list, length=length, kinds=(JSON,), schema=schema)


def _one(value: Any) -> int:
    return 1


def _plain(value: Any) -> Any:
    """What msgspec does not know by itself: arrays, tensors, pydantic models."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if _is_tensor(type(value)):
        return value.detach().cpu().tolist()
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"an answer of type {type(value).__name__} has no JSON form")


def _array_schema(shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    names = {"f": "number", "i": "integer", "u": "integer", "b": "boolean"}
    schema: dict[str, Any] = {"type": names[dtype.kind]}
    if dtype.kind in "iuf":
        info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        number = float if dtype.kind == "f" else int
        schema |= {"minimum": number(info.min), "maximum": number(info.max)}
    for size in reversed(shape):
        bounds = {"minItems": 1} if size is None else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema
