"""Reading a fleet file: YAML to models, every problem with its place."""
from pathlib import Path
from typing import Any, TypeVar
import yaml
from pydantic import BaseModel, ValidationError, ValidationInfo
from rayburst.errors import SpecError
T = TypeVar("T", bound=BaseModel)
def from_file(info: ValidationInfo) -> bool:
    return bool(info.context)
def scalar(v: object) -> str:
    return str(v)
def read_text(path: Path) -> str:
    return path.read_text()
def validate(model: type[T], text: str, source: str) -> T:
    try:
        return model.model_validate(yaml.safe_load(text), by_alias=True, by_name=False, context={"file": True})
    except ValidationError as e:
        raise SpecError(f"{source}: {e}") from None
