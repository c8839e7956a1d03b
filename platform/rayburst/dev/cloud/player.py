"""Carries out the steps of a script on a cloud in a box, each when its time has come."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayburst.dev.cloud.script import Step

if TYPE_CHECKING:
    from rayburst.dev.cloud.cloud import Cloud

_LOG = logging.getLogger("rayburst.cloud")


class Player:
    """One script that is being played. `done` tells whether all its steps have happened."""

    def __init__(
        self, cloud: Cloud, steps: Sequence[Step], *, speed: float, started_at: float
    ) -> None:
        self._cloud = cloud
        self._steps = sorted(steps, key=lambda step: step.at_s)
        self._speed = speed
        self._started_at = started_at
        self._next = 0

    @property
    def done(self) -> bool:
        return self._next == len(self._steps)

    def at_s(self, now: float) -> float:
        """The script's own time."""
        return (now - self._started_at) * self._speed

    def step(self, now: float) -> None:
        """Do all that is due. One call at a time."""
        while not self.done and self._steps[self._next].at_s <= self.at_s(now):
            step = self._steps[self._next]
            self._next += 1
            _LOG.info("script at %.0f s: %s %s %s", step.at_s, step.deed, step.amount, step.zone)
            self._do(step)

    def _do(self, step: Step) -> None:
        cloud, market = self._cloud, self._cloud.ec2.market
        count = int(step.amount) if isinstance(step.amount, float) else 0
        if step.deed == "capacity":
            market.capacity[step.kind, step.zone, step.market] = count
            if step.market == "spot":
                cloud.trim(step.notice_s)
        elif step.deed == "price":
            market.prices[step.kind, step.zone] = float(step.amount)
        elif step.deed == "quota":
            market.quota[step.market] = count
        elif step.deed == "fail":
            cloud.ec2.fail(str(step.amount), code=step.code, status=step.status, times=step.times)
        elif step.deed == "boots_fail":
            cloud.boots_fail += count
        elif step.deed == "interrupt":
            for instance in self._some(step, count):
                cloud.interrupt(instance, notice_s=step.notice_s)
        elif step.deed == "rebalance":
            for instance in self._some(step, count):
                cloud.recommend_rebalance(instance)
        elif step.deed == "cut_network":
            for instance in self._some(step, count):
                cloud.box.cut_network(instance)

    def _some(self, step: Step, count: int) -> list[str]:
        """The oldest spot instances of a zone (of all when it names none) without a notice."""
        held = self._cloud.ec2.held()
        mine = [
            one.id
            for one in held
            if one.place[2] == "spot" and not one.leaving and step.zone in ("", one.place[1])
        ]
        return mine[:count]
