"""A job for the tests: actors that hold one CPU each until a file appears, and come up again.

python actors.py RELEASE_FILE COUNT [LABEL=VALUE]
"""

import sys
import time
from pathlib import Path

import ray

release, count = Path(sys.argv[1]), int(sys.argv[2])
selector = dict(word.split("=", 1) for word in sys.argv[3:])


@ray.remote(num_cpus=1, label_selector=selector, max_restarts=-1, max_task_retries=-1)
class Holder:
    def __init__(self) -> None:
        self.host = ray.get_runtime_context().get_node_labels()["rayburst.io/host"]
        release.with_name(f"running-{self.host}").touch()

    def hold(self) -> str:
        while not release.exists():
            time.sleep(0.1)
        return str(self.host)


ray.init(log_to_driver=False)
holders = [Holder.remote() for _ in range(count)]
hosts = sorted(ray.get([holder.hold.remote() for holder in holders]))
sys.stdout.write(f"ran on {hosts}\n")
