"""A student answers where it is sure, its teacher where it is not: the next byte of a text.

    serve run serve_apps.cascade:app version=gpt@2 agreement=0.99
    curl -id '"def ma"' http://127.0.0.1:8000/predict

Both are variants of one published version (docs/models.md); the headers say who answered.
Arguments: rayburst.serve.lm_cascade.CascadeArgs. (No postponed annotations here: Serve reads the
type of `args` as it stands and validates with it.)
"""

from ray.serve import Application

from rayburst.serve.lm_cascade import CascadeArgs, build


def app(args: CascadeArgs) -> Application:
    """The application that Serve deploys."""
    return build(args)
