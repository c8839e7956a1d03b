"""One row of numbers as an Arrow IPC stream, in and out, from senders that nobody trusts.

A stream may hold any number of batches, dictionaries and compressed buffers; a small body could so
ask for gigabytes. Here it is a schema of one column and one record batch of one row, uncompressed:
what it needs in memory is at most what was sent.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa

__all__ = ["NO_ARROW", "from_arrow", "to_arrow"]

# what pyarrow and numpy raise over bytes that are no such stream
NO_ARROW = (
    pa.ArrowException, ValueError, OSError, TypeError, LookupError, MemoryError,
    AttributeError, struct.error, EOFError, StopIteration,
)  # fmt: skip
_COMPRESSION = 3  # the place of this field in Arrow's RecordBatch table (format/Message.fbs)
_HEADER = 2  # and of the header in its Message table


def from_arrow(body: bytes) -> np.ndarray:
    """The numbers of the one row, flat. One of NO_ARROW when `body` is something else."""
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(body))
    schema = pa.ipc.read_schema(messages.read_next_message())
    message = messages.read_next_message()
    if len(schema) != 1 or message.type != "record batch":
        raise ValueError(f"{len(schema)} columns and a {message.type}")
    if _is_compressed(message.metadata.to_pybytes()):
        raise ValueError("its buffers are compressed")
    batch = pa.ipc.read_record_batch(message, schema)
    batch.validate(full=True)
    if batch.num_rows != 1:
        raise ValueError(f"{batch.num_rows} rows")
    values = batch.column(0)
    while pa.types.is_nested(values.type):
        values = values.flatten()
    flat: np.ndarray = values.to_numpy(zero_copy_only=False)
    return flat


def to_arrow(array: np.ndarray) -> bytes:
    """`array`, flat, as a stream of one row in a column called output."""
    column = pa.array([array.ravel()], pa.list_(pa.from_numpy_dtype(array.dtype)))
    batch = pa.record_batch([column], names=["output"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's metadata (a flatbuffer) names a compression."""
    (root,) = struct.unpack_from("<I", metadata)
    at = root + _field(metadata, root, _HEADER)
    (header,) = struct.unpack_from("<I", metadata, at)
    return _field(metadata, at + header, _COMPRESSION) != 0


def _field(buffer: bytes, table: int, field: int) -> int:
    """Offset of a field from its table's start; 0 where the field is not there."""
    (back,) = struct.unpack_from("<i", buffer, table)
    (size,) = struct.unpack_from("<H", buffer, table - back)
    place = 4 + 2 * field
    return int(struct.unpack_from("<H", buffer, table - back + place)[0]) if place < size else 0
