"""Micro-batches of one step under way at once, so that different layers' devices multiply at the same time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from awfulowl.blocks.adapters.weight import ScatteredWeight
from awfulowl.errors import InputError
from awfulowl.owner.training import TrainedDeployment

T = TypeVar("T")


class _Done(NamedTuple):
    loss: Tensor
    gradients: tuple[Tensor | None, ...]


def pipelined(
    scattered: nn.Module,
    deployment: TrainedDeployment,
    loss: Callable[[T], Tensor],
    batches: Sequence[T],
    threads: int,
) -> list[Tensor]:
    """Run all micro-batches forward and backward, and add up their gradients.

    Each thread works on one at a time. Gradients of kept parameters are added in the order of the micro-batches, and
    devices add theirs in that order too: who is faster makes no difference to any bit.

    Args:
        scattered: the model under training.
        deployment: where it is.
        loss: from a micro-batch to a number that requires a gradient.
        batches: the micro-batches.
        threads: so many are under way at once.

    Returns:
        The losses, in order, detached.

    Raises:
        InputError: the model has statistics that a forward pass changes, so that the order would matter.
    """
    for name, module in scattered.named_modules():
        if module.training and getattr(module, "track_running_stats", False):
            raise InputError(
                f"'{name}' changes its statistics in every forward pass, and micro-batches would do it in any order: "
                "call eval() on it, or let them follow each other"
            )
    parameters = (one for one in scattered.parameters() if one.requires_grad)
    kept = [one for one in parameters if not isinstance(one, ScatteredWeight)]
    anchors = [anchor for anchor in deployment.anchors if anchor.requires_grad]

    def work(number: int) -> _Done:
        deployment.micro.batch = number
        value = loss(batches[number])
        gradients = torch.autograd.grad(value, [*kept, *anchors], allow_unused=True)
        return _Done(value.detach(), gradients[: len(kept)])

    with ThreadPoolExecutor(threads, thread_name_prefix="awfulowl-micro-batch") as pool:
        done = list(pool.map(work, range(len(batches))))
    for number, parameter in enumerate(kept):
        for one in done:
            more = one.gradients[number]
            if more is not None:
                parameter.grad = more.clone() if parameter.grad is None else parameter.grad.add_(more)
    return [one.loss for one in done]
