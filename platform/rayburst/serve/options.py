"""What a served model is told: its promise, its size, who may ask how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ModelOptions", "Replicas", "TenantLimit"]


class TenantLimit(BaseModel):
    """What one tenant has of a replica when others ask too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, gt=0, description="share of a crowded replica")


class Replicas(BaseModel):
    """How many replicas, and what each asks Ray for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: int = Field(default=1, ge=0, description="0: none while nobody asks")
    most: int | None = Field(default=None, ge=1, description="none: always `least`")
    up_after_s: float = Field(default=5.0, ge=0, description="more, once they were wanted so long")
    down_after_s: float = Field(default=120.0, ge=0, description="fewer, or none, likewise")
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    resources: Mapping[str, float] = Field(default_factory=dict, description="custom resources")


class ModelOptions(BaseModel):
    """Options of `@rb.serve.model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slo_ms: float = Field(default=100.0, gt=0, description="a request is answered within")
    max_batch: int = Field(default=32, ge=1, le=4096, description="requests computed together")
    slots: int = Field(default=1, ge=1, le=64, description="batches under way at once")
    max_waiting: int | None = Field(default=None, ge=1, description="none: 32 batches' worth")
    max_body_bytes: int = Field(default=1 << 20, ge=64)
    lane: Literal["auto", "stock"] = Field(default="auto", description="see docs/serving.md")
    access_log: bool = Field(default=False, description="a line for each request")
    keys: Literal["required", "off"] = Field(default="off", description="see rayburst keys")
    tenants: Mapping[str, TenantLimit] = Field(default_factory=dict)
    replicas: Replicas = Field(default_factory=Replicas)

    @property
    def slo_s(self) -> float:
        """The promise in seconds."""
        return self.slo_ms / 1000

    @property
    def queue_limit(self) -> int:
        """Requests that may be held."""
        return self.max_waiting or 32 * self.max_batch
