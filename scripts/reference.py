"""Write docs/reference.md from the docstrings of the public surface.

    .venv/bin/python scripts/reference.py

A unit test holds the page equal to what this makes, so it is never behind the code.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "docs/reference.md"
PAGES = {
    "rayburst.sdk": ("connect", "Platform"),
    "rayburst.job": ("Job",),
    "rayburst.training_run": ("TrainingRun",),
    "rayburst.models.registry": ("ModelRegistry",),
    "rayburst.models.manifest": ("ModelVersion", "Variant", "Measured", "Escalation"),
    "rayburst.models.distill": ("distillation_loss",),
    "rayburst.models.students": ("publish_student",),
    "rayburst.serve.cascade_front": ("cascade",),
    "rayburst.serve.cascade": ("CascadeOptions",),
    "rayburst.train.run": ("start_run", "RunOptions", "Run"),
    "rayburst.train.trainer": ("ElasticTrainer", "Workers", "ElasticOptions"),
    "rayburst.cost.statement": ("Statement", "CostRow"),
    "rayburst.cost.bill": ("Bill",),
    "rayburst.cost.forecast": ("Forecast", "Option", "Span"),
    "rayburst.report.run_page": ("RunStory",),
    "rayburst.report.fleet_page": ("FleetStory",),
    "rayburst.dev.load_test": ("load_test", "LoadTest"),
}
_HEAD = """# Reference

Made from the docstrings by `scripts/reference.py`; edit those. Commands tell theirs with `--help`,
fleet files are in [fleet.md](fleet.md), every exception is in `rayburst.errors`.
"""
_FIELDS = re.compile(r"(Args|Raises|Attributes|Returns):$")


def main() -> None:
    OUT.write_text(page())


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for module, names in PAGES.items():
        loaded = importlib.import_module(module)
        for name in names:
            parts += told(f"{module}.{name}", getattr(loaded, name))
    return "\n".join(parts)


def told(path: str, thing: Any) -> list[str]:
    """A function, or a class with its public members."""
    if not inspect.isclass(thing):
        return [f"## `{path}`\n", code(path.rpartition(".")[2], thing), prose(thing)]
    parts = [f"## `{path}`\n"]
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    if fields:
        lines = [f"    {f.name}: {f.type}{default(f)}" for f in fields]
        parts.append(block([f"class {thing.__name__}:", *lines]))
    elif "__init__" in vars(thing):
        parts.append(code(thing.__name__, thing.__init__))
    parts.append(prose(thing))
    for name, member in vars(thing).items():
        bare = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not (inspect.isfunction(bare) or isinstance(bare, property)):
            continue
        if not inspect.getdoc(bare):
            continue
        parts.append(f"### `{thing.__name__}.{name}`\n")
        if inspect.isfunction(bare):
            parts.append(code(name, bare))
        parts.append(prose(bare))
    return parts


def default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    return "" if field.default_factory is dataclasses.MISSING else " = ..."


def code(name: str, thing: Any) -> str:
    """The signature as a block; one parameter a line where it is long."""
    signature = inspect.signature(thing)
    kept = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    words = [written(parameter) for parameter in kept]
    named = [p.kind is p.KEYWORD_ONLY for p in kept]
    if any(named):
        words.insert(named.index(True), "*")
    returns = signature.return_annotation
    ending = ")" if returns is signature.empty else f") -> {returns}"
    flat = f"{name}({', '.join(words)}{ending}"
    if len(flat) <= 92:
        return block([flat])
    return block([f"{name}(", *(f"    {word}," for word in words), ending])


def written(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    given = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}{kind}{given}"


def block(lines: list[str]) -> str:
    return "\n".join(["```text", *lines, "```", ""])


def prose(thing: Any) -> str:
    """A docstring as Markdown: examples as blocks, fields as lists."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    out: list[str] = []
    held: list[str] = []
    is_list = False
    for line in [*lines, ""]:
        if held and line and not line.startswith("    ") and not is_list:
            out += fenced(held)
            held = []
        if _FIELDS.match(line):
            is_list = True
            out += [f"**{line[:-1]}**", ""]
        elif is_list and line.startswith("    "):
            inner = line[4:]
            is_more = inner.startswith(" ") and out[-1].startswith(("- ", "  "))
            out.append(f"  {inner.strip()}" if is_more else f"- {inner}")
        elif line.startswith("    ") or (held and not line):
            held.append(line)
        else:
            is_list = is_list and bool(line)
            out.append(line)
    out += fenced(held)
    return "\n".join(out).strip() + "\n"


def fenced(lines: list[str]) -> list[str]:
    body = textwrap.dedent("\n".join(lines)).strip("\n")
    return ["```text", body, "```", ""] if body else []


if __name__ == "__main__":
    main()
