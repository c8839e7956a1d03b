"""The fenced blocks of README and docs: which are run, by what, and why some are not.

Every command of a `bash` block and every `python` block either is run by a test of
`tests/integration/docs`, or by its page's own test (OWN), or stands in NOT_RUN with the reason. All
of them, run or not, are parsed by the command lines and bound to the signatures that they use in
`tests/unit/test_readme.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# pages that a test of their own runs from top to bottom
OWN = {
    "checkpoints.md": "tests/unit/checkpoint/test_checkpoints_page.py",
    "cloud-in-a-box.md": "tests/integration/fleet/test_cloud_command.py",
    "models.md": "tests/unit/models/test_models_page.py",
    "onprem.md": "tests/integration/fleet/test_ray_up.py",
    "pools.md": "tests/integration/fleet/test_pool_contract.py",
}

# pages whose blocks are run against a fleet that is up; those of all others need none
FLEET_PAGES = ("README.md", "cost.md", "operations.md", "planner.md", "sdk.md", "tutorial.md")


@dataclass(frozen=True)
class NotRun:
    """What is not run, as a pattern of the command or block, and who shows it instead."""

    page: str
    pattern: str
    why: str


_SERVED = "served for real by tests/integration/serve and notebooks/3-serve-and-load-test.ipynb"
_RANKS = "several ranks: the same calls are in tests/integration/parallel/test_layouts.py"
NOT_RUN = (
    NotRun("README.md", r"^make ", "CI is `make check` and `make test`; the demo is tests/e2e"),
    NotRun("README.md", r"^rayburst (up|down)$", "the fixture does it, tests/e2e does as well"),
    NotRun("README.md", r"^rayburst top$", "never ends; drawn in tests/integration/cost"),
    NotRun("README.md", r"^eval ", "what `rayburst env` prints, which is run, is for a shell"),
    NotRun("README.md", r"^rayburst interrupt", "a name that a fleet gave; tests/e2e interrupts"),
    NotRun("README.md", r"^rayburst models", "on docs/models.md, which is run"),
    NotRun("README.md", r"^serve deploy", _SERVED),
    NotRun("README.md", r"p\.deploy\(", _SERVED),
    NotRun("README.md", r"^ray up|--to ray-up", "machines: tests/integration/fleet/test_ray_up.py"),
    NotRun("README.md", r"^export |my-bucket", "a cluster elsewhere; docs/sdk.md's one is run"),
    NotRun("cost.md", r"^scripts/focus-validator", "run by tests/integration/cost/test_books.py"),
    NotRun("cost.md", r"jobs/probe\.py", "a GPU; on a CPU in tests/integration/cost"),
    NotRun("fleet.md", r"^kubectl", "a Kubernetes; the manifest is held to KubeRay's schemas"),
    NotRun("fleet.md", r"^rayburst interrupt", "a name that a fleet gave; tests/e2e interrupts"),
    NotRun("generation.md", r"^(serve run|curl) ", _SERVED),
    NotRun("kuberay.md", r"^(docker|kubectl|export) ", "a registry and a Kubernetes"),
    NotRun("kuberay.md", r"^ray job submit", "the same command is run against a fleet"),
    NotRun("layouts.md", r"init_process_group|Layout\(data=2, pipeline=2\)", _RANKS),
    NotRun("operations.md", r"^(rayburst down|tar )", "ends the fleet; tests/e2e brings one back"),
    NotRun("operations.md", r"^rayburst top$", "never ends; drawn in tests/integration/cost"),
    NotRun("sdk.md", r"p\.interrupt\(", "two spot hosts: notebooks/2-train-on-spot.ipynb and e2e"),
    NotRun("sdk.md", r"p\.deploy\(", _SERVED),
    NotRun("sdk.md", r"p\.models", "on docs/models.md, which is run"),
    NotRun("search.md", r".", "a dozen trials: tests/integration/train/test_search.py"),
    NotRun("serving.md", r"^(serve run|curl|export|ray start) ", _SERVED),
    NotRun("stores.md", r"^export ", "a server elsewhere; its Python is run on a folder"),
    NotRun("training.md", r".", "parts of the loop that test_training_page.py runs, on Ray"),
    NotRun("tutorial.md", r"^(make|source) ", "this machine has it"),
    NotRun("tutorial.md", r"^rayburst (up|down)$", "the fixture does it, tests/e2e does as well"),
    NotRun("tutorial.md", r"^rayburst top$", "never ends; drawn in tests/integration/cost"),
    NotRun("tutorial.md", r"^eval ", "what `rayburst env` prints, which is run, is for a shell"),
    NotRun("tutorial.md", r"^rayburst interrupt", "a name that a fleet gave; tests/e2e interrupts"),
    NotRun("tutorial.md", r"^rayburst models", "on docs/models.md, which is run"),
    NotRun("tutorial.md", r"^(serve deploy|curl) ", _SERVED),
    NotRun("tuning.md", r".", "a module of yours: tests/integration/train/test_finetune_job.py"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages, page by page."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], match[2]))
    return [block for block in found if block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """Every command of a shell block as words; what `$(...)` runs is a command of its own."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for inner in re.findall(r"\$\(([^)]*)\)", line):
            yield shlex.split(inner)
        outer = re.sub(r"\"?\$\([^)]*\)\"?", "SUBSTITUTED", line)
        words: list[str] = []
        for word in shlex.split(outer, comments=True):
            if word in ("&&", "|", ";"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def not_run(page: str, text: str) -> NotRun | None:
    """Why a command or block of a page is not run; None if it is."""
    for rule in NOT_RUN:
        if rule.page == page and re.search(rule.pattern, text):
            return rule
    return None


def pages_to_run() -> dict[str, list[Block]]:
    """The blocks of every page that has no test of its own."""
    found: dict[str, list[Block]] = {}
    for block in blocks("bash", "python"):
        if block.page.name not in OWN:
            found.setdefault(block.page.name, []).append(block)
    return found
