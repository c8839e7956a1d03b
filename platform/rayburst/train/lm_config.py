"""What one run of the main job is: its model, data, length and place. PURE.

`TRAINING` holds settings that suit each preset of `rayburst.train.gpt.PRESETS`; a zero in
`LMConfig` takes the preset's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import get_args

from rayburst.train.gpt import PRESETS
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.precision import Precision
from rayburst.train.run_options import Mode
from rayburst.train.sources import DEFAULT_COLUMN

__all__ = ["TRAINING", "LMConfig", "Training"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Settings that suit a preset."""

    steps: int
    global_batch: int
    lr: float
    micro_batch: int = 0
    """Samples a worker takes through the model at once; 0 for all of its share."""


TRAINING: dict[str, Training] = {
    "micro": Training(steps=300, global_batch=32, lr=4e-3),
    "tiny": Training(steps=3000, global_batch=32, lr=1.5e-3),
    "small": Training(steps=20_000, global_batch=128, lr=6e-4, micro_batch=32),
    "gpt2": Training(steps=100_000, global_batch=512, lr=6e-4, micro_batch=16),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LMConfig:
    """One run. Zero in a number means: as the preset says (`TRAINING`)."""

    run: str
    storage: str
    preset: str = "micro"
    data: tuple[str, ...] = ()
    column: str = DEFAULT_COLUMN
    least: int = 1
    most: int = 1
    use_gpu: bool = False
    steps: int = 0
    global_batch: int = 0
    micro_batch: int = 0
    lr: float = 0.0
    seed: int = 0
    checkpoint_every_s: float = 0.0
    """0: at the pace that pays (`rayburst.train.pace`)."""
    mode: Mode = "fast"
    leave_margin_s: float = 8.0
    layout: str = ""
    """As `rayburst.train.parallel.Layout.parse` takes it; "auto": what `plan_layout` says of the
    machines that there are, anew for each group; "": whole copies, by `run.prepare`."""
    precision: str = ""
    """Of a layout: fp32, bf16 or fp16; "": bf16 on GPUs, else fp32."""
    recompute: bool = False
    compile_backend: str = ""
    """These two are those of `rayburst.train.parallel.ParallelOptions`."""
    device_memory_gb: float = 0.0
    """With "auto": of each device; 0 for all that it has."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r}: give one of {', '.join(get_args(Mode))}")
        self._check_layout()
        if self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"preset {self.preset!r} is not known. Known: {known}")
        if not self.run or "/" in self.run or self.run.startswith("."):
            raise ValueError(f"run {self.run!r}: give a name without '/', for example run-1")
        numbers = ("steps", "global_batch", "micro_batch", "lr", "checkpoint_every_s")
        for name in (*numbers, "device_memory_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number above 0")
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"workers {self.least}:{self.most}: give 1 <= MIN <= MAX, for example 1:4"
            )
        batch = self.global_batch or TRAINING[self.preset].global_batch
        if batch < self.most:
            raise ValueError(
                f"a global batch of {batch} leaves some of {self.most} workers without a sample: "
                f"give at least {self.most}"
            )

    def _check_layout(self) -> None:
        layout = Layout() if self.layout == "auto" else Layout.parse(self.layout)
        if (layout.world > 1 or self.layout == "auto") and self.mode == "exact":
            raise ValueError(
                f"layout {self.layout!r} with mode 'exact': exact mode holds the model whole on "
                "every worker. Give one of the two"
            )
        if self.precision not in ("", *get_args(Precision)):
            known = ", ".join(get_args(Precision))
            raise ValueError(f"precision {self.precision!r}: give one of {known}")
        named = ("precision", "recompute", "compile_backend")
        given = {name: getattr(self, name) for name in named if getattr(self, name)}
        if given and not self.layout:
            raise ValueError(
                f"{given} without a layout: these are options of one. Add layout='auto', or "
                "layout='data=1' for whole copies"
            )
        if self.device_memory_gb and self.layout != "auto":
            raise ValueError(
                f"device_memory_gb={self.device_memory_gb} with layout {self.layout!r}: memory "
                "decides in layout='auto' only. Give that, or leave the memory out"
            )

    def filled(self) -> LMConfig:
        """With the preset's settings where this one has none."""
        chosen = asdict(TRAINING[self.preset])
        missing = {name: value for name, value in chosen.items() if not getattr(self, name)}
        return replace(self, **missing) if missing else self
