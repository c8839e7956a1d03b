"""What `p.deploy("gpt@3")` deploys, and serve_apps/lm.py: the language model as an application.

Serve reads the type of `args` as it stands and validates with it, so no annotation is postponed
here. Arguments: rayburst.serve.lm.LMArgs.
"""

from ray.serve import Application

from rayburst.serve.lm import LMArgs, build

__all__ = ["app"]


def app(args: LMArgs) -> Application:
    """The application that Serve deploys."""
    return build(args)
