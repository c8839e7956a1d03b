"""The servers of the serving benchmark: `python serving_servers.py KIND PORT` runs one.

All serve serving_model.py: a POST with a JSON list of 64 numbers, answered by a JSON list of 8.
Batches of 32 at most. mosec and LitServe wait for company, as long as WAIT_MS says. The Ray
kinds start a cluster of their own and deploy their applications.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import serving_model

MAX_BATCH = 32


def mosec(port: int, *, is_best: bool) -> None:
    """Its workers must be at the top of a module of their own."""
    program = str(Path(__file__).parent / "serving_mosec.py")
    kind = "best" if is_best else "plain"
    os.execv(sys.executable, [sys.executable, program, kind, str(port)])


def litserve(port: int) -> None:
    """Likewise."""
    program = str(Path(__file__).parent / "serving_litserve.py")
    os.execv(sys.executable, [sys.executable, program, str(port)])


def bentoml(port: int) -> None:
    """Its command serves the class below."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "1"
    here = Path(__file__).parent
    command = [
        "bentoml", "serve", "serving_servers:Bento", "--port", str(port), "--host", "127.0.0.1",
        "--working-dir", str(here),
    ]  # fmt: skip
    os.execv(str(Path(sys.executable).parent / "bentoml"), command)


if "bentoml" in sys.modules or Path(sys.argv[0]).name == "bentoml":
    import bentoml as b

    @b.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1000})
    class Bento:
        """BentoML's adaptive batching."""

        def __init__(self) -> None:
            self.model = serving_model.load()

        @b.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=10_000, route="/inference")
        def inference(self, rows: list[list[float]]) -> list[list[float]]:
            return serving_model.run(self.model, rows).tolist()


def ray_cluster(port: int, folder: Path) -> None:
    """A cluster with Serve's environment as it is; says READY once its applications answer."""
    import ray
    from ray import serve
    from serving_ray import batched, rayburst_app

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        _temp_dir=os.environ["BENCH_RAY_TMP"],
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"enable_access_log": False},
    )
    has_proxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    serve.run(batched(access_log=not has_proxy), name="batch", route_prefix="/batch")
    if has_proxy:
        serve.run(rayburst_app(MAX_BATCH), name="fast", route_prefix="/fast")
        serve.run(rayburst_app(1), name="single", route_prefix="/single")
    (folder / "ready").write_text(json.dumps({"pid": os.getpid()}))
    while True:
        time.sleep(3600)


def main(kind: str, port: int) -> None:
    """Runs one server until it is ended."""
    if kind == "ray":
        ray_cluster(port, Path(os.environ["BENCH_FOLDER"]))
    elif kind.startswith("mosec"):
        mosec(port, is_best=kind == "mosec-best")
    else:
        {"litserve": litserve, "bentoml": bentoml}[kind](port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
