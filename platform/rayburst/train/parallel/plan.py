"""What a layout must know of a model: its blocks, how its matrices split, and its loss.

    GPT_PLAN                                  # for rayburst.train.gpt.GPT
    Plan(loss=my_loss)                        # any module: data and shard, the model as one unit
    Plan(loss=my_loss, blocks="layers", embed="embed", unembed="unembed",
         ends={"embed": ("tokens",), "unembed": ("norm", "out")},
         tensor={"layers.*.up": "column", "layers.*.down": "row"})

With `embed` and `unembed` the model's forward pass is unembed(blocks(embed(inputs))), which a
pipeline cuts between blocks. The split of matrices is Megatron-LM's (Shoeybi et al. 2019): a
`column` layer's outputs are split, the `row` layer after it takes them split and sums, so that a
pair costs one all-reduce in each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import Tensor, nn

from rayburst.errors import LayoutError
from rayburst.train.gpt import GPT

__all__ = ["GPT_PLAN", "Plan", "Split", "plan_for"]

Split = Literal["column", "row", "vocabulary", "logits"]
"""column and row: linear layers. vocabulary: an embedding by its rows. logits: the output layer
by its rows, gathered whole for the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """See the module's head.

    loss: mean loss of (output, targets) over the samples given.
    blocks: name of the list of equal blocks; each is a unit of sharding, recomputing and compiling.
    embed, unembed: names of methods: inputs to the first block's input, last block's output to
      the model's output.
    ends: the submodules that each of the two methods needs.
    tensor: patterns of submodule names to how their matrices split; `*` stands for any text.
    tied: parameter names that are the same tensor as another one, by that other's name.
    tensor_units: what a split must not cut through, counted on the model: its attention heads.
    """

    loss: Callable[[Any, Tensor], Tensor]
    blocks: str | None = None
    embed: str | None = None
    unembed: str | None = None
    ends: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensor: Mapping[str, Split] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    tensor_units: Callable[[nn.Module], int] | None = None

    def __post_init__(self) -> None:
        for pattern, split in self.tensor.items():
            if split not in get_args(Split):
                raise LayoutError(
                    f"tensor[{pattern!r}]={split!r}: give one of {', '.join(get_args(Split))}"
                )
        parts = (self.blocks, self.embed, self.unembed)
        if (self.embed or self.unembed) and None in parts:
            raise LayoutError("a plan has embed, unembed and blocks, or none of embed and unembed")

    @property
    def is_cut(self) -> bool:
        """Whether the forward pass is known piece by piece, so that a pipeline can cut it."""
        return self.embed is not None

    def split_of(self, name: str) -> Split | None:
        """How the submodule `name` splits; None when it is held whole."""
        matches = (s for pattern, s in self.tensor.items() if fnmatchcase(name, pattern))
        return next(matches, None)

    def canonical(self, name: str) -> str:
        """The one name of a parameter that may have two."""
        return self.tied.get(name, name)


GPT_PLAN = Plan(
    loss=GPT.loss,
    blocks="blocks",
    embed="embed",
    unembed="unembed",
    ends={"embed": ("token_embedding", "position_embedding"), "unembed": ("norm", "head")},
    tensor={
        "token_embedding": "vocabulary",
        "blocks.*.attention.heads": "column",
        "blocks.*.attention.proj": "row",
        "blocks.*.mlp.0": "column",
        "blocks.*.mlp.2": "row",
        "head": "logits",
    },
    tied={"head.weight": "token_embedding.weight"},
    tensor_units=lambda model: int(model.config.n_head),  # type: ignore[union-attr, arg-type]
)


def plan_for(model: nn.Module) -> Plan:
    """The plan of a model that rayburst knows. LayoutError for any other."""
    if isinstance(model, GPT):
        return GPT_PLAN
    raise LayoutError(
        f"rayburst has no plan for {type(model).__name__}: give one, for example "
        "Plan(loss=torch.nn.functional.cross_entropy)"
    )
