"""`rayburst fleet render`: a fleet file as what Ray's autoscaler, `ray up` or KubeRay takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rayburst.errors import SpecError

FORMS = ("autoscaler", "ray-up", "raycluster", "rayjob", "rayservice")


def render(
    file: Annotated[Path, typer.Argument(help="A fleet file.")],
    to: Annotated[
        str, typer.Option(help=f"What to make of it: {', '.join(FORMS)}.")
    ] = "autoscaler",
    image: Annotated[str, typer.Option(help="KubeRay: the container image of every pod.")] = "",
    entrypoint: Annotated[str, typer.Option(help="RayJob: the command that the job runs.")] = "",
    serve: Annotated[
        Path | None, typer.Option(help="RayService: a file that `serve deploy` takes.")
    ] = None,
) -> None:
    """Print what Ray's autoscaler, `ray up` or KubeRay take of a fleet file.

    `rayburst fleet render FILE --to ray-up > cluster.yaml && ray up cluster.yaml`

    `rayburst fleet render FILE --to raycluster --image REGISTRY/rayburst:0.1 | kubectl apply -f -`
    """
    from rayburst.fleet.render import ray_config, to_yaml
    from rayburst.fleet.spec import FleetSpec

    spec = FleetSpec.load(file)
    if to == "autoscaler":
        typer.echo(to_yaml(ray_config(spec)), nl=False)
        return
    if to == "ray-up":
        from rayburst.fleet.cluster import cluster_yaml
        from rayburst.fleet.specfile import read_text

        typer.echo(cluster_yaml(spec, read_text(file)), nl=False)
        return
    manifest, warnings = _kuberay(spec, to, image=image, entrypoint=entrypoint, serve=serve)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(to_yaml(manifest), nl=False)


def _kuberay(
    spec: Any, to: str, *, image: str, entrypoint: str, serve: Path | None
) -> tuple[dict[str, Any], list[str]]:
    from rayburst.fleet.kuberay import ray_cluster, ray_job, ray_service
    from rayburst.fleet.specfile import read_text

    if to not in FORMS:
        raise SpecError(f"--to {to!r} is not known; write one of {', '.join(FORMS)}")
    if not image:
        raise SpecError("pods need an image: --image REGISTRY/rayburst:0.1")
    if to == "raycluster":
        return ray_cluster(spec, image=image)
    if to == "rayjob":
        if not entrypoint:
            raise SpecError("a job needs its command: --entrypoint 'python jobs/train_lm.py'")
        return ray_job(spec, image=image, entrypoint=entrypoint)
    if serve is None:
        raise SpecError("a service needs its applications: --serve serve_apps/lm.yaml")
    return ray_service(spec, image=image, serve=read_text(serve))
