"""Text generation with an OpenAI-compatible API: /v1/completions, streaming too.

    serve run serve_apps.llm:app checkpoint=s3://bucket/runs/demo
    serve run serve_apps.llm:app version=gpt@production
    serve run serve_apps.llm:app model=Qwen/Qwen2.5-7B-Instruct gpus=1 accelerator=L4
    serve deploy serve_apps/llm.yaml

A checkpoint or a version is the built-in GPT, on any node; a model goes to Ray Serve LLM on GPUs.
Arguments: rayburst.serve.generate.app.LLMArgs. (No postponed annotations here: Serve reads the
type of `args` as it stands and validates with it.)
"""

from ray.serve import Application

from rayburst.serve.generate.app import LLMArgs, build


def app(args: LLMArgs) -> Application:
    """The application that Serve deploys."""
    return build(args)
