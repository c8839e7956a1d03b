"""The trained language model behind HTTP.

    serve run serve_apps.lm:app checkpoint=s3://bucket/runs/demo
    serve run serve_apps.lm:app version=gpt@production
    serve deploy serve_apps/lm.yaml

Without a checkpoint it serves RAYBURST_MODEL, else the newest run in the fleet's store.
Arguments: rayburst.serve.lm.LMArgs.
"""

from rayburst.serve.lm_app import app

__all__ = ["app"]
