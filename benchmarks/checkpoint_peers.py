"""The ways to save and load a state that benchmarks/checkpoint.py compares, one class each.

Every peer saves the same replicated state of all ranks and loads it into the same tensors.
`save` returns seconds that training stands still; the caller measures the whole. Deliberately
does not measure.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import obstore
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from obstore.store import from_url

State = dict[str, torch.Tensor]
PIECE_BYTES = 8 * 1024 * 1024


class Peer(Protocol):
    """One way to save and load."""

    name: str

    def save(self, state: State, step: int) -> float: ...
    def load(self, state: State, step: int) -> None: ...
    def close(self) -> None: ...


class Rayburst:
    """rayburst.checkpoint: async_save, then its commit."""

    name = "rayburst"

    def __init__(self, uri: str) -> None:
        from rayburst.checkpoint import Checkpointer

        self._checkpoints = Checkpointer(f"{uri}/rayburst")
        self.sent_bytes = 0

    def save(self, state: State, step: int) -> float:
        handle = self._checkpoints.async_save(state, step=step)
        self.sent_bytes = handle.result().sent_bytes
        return handle.blocked_s

    def load(self, state: State, step: int) -> None:
        self._checkpoints.load(state, step=step)

    def close(self) -> None:
        self._checkpoints.close()


class TorchSaveBoto3:
    """torch.save to local disk, boto3 upload_file; rank 0 saves, every rank downloads."""

    name = "torch.save + boto3"

    def __init__(self, uri: str) -> None:
        import boto3

        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def save(self, state: State, step: int) -> float:
        begun = time.perf_counter()
        if dist.get_rank() == 0:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.pt"
                torch.save(state, path)
                self._client.upload_file(str(path), self._bucket, f"{self._prefix}/boto3/{step}")
        return time.perf_counter() - begun

    def load(self, state: State, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            self._client.download_file(self._bucket, f"{self._prefix}/boto3/{step}", str(path))
            found = torch.load(path, weights_only=True)
        for name, tensor in state.items():
            tensor.copy_(found[name])

    def close(self) -> None:
        return


class DcpFsspec:
    """torch.distributed.checkpoint over fsspec and s3fs."""

    name = "DCP + s3fs"

    def __init__(self, uri: str) -> None:
        self._uri = f"{uri}/fsspec"

    def save(self, state: State, step: int) -> float:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        begun = time.perf_counter()
        dcp.save(dict(state), storage_writer=FsspecWriter(f"{self._uri}/{step}", sync_files=False))
        return time.perf_counter() - begun

    def load(self, state: State, step: int) -> None:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        dcp.load(dict(state), storage_reader=FsspecReader(f"{self._uri}/{step}"))

    def close(self) -> None:
        return


class S3TorchConnector:
    """Amazon's s3torchconnector: its DCP writer (four threads) and reader."""

    name = "s3torchconnector DCP"

    def __init__(self, uri: str) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client

        self._uri = f"{uri}/connector"
        self._client = S3Client(
            "us-east-1",
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            s3client_config=S3ClientConfig(force_path_style=True),
        )

    def save(self, state: State, step: int) -> float:
        from s3torchconnector.dcp import S3StorageWriter

        begun = time.perf_counter()
        path = f"{self._uri}/{step}"
        writer: Any = S3StorageWriter("us-east-1", path, thread_count=4)
        writer.fs._client = self._client
        dcp.save(dict(state), storage_writer=writer)
        return time.perf_counter() - begun

    def load(self, state: State, step: int) -> None:
        from s3torchconnector.dcp import S3StorageReader

        reader: Any = S3StorageReader("us-east-1", f"{self._uri}/{step}")
        reader.fs._client = self._client
        dcp.load(dict(state), storage_reader=reader)

    def close(self) -> None:
        return


class Raw:
    """No checkpoint: the state's bytes as they lie in memory. The limit, by the best client."""

    def __init__(self, uri: str, name: str, piece_bytes: int, workers: int) -> None:
        self.name = name
        self._prefix = f"{uri.removeprefix('s3://').partition('/')[2]}/{name}".replace(" ", "-")
        self._store = from_url(
            f"s3://{uri.removeprefix('s3://').partition('/')[0]}",
            client_options={"allow_http": True, "timeout": "300s"},
            unsigned_payload=True,
        )
        self._piece, self._workers = piece_bytes, workers
        self._bytes: np.ndarray[Any, Any] | None = None

    def prepare(self, size_bytes: int) -> None:
        """This rank's share, in memory that has been touched; not part of the time."""
        share = size_bytes // dist.get_world_size()
        if self._bytes is None or len(self._bytes) != share:
            self._bytes = np.random.default_rng(dist.get_rank()).integers(
                0, 255, share, dtype=np.uint8
            )

    def _pieces(self) -> list[tuple[str, memoryview]]:
        if self._bytes is None:
            raise RuntimeError("prepare comes first")
        view = memoryview(self._bytes)
        step = self._piece or len(view)
        rank = dist.get_rank()
        return [
            (f"{self._prefix}/{rank}-{at}", view[at : at + step])
            for at in range(0, len(view), step)
        ]

    def save(self, state: State, step: int) -> float:
        with ThreadPoolExecutor(self._workers) as pool:
            list(
                pool.map(
                    lambda p: obstore.put(self._store, *p, use_multipart=False), self._pieces()
                )
            )
        return 0.0

    def load(self, state: State, step: int) -> None:
        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(lambda p: len(obstore.get(self._store, p[0]).bytes()), self._pieces()))

    def close(self) -> None:
        return


class RawBoto3(Raw):
    """The same limit by boto3."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, "raw boto3", PIECE_BYTES, 4)
        import boto3

        self._bucket = uri.removeprefix("s3://").partition("/")[0]
        self._client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def save(self, state: State, step: int) -> float:
        def put(piece: tuple[str, memoryview]) -> None:
            self._client.put_object(Bucket=self._bucket, Key=piece[0], Body=bytes(piece[1]))

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(put, self._pieces()))
        return 0.0

    def load(self, state: State, step: int) -> None:
        def get(piece: tuple[str, memoryview]) -> int:
            return len(self._client.get_object(Bucket=self._bucket, Key=piece[0])["Body"].read())

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(get, self._pieces()))


def limits(uri: str) -> list[Raw]:
    """The clients that try for the limit; the best of each cell counts."""
    return [
        Raw(uri, "raw obstore one", 0, 1),
        Raw(uri, "raw obstore 8 MiB x4", PIECE_BYTES, 4),
        RawBoto3(uri),
    ]


def peers(uri: str) -> list[Peer]:
    """All that are compared in the ranks' own processes."""
    return [Rayburst(uri), TorchSaveBoto3(uri), DcpFsspec(uri), S3TorchConnector(uri)]
