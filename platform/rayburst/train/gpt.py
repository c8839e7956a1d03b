"""A small byte-level GPT: what `jobs/train_lm.py` trains and `serve_apps/lm.py` hosts.

    config = PRESETS["micro"]
    model = GPT(config)
    logits, loss = model(idx, targets)  # LongTensor[B, T] each, T <= config.block_size
    text = model.generate(idx, max_new_tokens=64, temperature=0.8, top_k=40)

Pre-norm blocks, GELU, tied embeddings, causal attention through torch's fused kernel. Bytes are the
vocabulary, so there is no tokenizer to carry along. The module knows no Ray, no data and no device.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT", "PRESETS", "GPTConfig"]

_INIT_STD = 0.02  # GPT-2's initialisation


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Shape of a model. `dropout` is a probability; the other fields are counts."""

    vocab_size: int = 256
    block_size: int = 128
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of 1 or more")
        if self.n_embd % self.n_head:
            fits = self.n_head * (self.n_embd // self.n_head + 1)
            raise ValueError(
                f"n_embd={self.n_embd} does not divide into n_head={self.n_head} heads: "
                f"give a multiple, for example n_embd={fits}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: give a probability from 0 up to below 1")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dict; `GPTConfig(**d)` reads it back."""
        return asdict(self)


PRESETS: dict[str, GPTConfig] = {
    # Learns from code in about a minute on one CPU core: 2.9 bits a byte after 300 steps of 32.
    "micro": GPTConfig(block_size=64, n_layer=2, n_head=4, n_embd=128),
    # Minutes on a few CPU cores.
    "tiny": GPTConfig(block_size=256, n_layer=4, n_head=4, n_embd=256),
    # One small GPU.
    "small": GPTConfig(block_size=512, n_layer=8, n_head=8, n_embd=512),
    # GPT-2's smallest shape: 86 M parameters over bytes (124 M with its own 50,257 tokens).
    "gpt2": GPTConfig(block_size=1024, n_layer=12, n_head=12, n_embd=768),
}


class _Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_size = config.n_embd // config.n_head
        self.dropout = config.dropout
        # Rows by head: a head's query, key and value lie together, so that a run of rows is a run
        # of whole heads. Tensor parallelism gives each rank such a run.
        self.heads = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.heads(x).view(b, t, -1, 3, self.head_size).permute(3, 0, 2, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, t, -1))
        return F.dropout(out, self.dropout, self.training)


class _Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.n_embd)
        self.attention = _Attention(config)
        self.norm_mlp = nn.LayerNorm(config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class GPT(nn.Module):
    """A decoder-only transformer over bytes; `config` gives its shape."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        self._initialise()

    @classmethod
    def shaped(cls, preset: str = "micro", **shape: Any) -> GPT:
        """A preset's model, with other values where `shape` gives fields of its config."""
        return cls(replace(PRESETS[preset], **shape))

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                continue
            # Layers that add to the residual stream start smaller, so that its variance stays put.
            residual = name.endswith(("proj.weight", "mlp.2.weight"))
            std = _INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else _INIT_STD
            nn.init.normal_(parameter, std=std)

    @property
    def parameter_count(self) -> int:
        """Number of parameters; the tied output layer counts once."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, T, V] for token ids `idx` [B, T]; with `targets` [B, T] also the loss.

        The loss is the mean cross-entropy in nats per token.

        ValueError when T is larger than the block size.
        """
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x)
        logits = self.unembed(x)
        return logits, None if targets is None else self.loss(logits, targets)

    def embed(self, idx: Tensor) -> Tensor:
        """What the first block reads: [B, T, C] for token ids [B, T]."""
        t = idx.shape[1]
        if t > self.config.block_size:
            raise ValueError(
                f"the text has {t} tokens, the model reads {self.config.block_size}: "
                f"pass idx[:, -{self.config.block_size}:]"
            )
        positions = torch.arange(t, device=idx.device)
        x = self.token_embedding(idx) + self.position_embedding(positions)
        return F.dropout(x, self.config.dropout, self.training)

    def unembed(self, x: Tensor) -> Tensor:
        """Logits [B, T, V] for what the last block gave, [B, T, C]."""
        logits: Tensor = self.head(self.norm(x))
        return logits

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of `targets` [B, T] in nats per token, in float32."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`idx` [B, T] continued by `max_new_tokens` sampled tokens: LongTensor [B, T + new].

        `temperature` 0 takes the likeliest token. `top_k` samples among the k likeliest only. The
        model reads at most its last `block_size` tokens. A `generator` makes the result repeatable.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            idx = torch.cat((idx, _sample(logits[:, -1], temperature, top_k, generator)), dim=1)
        return idx


def _sample(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """One token id per row of `logits` [B, V]: LongTensor [B, 1]."""
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: give 0 (likeliest token) or more")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: give 1 or more, or leave it out")
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return torch.multinomial(F.softmax(logits, dim=-1), 1, generator=generator)
