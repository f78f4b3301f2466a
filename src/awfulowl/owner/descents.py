"""The optimizers that there are: stochastic gradient descent and Adam, as in `torch.optim`."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import nn

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.errors import InputError
from awfulowl.owner.optimizer import Course, FleetOptimizer


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
        """Move what is kept; decoupled decay is done first, as torch.optim.AdamW does."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            if group["decoupled_weight_decay"] and group["weight_decay"]:
                for one in group["params"]:
                    if one.grad is not None:
                        one.mul_(1 - group["lr"] * group["weight_decay"])
                group["weight_decay"] = 0.0
        try:
            torch.optim.SGD.step(self)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


class FleetAdam(FleetOptimizer, torch.optim.Adam):
    """`torch.optim.Adam` whose scattered parameters move at the devices that hold them.

    Devices state their weights after each step, products are held to those, and a share of the blocks is rebuilt at
    snapshots (`auditing`): what that proves is less than for `FleetSGD`, and costs the traffic of all weights a step.
    """

    options: ClassVar[frozenset[str]] = frozenset(
        {"betas", "eps", "weight_decay", "maximize", "decoupled_weight_decay"}
    )
    kept: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"momentum": "exp_avg", "square": "exp_avg_sq", "steps": "step"}
    )

    def __init__(
        self,
        course: Course,
        params: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]] | None,
        *,
        lr: float,
        **options: Any,
    ) -> None:
        super().__init__(course, params, lr=lr, **options)
        for number in self._groups():
            self._training.adapt(number)

    def _rule(self, group: Mapping[str, Any], number: int) -> Adaptation:
        self._training.adapt(number)  # a group may have been added
        if not group["eps"] > 0:
            raise InputError(f"eps={group['eps']}: above 0, or weights without gradients are divided by nothing")
        return Adaptation.adam(
            float(group["lr"]),
            self._training.histories[number].adapted + 1,
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            epsilon=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            scale=-self._scale if group["maximize"] else self._scale,
        )

    def _step_here(self) -> None:
        torch.optim.Adam.step(self)


OPTIMIZERS: Final[Mapping[str, type[FleetOptimizer]]] = MappingProxyType({"sgd": FleetSGD, "adam": FleetAdam})
"""By the names that `Fleet.optimizer` takes."""
