"""What the application takes, and how Serve comes to check it."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from pydantic import ValidationError

if TYPE_CHECKING:
    from rayburst.serve.lm import LMArgs

# Ray Serve 2.60 declares its own models in pydantic's old way, seen when it is first imported:
# hence the imports within the tests.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
)
APPS = Path(__file__).resolve().parents[3] / "serve_apps"


@pytest.fixture
def args_type() -> type[LMArgs]:
    from rayburst.serve.lm import LMArgs

    return LMArgs


def test_words_of_the_command_line_become_numbers(args_type: type[LMArgs]) -> None:
    args = args_type.model_validate(
        {"checkpoint": "s3://b/runs/x", "max_batch": "8", "cpus": "0.5"}
    )
    assert (args.max_batch, args.cpus, args.replicas) == (8, 0.5, 1)


@pytest.mark.parametrize("wrong", [{"max_bach": 3}, {"max_batch": 0}, {"batch_wait_ms": -1}])
def test_wrong_arguments_are_refused_by_name(
    args_type: type[LMArgs], wrong: dict[str, float]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        args_type.model_validate(wrong)


def test_serve_reads_the_type_of_the_builder_s_argument(args_type: type[LMArgs]) -> None:
    """Serve validates only when the annotation is the class itself, not its name as text."""
    spec = importlib.util.spec_from_file_location("lm_app", APPS / "lm.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (parameter,) = inspect.signature(module.app).parameters.values()
    assert parameter.annotation is args_type


def test_the_yaml_deploys_on_loopback_with_arguments_that_fit(args_type: type[LMArgs]) -> None:
    config = yaml.safe_load((APPS / "lm.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["proxy_location"] == "HeadOnly"
    assert config["logging_config"] == {"enable_access_log": False}
    (app,) = config["applications"]
    assert app["import_path"] == "serve_apps.lm:app"
    args_type.model_validate(app["args"])


@pytest.mark.parametrize(
    "given", [{"checkpoint": "s3://b/runs/x"}, {"version": "gpt@3", "variant": "int8"}]
)
def test_degradation_needs_more_than_one_variant(
    args_type: type[LMArgs], given: dict[str, str]
) -> None:
    with pytest.raises(ValidationError, match="without variant, or overload='shed'"):
        args_type.model_validate({**given, "overload": "degrade"})
    assert args_type.model_validate({**given, "overload": "shed"}).overload == "shed"
    assert args_type.model_validate({"version": "gpt@3", "overload": "degrade"}).asked


def test_a_floor_reaches_serve_with_both_applications(args_type: type[LMArgs]) -> None:
    from rayburst.serve.floor import floor_of
    from rayburst.serve.generate.app import LLMArgs
    from rayburst.serve.generate.app import build as build_llm
    from rayburst.serve.lm import build

    given = {"checkpoint": "s3://b/runs/x", "replicas": 3, "cpus": 0.5}
    for asked in (2, 0):
        words = {**given, "floor": asked}
        for app in (build(args_type(**words)), build_llm(LLMArgs(**words))):
            deployment = app._bound_deployment
            options = deployment.ray_actor_options
            assert floor_of(options.get("label_selector")) == asked
            assert (deployment.num_replicas, options["num_cpus"]) == (3, 0.5)
    with pytest.raises(ValidationError, match="give floor at most 3, or replicas=4"):
        args_type(**given, floor=4)
