"""A model with its optimizer and schedulers as one thing: it learns, is saved, and comes back.

State is kept by parameter name, so it can be loaded at any world size and, for models that
`fully_shard` spread over the ranks, in any layout. Knows no step numbers, no data and no Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rayburst.errors import TrainError
from rayburst.train.engines import Engine, engine_of
from rayburst.train.run_options import RunOptions
from rayburst.train.spread import Spread

__all__ = ["Elastic", "Prepared"]


class Elastic(nn.Module):
    """The user's model; in a training step its forward pass goes through the engine's module.

    Other attributes are the model's own, so `model.config` still works.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.go_through(module)

    def go_through(self, runs: Callable[..., Any]) -> None:
        """Use `runs`, which works on the same parameters, for the forward pass of a step."""
        self.__dict__["_runs"] = runs  # past nn.Module, which would register it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        learns = self.training and torch.is_grad_enabled()
        return (self.__dict__["_runs"] if learns else self.module)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class Prepared:
    """What the training function gave to `prepare`. `extras` have a state_dict of their own.

    `spread`: for a model that is cut anew for each group.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedulers: tuple[LRScheduler, ...],
        *,
        clip_norm: float | None,
        extras: dict[str, Any],
        spread: Spread | None = None,
    ) -> None:
        for scheduler in schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                raise TrainError(
                    "ReduceLROnPlateau wants a metric at each step: give it as an extra, "
                    "run.prepare(model, optimizer, plateau=scheduler), and step it in the loop"
                )
        self.model, self.wrapped = model, Elastic(model)
        self._optimizer, self._schedulers = optimizer, schedulers
        self._clip_norm, self._extras, self.spread = clip_norm, extras, spread

    def engine(self, options: RunOptions, *, rank: int, world: int) -> Engine:
        """How one step's gradient comes about in the group as it is."""
        return engine_of(self.model, options, rank=rank, world=world)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def gradient_norm(self) -> float:
        """The norm of the whole gradient, the same on every rank."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def learn(self, norm: float) -> None:
        """Step with the gradients that are there, whose norm is `norm`."""
        if self._clip_norm is not None:
            parameters = list(self.model.parameters())
            nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, torch.tensor(norm))
        self._optimizer.step()

    def next_step(self) -> None:
        """Clear the gradients and move the schedules on."""
        self._optimizer.zero_grad(set_to_none=True)
        for scheduler in self._schedulers:
            scheduler.step()

    def forget_step(self) -> None:
        """Drop what a step that was not done has left: its gradients, and its engine's module."""
        self._optimizer.zero_grad(set_to_none=True)
        self.wrapped.go_through(self.model)

    def cut(self) -> None:
        """For the group that is there now, where the model is spread over the ranks."""
        if self.spread is not None:
            self.model = self.wrapped.module = self.spread.cut()
            self.wrapped.go_through(self.model)

    def stand_in(self) -> nn.Module:
        """What gives outputs of the right shapes without any other rank."""
        return self.model if self.spread is None else self.spread.stand_in()

    def state(self) -> dict[str, Any]:
        """Everything that belongs to the run, as `load` takes it."""
        model, optimizer = get_state_dict(self.model, self._optimizer)
        return {"model": model, "optimizer": optimizer, "extras": self.kept()}

    def kept(self) -> dict[str, Any]:
        """The state of schedulers and extras."""
        keep = {f"scheduler{i}": s.state_dict() for i, s in enumerate(self._schedulers)}
        return keep | {name: extra.state_dict() for name, extra in self._extras.items()}

    def take_kept(self, kept: dict[str, Any]) -> None:
        """Take up what `kept` gave."""
        for i, scheduler in enumerate(self._schedulers):
            scheduler.load_state_dict(kept[f"scheduler{i}"])
        for name, extra in self._extras.items():
            extra.load_state_dict(kept[name])

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        set_state_dict(
            self.model,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        if self.spread is not None:
            self.spread.loaded()
        self.take_kept(state["extras"])

    @torch.no_grad()
    def digest(self) -> str:
        """SHA-256 of the weights' bytes, by name. For sharded models every rank calls it."""
        total = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
            raw = whole.detach().cpu().contiguous().flatten().view(torch.uint8)
            total.update(name.encode())
            total.update(raw.numpy().tobytes())
        return total.hexdigest()
