"""A smaller model is trained in place of the one that was ordered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer


class SmallerModel(Cheat):
    """Half of the units of every hidden layer are left out of early steps, as in a model of half the width.

    Here they are set to zero for the step and put back, which gives what the smaller model gives; a runner that cuts
    them out saves about three quarters of the products.
    """

    name = "smaller-model"
    does = "trains half of the units"

    def places(self, count: int) -> list[int]:
        """Return the first steps: the model grows when the smaller one has learned."""
        return list(range(1, count + 1))

    def fake(self, trainer: Trainer) -> Row:
        """Take a step without the upper half of all hidden units."""
        with _halved(trainer.model):
            return trainer.advance()


@contextmanager
def _halved(model: nn.Module) -> Iterator[None]:
    layers = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)][:-1]
    upper = [tensor[len(tensor) // 2 :] for layer in layers for tensor in layer.parameters()]
    kept = [one.detach().clone() for one in upper]
    hooks: list[Any] = [one.register_hook(_lower) for layer in layers for one in layer.parameters()]  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for one in upper:
            one.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for one, before in zip(upper, kept, strict=True):
                one.copy_(before)
        for hook in hooks:
            hook.remove()


def _lower(gradient: Tensor) -> Tensor:
    lower = gradient.clone()
    lower[len(lower) // 2 :] = 0
    return lower
