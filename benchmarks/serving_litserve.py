"""LitServe for the serving benchmark: `python serving_litserve.py PORT`; WAIT_MS sets its wait.

LitServe reads the annotation of `decode_request`'s first parameter, so it must be no string.
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve as ls
from fastapi import Request

sys.path.insert(0, str(Path(__file__).parent))
import serving_model


class Api(ls.LitAPI):
    """As its documentation has it for batches."""

    def setup(self, device: str) -> None:
        """Once in its worker."""
        self.model = serving_model.load()

    def decode_request(self, request: Request, **more: Any) -> Any:
        """A body that is JSON already."""
        return request

    def batch(self, inputs: list[Any]) -> Any:
        """Lists stay lists."""
        return inputs

    def predict(self, x: Any, **more: Any) -> Any:
        """A batch."""
        return serving_model.run(self.model, x).tolist()

    def unbatch(self, output: Any) -> Any:
        """One answer for each."""
        return output

    def encode_response(self, output: Any, **more: Any) -> Any:
        """As it is."""
        return output


if __name__ == "__main__":
    wait_s = float(os.environ.get("WAIT_MS", "5")) / 1000
    server = ls.LitServer(
        Api(max_batch_size=32, batch_timeout=wait_s),
        accelerator="cpu",
        workers_per_device=1,
        timeout=60,
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
