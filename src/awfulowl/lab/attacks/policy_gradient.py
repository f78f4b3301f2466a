"""Policy gradient: draw placements block by block, and make likelier what lowered the loss."""

from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.attacks.gumbel_sinkhorn import check_small
from awfulowl.lab.positions.swapping import some_images
from awfulowl.lab.scenes.loot import Scene, assemble
from awfulowl.lab.sites.placing import assign_flops, fitting, place
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy

MOST_PLACES: Final = 256
"""The signal of one right block drowns in the noise of all others: meant for the sizes of digits."""


class PolicyGradient(Attack):
    """REINFORCE over placements, with the mean reward of each batch as baseline (rung P2).

    A placement is drawn block by block: the place of a block from the softmax of its scores over the places that are
    left. The reward is minus the cross-entropy of public images. The final scores are rounded by an assignment.

    Source: R. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    1992.

    Args:
        evaluations: placements that are tried, unless the budget ends before.
        batch: placements for each step.
        images: public images to judge by.
        lr: of Adam on the scores.

    Raises:
        InputError: a number is not above 0.
    """

    name: ClassVar[str] = "policy-gradient"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, evaluations: int = 600, batch: int = 20, images: int = 300, lr: float = 0.1) -> None:
        if min(evaluations, images, lr) <= 0 or batch < 2:
            raise InputError(f"{evaluations} evaluations in batches of {batch} on {images} images at {lr:g}: too few")
        self._evaluations: Final = evaluations
        self._batch: Final = batch
        self._images: Final = images
        self._lr: Final = lr

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Learn scores, and round."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            check_small(self.name, site, MOST_PLACES)
            scores = self._learn(site, ledger, entropy)
            return place(site.spoils, scores, site.places)

        return Recovery(placements=layer_by_layer(scene, attack))

    def _learn(self, site: Site, ledger: Ledger, entropy: Entropy) -> Tensor:
        """Return learned scores float64 (blocks, places), -inf where a block does not fit."""
        ledger.spend("assignment", assign_flops(len(site.spoils), len(site.places)))
        images = some_images(site, self._images, entropy)
        learned = fitting(site.spoils.blocks, site.places).requires_grad_()
        optimiser = torch.optim.Adam([learned], self._lr)
        cost = len(images) * (site.layer_flops + site.tail_flops)
        for _ in range(max(1, self._evaluations // self._batch)):
            if not ledger.affords(flops=self._batch * cost, evaluations=self._batch):
                break
            drawn = draw(learned, self._batch, entropy)
            losses = [
                site.evaluate(assemble(site.spoils, site.places.positions[chosen]), ledger, images)[0]
                for chosen in drawn.chosen
            ]
            rewards = -torch.tensor(losses, dtype=torch.float64)
            advantage = (rewards - rewards.mean()) / rewards.std().clamp_min(1e-12)
            optimiser.zero_grad()
            torch.autograd.backward(-(advantage * drawn.likelihood).mean())
            optimiser.step()
        return learned.detach()


class Drawn(NamedTuple):
    """Placements: the place of every block (n, k), and the logarithm of their likelihood (n,)."""

    chosen: Tensor
    likelihood: Tensor


def draw(scores: Tensor, count: int, entropy: Entropy) -> Drawn:
    """Draw placements, the blocks in one random order for all.

    Args:
        scores: (blocks, places); -inf where a block does not fit.
        count: how many placements.
        entropy: of the order and the places.
    """
    blocks, places = scores.shape
    taken = torch.zeros(count, places, dtype=torch.bool)
    chosen = torch.empty(count, blocks, dtype=torch.int64)
    likelihood = scores.new_zeros(count)
    for block in entropy.permutation(blocks):
        left = scores[block].expand(count, -1).masked_fill(taken, -torch.inf)
        chances = torch.log_softmax(left, dim=1)
        # Gumbel-max: the largest of log-chances plus Gumbel noise is a draw from the chances.
        noise = -torch.log(-torch.log(entropy.uniform(count * places).clamp_(1e-12, 1 - 1e-12))).view(count, places)
        here = (chances.detach() + noise).argmax(dim=1)
        chosen[:, block] = here
        taken = taken.scatter(1, here[:, None], value=True)
        likelihood = likelihood + chances.gather(1, here[:, None])[:, 0]
    return Drawn(chosen, likelihood)
