"""The trained language model behind HTTP.

    serve run serve_apps.lm:app checkpoint=s3://bucket/runs/demo
    serve deploy serve_apps/lm.yaml

Without a checkpoint it serves RAYBURST_MODEL, else the newest run in the fleet's store.
Arguments: rayburst.serve.lm.LMArgs. (No postponed annotations here: Serve reads the type of
`args` as it stands and validates with it.)
"""

from ray.serve import Application

from rayburst.serve.lm import LMArgs, build


def app(args: LMArgs) -> Application:
    """The application that Serve deploys."""
    return build(args)
