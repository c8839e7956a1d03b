"""Bytes to batches and back: what each annotation takes, and how what is wrong is told."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from rayburst.errors import BadRequestError, ModelError, RequestFailedError
from rayburst.serve.codec import ARROW, JSON, NPY, Codec


class Arrays:
    example = np.zeros(3, np.float32)

    def predict(self, batch: np.ndarray): ...


class Images:
    example = torch.zeros(2, 2, dtype=torch.uint8)

    def predict(self, batch: torch.Tensor): ...


class Sequences:
    example = np.zeros(1, np.int64)

    def predict(self, batch: list[np.ndarray]): ...


class Point(BaseModel):
    x: float = Field(ge=0)
    name: str = ""


class Models:
    def predict(self, batch: list[Point]): ...


class Texts:
    def predict(self, batch: list[str]): ...


def npy(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=array.dtype == object)
    return out.getvalue()


def arrow(array, compression=None):
    column = pa.array([np.ravel(array)], pa.list_(pa.from_numpy_dtype(array.dtype)))
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([column], names=["input"])
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def test_json_npy_and_arrow_make_the_same_row():
    codec = Codec.of(Arrays)
    row = np.array([1, 2.5, -3], np.float32)
    bodies = [(b"[1,2.5,-3]", JSON), (npy(row), NPY), (arrow(row), ARROW)]
    batch = codec.stack([codec.decode(body, kind) for body, kind in bodies])
    assert batch.dtype == np.float32
    assert np.array_equal(batch, [row] * 3)


def test_answers_go_back_in_the_form_that_was_asked_for():
    codec = Codec.of(Arrays)
    answer = np.array([1, 2], np.float32)
    assert codec.encode(answer, JSON) == b"[1.0,2.0]"
    assert np.array_equal(np.load(io.BytesIO(codec.encode(answer, NPY))), answer)
    table = pa.ipc.open_stream(codec.encode(answer, ARROW)).read_all()
    assert table.column("output").to_pylist() == [[1.0, 2.0]]
    with pytest.raises(BadRequestError, match="is no array"):
        codec.encode({"a": 1}, NPY)


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b"[1,2]", JSON, r"2 numbers; wanted shape \(3,\)"),
        (b'["a",2,3]', JSON, "Expected `float`"),
        (b"", JSON, "truncated"),
        (b"[" * 100_000, JSON, "Expected `float`"),
        (npy(np.zeros(4, np.float32)), NPY, r"shape \(4,\)"),
        (npy(np.zeros(3, complex)), NPY, "dtype complex128"),
        (npy(np.array([{}] * 3, object)), NPY, "no npy file"),
        (b"\x93NUMPY garbage", NPY, "no npy file"),
        (b"", NPY, "no npy file"),
        (b"garbage", ARROW, "no Arrow stream"),
        (arrow(np.zeros(3, np.float32))[:-40], ARROW, "no Arrow stream"),
        (arrow(np.zeros(10_000_000, np.float32), "zstd"), ARROW, "compressed"),
    ],
)
def test_what_is_wrong_with_an_array_is_told(body, kind, told):
    with pytest.raises(BadRequestError, match=told):
        Codec.of(Arrays).decode(body, kind)


def test_tensors_have_the_dtype_and_shape_of_the_example():
    codec = Codec.of(Images)
    batch = codec.stack([codec.decode(b"[[1,2],[3,4]]", JSON)] * 2)
    assert (batch.dtype, tuple(batch.shape)) == (torch.uint8, (2, 2, 2))
    assert [row.tolist() for row in codec.split(batch, 2)] == [[[1, 2], [3, 4]]] * 2
    with pytest.raises(BadRequestError, match="wanted shape"):
        codec.decode(b"[[1,2],[3]]", JSON)
    with pytest.raises(BadRequestError, match="of uint8"):
        codec.decode(b"[[1,2],[3,400]]", JSON)


def test_sequences_keep_their_length():
    codec = Codec.of(Sequences)
    rows = [codec.decode(body, JSON) for body in (b"[1]", b"[1,2,3]")]
    assert [codec.length(row) for row in rows] == [1, 3]
    assert [row.tolist() for row in codec.stack(rows)] == [[1], [1, 2, 3]]
    with pytest.raises(BadRequestError, match="any"):
        codec.decode(b"[]", JSON)


def test_pydantic_models_say_which_field_is_wrong():
    codec = Codec.of(Models)
    assert codec.decode(b'{"x": 2}', JSON) == Point(x=2)
    assert codec.encode(Point(x=2), JSON) == b'{"x":2.0,"name":""}'
    with pytest.raises(BadRequestError, match=r"x: Input should be greater.* \(and 1 more\)"):
        codec.decode(b'{"x": -1, "name": 5}', JSON)


def test_plain_types_are_checked_too():
    codec = Codec.of(Texts)
    assert codec.length(codec.decode(b'"hello"', JSON)) == 5
    with pytest.raises(BadRequestError, match="Expected `str`"):
        codec.decode(b"5", JSON)


@given(st.binary(max_size=300), st.sampled_from([JSON, NPY, ARROW]))
def test_any_bytes_are_a_row_or_a_bad_request(body, kind):
    for model in (Arrays, Images, Sequences, Models, Texts):
        codec = Codec.of(model)
        if kind in codec.kinds:
            try:
                codec.stack([codec.decode(body, kind)])
            except BadRequestError as error:
                assert str(error)


@pytest.mark.parametrize("made", [np.zeros(2), [1, 2], 7, "abc", np.float32(1), np.array(3.0)])
def test_a_batch_without_one_answer_for_each_is_an_error(made):
    with pytest.raises(RequestFailedError, match="got 3 requests"):
        Codec.of(Arrays).split(made, 3)


def test_a_class_that_cannot_be_served_is_told_why():
    class Nothing: ...

    class Unsaid:
        def predict(self, batch): ...

    class NoExample:
        def predict(self, batch: np.ndarray): ...

    class Strange:
        def predict(self, batch: int): ...

    for model, told in [
        (Nothing, "no predict"),
        (Unsaid, "annotate its batch"),
        (NoExample, "no example"),
        (Strange, "takes <class 'int'>"),
    ]:
        with pytest.raises(ModelError, match=told):
            Codec.of(model)
