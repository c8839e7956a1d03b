"""What the bits of a result depend on besides the program: processor, threads, build.

The same operations give other last bits on another processor generation, with another number of
threads, or from another build of torch. Exact mode records this with each checkpoint and refuses to
go on elsewhere. Also: the device of this process, and the switches that make it repeat itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rayburst.errors import ExactModeError
from rayburst.train.roll import from_everyone
from rayburst.train.surroundings import is_ray_worker

__all__ = ["be_deterministic", "check_everyone", "check_same", "hardware_class", "this_device"]


def hardware_class(device: torch.device) -> dict[str, Any]:
    """The class of this worker, as JSON."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cpu": _cpu_model(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def check_same(mine: Mapping[str, Any], other: Mapping[str, Any], *, whose: str) -> None:
    """ExactModeError when `other` (that of `whose`) would compute other bits than this worker."""
    differing = sorted(k for k in {*mine, *other} if mine.get(k) != other.get(k))
    if differing:
        words = "; ".join(f"{k}: {other.get(k)!r} there, {mine.get(k)!r} here" for k in differing)
        raise ExactModeError(
            f"{whose} computes on another class of machine ({words}), and exact mode promises the "
            "same bits. Run on machines of that class, or give RunOptions(mode='fast')"
        )


def _cpu_model() -> str:
    """The processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return "unknown"


def check_everyone(mine: Mapping[str, Any]) -> None:
    """Collective: ExactModeError when the ranks are not of one hardware class."""
    for rank, other in enumerate(from_everyone(mine)):
        check_same(mine, other, whose=f"rank {rank}")


def this_device() -> torch.device:
    """This process's GPU, as Ray Train or torchrun deal them out, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if is_ray_worker():
        import ray.train.torch

        found: torch.device = ray.train.torch.get_device()
        return found
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def be_deterministic() -> None:
    """Operations that have no repeatable form raise; the others take it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # as use_deterministic_algorithms(True), which imports the compiler: seconds at each start
    torch.set_deterministic_debug_mode("error")
    # filling fresh memory would only cost time; torch's type hints do not know the switch
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
