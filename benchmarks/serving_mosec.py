"""mosec for the benchmark: `python serving_mosec.py plain|best PORT`; WAIT_MS sets its wait.

One Rust front and one Python worker. Best: msgspec decodes and encodes in place of its json.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
from mosec import Server, Worker

sys.path.insert(0, str(Path(__file__).parent))
import serving_model

_decode = msgspec.json.Decoder(list[float]).decode


class Plain(Worker):
    """As its documentation has it."""

    def __init__(self) -> None:
        self.model = serving_model.load()

    def forward(self, data: list[Any]) -> list[Any]:
        """A batch."""
        made: list[Any] = serving_model.run(self.model, data).tolist()
        return made


class Best(Plain):
    """With the codec that rayburst uses."""

    def deserialize(self, data: bytes) -> Any:
        """One body."""
        return _decode(data)

    def serialize(self, data: Any) -> bytes:
        """One answer."""
        return msgspec.json.encode(data)


if __name__ == "__main__":
    kind, port = sys.argv[1:]
    sys.argv = ["mosec", "--address", "127.0.0.1", "--port", port, "--log-level", "warning"]
    server = Server()
    worker = Best if kind == "best" else Plain
    wait_ms = int(os.environ.get("WAIT_MS", "10"))
    server.append_worker(worker, num=1, max_batch_size=32, max_wait_time=wait_ms)
    server.run()
