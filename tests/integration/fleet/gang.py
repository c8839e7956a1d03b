"""A job for the tests: a placement group of two nodes, and a file when it is placed.

python gang.py PLACED_FILE
"""

import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group

ray.init(log_to_driver=False)
group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
ray.get(group.ready())
Path(sys.argv[1]).touch()
