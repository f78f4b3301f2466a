"""How networks learn in the lab: one loop for victims, floors, and whatever a pirate trains."""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.costs import TRAINING, Ledger, forward_flops
from awfulowl.errors import InputError
from awfulowl.lab.victims.data import as_float
from awfulowl.randomness import Entropy

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (n, classes) and targets (n, ...) to a mean."""

OnEpoch = Callable[[int, int], None]
"""Called after every epoch: epochs done, epochs in all."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training: stochastic gradient descent with momentum, or AdamW, at a rate that falls along a cosine."""

    epochs: int
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimiser: Literal["sgd", "adamw"] = "sgd"
    warmup: float = 0.0
    """Share of the steps in which the rate rises."""
    mirrored: bool = False
    """Half of the images are mirrored, as pictures of things may be and digits may not."""

    def cost(self, flops: float, images: int) -> float:
        """Return the operations of the training of a network with so many forward operations an image."""
        return TRAINING * flops * images * self.epochs


def distillation(logits: Tensor, answers: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the mean divergence of answers from a network's own at a temperature.

    Source: G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    own = functional.log_softmax(logits / temperature, dim=1)
    other = functional.log_softmax(answers / temperature, dim=1)
    return functional.kl_div(own, other, reduction="batchmean", log_target=True) * temperature**2


def fit(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    schedule: Schedule,
    entropy: Entropy,
    ledger: Ledger,
    *,
    loss: Loss = functional.cross_entropy,
    only: Sequence[nn.Parameter] | None = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Train a model in place and leave it in eval mode.

    Random layers draw from PyTorch's global generator, which the caller seeds.

    Args:
        model: changed.
        inputs: (n, ...); uint8 pixels are scaled batch by batch.
        targets: what `loss` compares its logits with, (n, ...): labels, or answers.
        schedule: how.
        entropy: the order of the images.
        ledger: charged with three forward passes an image, before the training.
        loss: a mean over images.
        only: parameters that move; the others, and batch norms, stay as they are. None: all.
        on_epoch: told about every epoch.

    Raises:
        InputError: there is nothing to learn from, or the loss is not finite.
        SpentError: the budget does not allow it; nothing was done.
    """
    if not len(inputs):
        raise InputError("there is nothing to learn from: the pirate has no images")
    ledger.spend("training", schedule.cost(forward_flops(model, _on(as_float(inputs[:1]), model)), len(inputs)))
    moving = [*model.parameters()] if only is None else [*only]
    wanted = {id(one) for one in moving}
    frozen = {id(one): one.requires_grad for one in model.parameters()}
    for one in model.parameters():
        one.requires_grad_(id(one) in wanted)
    _mode(model, frozen=only is not None)
    try:
        _epochs(model, moving, (inputs, targets), schedule, entropy, loss, on_epoch)
    finally:
        for one in model.parameters():
            one.requires_grad_(frozen[id(one)])
        model.eval()


def _on(tensor: Tensor, model: nn.Module) -> Tensor:
    """Return a tensor on the device of a model."""
    first = next(model.parameters(), None)
    return tensor if first is None else tensor.to(first.device)


def _mode(model: nn.Module, *, frozen: bool) -> None:
    """Training mode, in which batch norms of a network that is mostly frozen keep their statistics."""
    model.train()
    if frozen:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  no public name for all of them
                module.eval()


def _optimizer(moving: Sequence[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimiser == "adamw":
        return torch.optim.AdamW(moving, lr=schedule.lr, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(moving, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay)


def _epochs(
    model: nn.Module,
    moving: Sequence[nn.Parameter],
    examples: tuple[Tensor, Tensor],
    schedule: Schedule,
    entropy: Entropy,
    loss: Loss,
    on_epoch: OnEpoch | None,
) -> None:
    inputs, targets = examples
    optimizer = _optimizer(moving, schedule)
    steps = schedule.epochs * -(-len(inputs) // schedule.batch)
    rise = int(schedule.warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - rise) / max(1, steps - rise)))))

    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order = torch.Generator().manual_seed(entropy.below(1 << 62))
    for epoch in range(schedule.epochs):
        for chosen in torch.split(torch.randperm(len(inputs), generator=order), schedule.batch):
            batch = _on(as_float(inputs[chosen]), model)
            if schedule.mirrored:
                flipped = _on(torch.rand(len(chosen), generator=order) < 0.5, model)
                batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
            value = loss(model(batch), _on(targets[chosen], model))
            if not torch.isfinite(value):
                raise InputError(f"the loss is {value.item()} in epoch {epoch + 1}: lower the rate of {schedule.lr:g}")
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
            rate.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, schedule.epochs)
