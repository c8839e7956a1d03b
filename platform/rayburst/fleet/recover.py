"""`rayburst up --recover`: a cluster of `ray up` whose head was lost for good comes back.

    recover(Path("onprem.yaml"), say=print)

The head is made on the machine that the fleet file names now, as `ray up` makes it: with its start
it gives back what the lost head had leased (`head.clear`). Then it submits again what the lost
head's agent had journalled (`submissions`). Nodes of the lost head are replaced: Ray takes a node
for a stranger once its head's memory is gone. Training goes on from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rayburst.errors import FleetExistsError
from rayburst.fleet.cluster import cluster_config, head_of
from rayburst.fleet.launcher import ClusterLauncher
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.specfile import read_text


def recover(file: Path, *, say: Callable[[str], None]) -> None:
    """Bring the cluster of a fleet file back.

    Raises:
        SpecError: the file names no machine for the head.
        FleetExistsError: a head runs there, so none is lost.
    """
    from ray.autoscaler.sdk import create_or_update_cluster

    text = read_text(file)
    spec = FleetSpec.load(file)
    config = cluster_config(spec, text)
    launcher = ClusterLauncher(config["provider"], spec.name)
    at = head_of(spec).host
    if launcher.runs():
        raise FleetExistsError(
            f"the head of fleet {spec.name!r} at {at} runs: nothing is lost. To make it anew, end "
            f"it with `ray down`; to move it, name another machine in head: {{ssh: {{host: ...}}}}"
        )
    say(f"a new head on {at}")
    create_or_update_cluster(config, no_config_cache=True)
    for line in launcher.recover():
        say(line)
    say(f"fleet {spec.name} is back")
