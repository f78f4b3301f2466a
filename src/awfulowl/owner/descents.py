"""The optimizers that there are: stochastic gradient descent and Adam, as in `torch.optim`."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import nn

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.errors import InputError
from awfulowl.owner.checkpoint import STEPS
from awfulowl.owner.optimizer import Course, FleetOptimizer
from awfulowl.owner.training import TrainedDeployment
from awfulowl.verification.rounding import UNIT_ROUNDOFF


@contextmanager
def decayed(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let weights of groups with `decoupled_weight_decay` decay first, as in torch.optim.AdamW, and not within."""
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if group["decoupled_weight_decay"] and group["weight_decay"]:
            for one in group["params"]:
                if one.grad is not None:
                    one.mul_(1 - group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0.0
    try:
        yield
    finally:
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay


class FleetSGD(FleetOptimizer, torch.optim.SGD):
    """`torch.optim.SGD` whose scattered parameters move at the devices that hold them; every step is checked."""

    options: ClassVar[frozenset[str]] = frozenset(
        {"momentum", "dampening", "weight_decay", "nesterov", "maximize", "decoupled_weight_decay"}
    )
    kept: ClassVar[Mapping[str, str]] = MappingProxyType({"momentum": "momentum_buffer"})

    def _rule(self, group: Mapping[str, Any], number: int) -> Descent:
        if not 0 <= group["momentum"] < 1:
            raise InputError(f"momentum={group['momentum']}: what devices do can be checked below 1 only")
        history = self._training.histories[number]
        if history.adaptive:
            raise InputError("Adam has moved this model, and its mean squares would be lost: go on with it")
        return Descent.sgd(
            float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            decoupled=group["decoupled_weight_decay"],
            scale=-self._scale if group["maximize"] else self._scale,
            first=not history.has_momentum,
        )

    def _step_here(self) -> None:
        with decayed(self):
            torch.optim.SGD.step(self)


class FleetAdam(FleetOptimizer, torch.optim.Adam):
    """`torch.optim.Adam` whose scattered parameters move at the devices that hold them.

    Devices state their weights after each step, products are held to those, and a share of the blocks is rebuilt at
    snapshots (`auditing`): what that proves is less than for `FleetSGD`, and costs the traffic of all weights a step.
    """

    options: ClassVar[frozenset[str]] = frozenset(
        {"betas", "eps", "weight_decay", "maximize", "decoupled_weight_decay"}
    )
    kept: ClassVar[Mapping[str, str]] = MappingProxyType({"momentum": "exp_avg", "square": "exp_avg_sq", STEPS: "step"})

    def __init__(
        self,
        course: Course,
        params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]] | None,
        *,
        lr: float,
        **options: Any,
    ) -> None:
        super().__init__(course, params, lr=lr, **options)
        self._training.adapt(self._groups())

    def _rule(self, group: Mapping[str, Any], number: int) -> Adaptation:
        self._training.adapt([number])  # a group may have been added
        if not group["eps"] > 0:
            raise InputError(f"eps={group['eps']}: above 0, or weights without gradients are divided by nothing")
        rule = Adaptation.adam(
            float(group["lr"]),
            self._training.histories[number].adapted + 1,
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            epsilon=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            scale=-self._scale if group["maximize"] else self._scale,
        )
        _check_range(self._training, number, rule)
        return rule

    def _step_here(self) -> None:
        torch.optim.Adam.step(self)


def _check_range(training: TrainedDeployment, number: int, rule: Adaptation) -> None:
    """Refuse gradients whose squares float32 may not hold: honest devices could not be told from liars.

    Raises:
        InputError: they are so large.
    """
    seen = [job.seen[0] for job in training.histories[number].pending if job.seen is not None]
    longest = math.fsum(math.sqrt(step.terms * float(step.energy.max())) for step in seen)  # Cauchy and Schwarz
    root = abs(rule.square_gradient) * longest
    if rule.square_weight:
        root += abs(rule.square_weight) * training.largest_weight(number)
    most = torch.finfo(torch.float32).max / 4 * max(1 - rule.square_square, UNIT_ROUNDOFF)
    if not root**2 < most:
        raise InputError(
            f"{training.panels[number].title}: squares of gradients may lead out of the range of float32; nothing has "
            "moved. Scale the loss"
        )


OPTIMIZERS: Final[Mapping[str, type[FleetOptimizer]]] = MappingProxyType({"sgd": FleetSGD, "adam": FleetAdam})
"""By the names that `Fleet.optimizer` takes."""
