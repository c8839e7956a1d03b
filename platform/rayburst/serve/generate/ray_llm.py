"""Models that need a GPU: handed to Ray Serve LLM, which runs vLLM, behind the same interface.

    app = build(LLMArgs(model="Qwen/Qwen2.5-7B-Instruct", gpus=1, accelerator="L4"))

vLLM is not among rayburst's dependencies: the nodes that serve such a model have `ray[llm]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayburst.errors import ModelError

if TYPE_CHECKING:
    from rayburst.serve.generate.app import LLMArgs

__all__ = ["build", "llm_config"]


def llm_config(args: LLMArgs) -> dict[str, Any]:
    """What `ray.serve.llm.LLMConfig` takes for `args`; `gpus` above one split the model."""
    source: Any = args.model
    if args.model is not None and "://" in args.model:
        source = {"bucket_uri": args.model}
    engine: dict[str, Any] = {
        "tensor_parallel_size": max(1, round(args.gpus)),
        "max_num_seqs": args.max_running,
    }
    if args.context is not None:
        engine["max_model_len"] = args.context
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": args.name or args.model, "model_source": source},
        "deployment_config": {
            "autoscaling_config": {"min_replicas": args.replicas, "max_replicas": args.replicas}
        },
        "engine_kwargs": engine,
    }
    if args.accelerator is not None:
        config["accelerator_type"] = args.accelerator
    return config


def build(args: LLMArgs) -> Any:
    """The Serve application; ModelError where vLLM is missing."""
    try:
        from ray.serve.llm import LLMConfig, build_openai_app
    except ImportError as error:
        raise ModelError(
            f"model={args.model!r} is for Ray Serve LLM, which cannot be loaded here: {error}. "
            "Install 'ray[llm]' of the cluster's version on its nodes (GPUs), or serve the "
            "built-in GPT: checkpoint=s3://bucket/runs/NAME"
        ) from error
    return build_openai_app({"llm_configs": [LLMConfig(**llm_config(args))]})
