"""A job for the tests: tasks that hold one CPU each until a file appears.

python work.py RELEASE_FILE COUNT [LABEL=VALUE]
"""

import sys
import time
from pathlib import Path

import ray

release, count = Path(sys.argv[1]), int(sys.argv[2])
selector = dict(word.split("=", 1) for word in sys.argv[3:])


@ray.remote(num_cpus=1, label_selector=selector, max_retries=3)
def hold() -> str:
    host = ray.get_runtime_context().get_node_labels()["rayburst.io/host"]
    release.with_name(f"running-{host}").touch()
    while not release.exists():
        time.sleep(0.1)
    return host


ray.init(log_to_driver=False)
print("ran on", sorted(ray.get([hold.remote() for _ in range(count)])), flush=True)
