"""What a served model is told: its promise, its size, who may ask how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ModelOptions", "Replicas", "TenantLimit"]


class TenantLimit(BaseModel):
    """What one tenant has of a crowded replica, and of all replicas together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, gt=0, description="share of a crowded replica")
    rate: float | None = Field(
        default=None, gt=0, description="requests a second over all replicas; none: no limit"
    )
    burst: float | None = Field(
        default=None, ge=1, description="requests at once after a rest; none: a second's worth"
    )

    @model_validator(mode="after")
    def _burst_needs_a_rate(self) -> TenantLimit:
        if self.burst is not None and self.rate is None:
            raise ValueError(f"burst {self.burst:g} limits nothing without a rate: add rate=...")
        return self


class Replicas(BaseModel):
    """How many replicas, and what each asks Ray for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: int = Field(default=1, ge=0, description="0: none while nobody asks")
    most: int | None = Field(default=None, ge=1, description="none: always `least`")
    floor: int = Field(
        default=0, ge=0, description="so many never on spot; what is above it wants spot"
    )
    up_after_s: float = Field(default=5.0, ge=0, description="more, once they were wanted so long")
    down_after_s: float = Field(default=120.0, ge=0, description="fewer, or none, likewise")
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    resources: Mapping[str, float] = Field(default_factory=dict, description="custom resources")

    @model_validator(mode="after")
    def _floor_is_within(self) -> Replicas:
        largest = self.least if self.most is None else self.most
        if self.floor > largest:
            raise ValueError(
                f"floor {self.floor} is more than the deployment ever has: give at most {largest}, "
                "or a larger `most`"
            )
        return self


class ModelOptions(BaseModel):
    """Options of `@rb.serve.model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slo_ms: float = Field(default=100.0, gt=0, description="a request is answered within")
    max_batch: int = Field(default=32, ge=1, le=4096, description="requests computed together")
    slots: int = Field(default=1, ge=1, le=64, description="batches under way at once")
    max_waiting: int | None = Field(default=None, ge=1, description="none: 32 batches' worth")
    max_body_bytes: int = Field(default=1 << 20, ge=64)
    agreement: float = Field(
        default=0.98, ge=0, le=1, description="no variant that agrees less is ever used"
    )
    back_after_s: float = Field(
        default=5.0, gt=0, description="a better variant, once the load allowed it so long"
    )
    eager: bool = Field(default=True, description="all variants loaded before the first request")
    lane: Literal["auto", "stock"] = Field(default="auto", description="see docs/serving.md")
    access_log: bool = Field(default=False, description="a line for each request")
    idempotent: bool = Field(
        default=False, description="a request may be computed twice: asked again if a replica dies"
    )
    keys: Literal["auto", "required", "off"] = Field(
        default="auto", description="auto: required unless Serve listens on loopback alone"
    )
    tenants: Mapping[str, TenantLimit] = Field(
        default_factory=dict, description="limits by name; `*` for each that is not named"
    )
    replicas: Replicas = Field(default_factory=Replicas)

    @property
    def slo_s(self) -> float:
        """The promise in seconds."""
        return self.slo_ms / 1000

    @property
    def queue_limit(self) -> int:
        """Requests that may be held."""
        return self.max_waiting or 32 * self.max_batch
