"""A layer learned anew between the layers around it: they pin every unit, so it resembles the one that was hidden."""

import math

import msgspec
import torch
from torch import Tensor

from awfulowl.blocks.kernels import gradient
from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.sites.site import Site
from awfulowl.lab.sites.softened import Softened
from awfulowl.randomness import Entropy


class Retraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stochastic gradient descent from zero, at a rate that falls along a cosine; dropout as in the victim."""

    epochs: int = 15
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    soft_steps: int = 20
    """Steps in which units that are off pass half of the gradient: from zero, those of negative bias are all off."""
    leak: float = 0.5

    def steps(self, images: int) -> int:
        """Return how many steps there are."""
        return self.epochs * math.ceil(images / self.batch)

    def flops(self, site: Site) -> float:
        """Return the operations: layer and tail forward, gradient of the layer's weights, of the tail's inputs."""
        return self.epochs * len(site) * 2 * (site.layer_flops + site.tail_flops)


def retrain(site: Site, retraining: Retraining, ledger: Ledger, entropy: Entropy) -> Tensor:
    """Train the layer from zero with everything around it frozen.

    Where inputs are copies of each other, the sum over copies is trained, with their number times the gradient: the
    very same training of all copies from zero, at the cost of one.

    Args:
        site: the layer, and labelled public images.
        retraining: how.
        ledger: charged before.
        entropy: the order of the images; dropout draws from PyTorch's global generator.

    Returns:
        Weights of the grid's shape.

    Raises:
        InputError: the loss is not finite, or no labels are known.
        SpentError: the budget does not allow it.
    """
    if bool((site.labels < 0).any()):
        raise InputError("the surrogate learns from labels, and those of the public images are not known")
    ledger.spend("training", retraining.flops(site))
    weight = site.folded(torch.zeros(site.grid.shape))
    copies = weight.new_ones(1) if site.twins is None else torch.bincount(site.twins).to(weight.dtype)
    speed = torch.zeros_like(weight)
    order = torch.Generator().manual_seed(entropy.below(1 << 62))
    steps, step = retraining.steps(len(site)), 0
    site.tail.train(dropout=True)
    try:
        for _ in range(retraining.epochs):
            for chosen in torch.split(torch.randperm(len(site), generator=order), retraining.batch):
                slope = _slope(site, weight, chosen, retraining.leak if step < retraining.soft_steps else 0.0)
                slope = slope * copies if site.twins is not None else slope
                speed.mul_(retraining.momentum).add_(slope.add_(weight, alpha=retraining.weight_decay))
                weight.sub_(speed, alpha=retraining.lr * 0.5 * (1 + math.cos(math.pi * step / steps)))
                step += 1
    finally:
        site.tail.train(dropout=False)
    if not bool(weight.isfinite().all()):
        raise InputError(f"the surrogate's weights are not finite: lower its rate of {retraining.lr:g}")
    return site.unfolded(weight / copies)


def _slope(site: Site, weight: Tensor, chosen: Tensor, leak: float) -> Tensor:
    """Return the gradient of the loss of some images for folded weights."""
    with torch.no_grad():
        y = site.outputs(weight, chosen)
    y.requires_grad_()
    with Softened(leak):
        (dy,) = torch.autograd.grad(site.loss(y, chosen), y)
    return gradient(site.grid.kernel, site.grid.size, site.entered.inputs[chosen], dy, site.grid.groups)
