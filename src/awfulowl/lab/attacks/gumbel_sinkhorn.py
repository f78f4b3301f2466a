"""Gumbel-Sinkhorn: learn a soft permutation by gradients, through doubly stochastic matrices with noise."""

from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.attacks.frank_wolfe import mixed
from awfulowl.lab.positions.swapping import some_images
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import assign_flops, fitting, place, product_flops, products
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy

MOST_PLACES: Final = 1024
"""Every step normalises a square of places over and over: meant for the sizes of digits."""

_NORMALISATIONS: Final = 20


class GumbelSinkhorn(Attack):
    """Learn scores whose noisy Sinkhorn normalisation is a soft permutation with a low loss (rung P2).

    Adam on the scores; temperature falls geometrically. Held blocks and empty pieces fill a square of places. The last
    scores, without noise, are rounded by an assignment.

    Source: G. Mena, D. Belanger, S. Linderman and J. Snoek, "Learning latent permutations with Gumbel-Sinkhorn
    networks", 2018, section 3.

    Args:
        steps: gradients that are taken.
        images: public images for each.
        lr: of Adam.
        first: temperature at the start.
        last: temperature at the end.
        noise: scale of the Gumbel noise.

    Raises:
        InputError: a number is not above 0.
    """

    name: ClassVar[str] = "gumbel-sinkhorn"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(
        self,
        steps: int = 100,
        images: int = 300,
        lr: float = 0.1,
        first: float = 1.0,
        last: float = 0.1,
        noise: float = 0.3,
    ) -> None:
        if min(steps, images, lr, first, last) <= 0 or noise < 0:
            raise InputError(f"{steps} steps on {images} images at {lr:g}, {first:g} to {last:g}: each must be above 0")
        self._steps: Final = steps
        self._images: Final = images
        self._lr: Final = lr
        self._first: Final = first
        self._last: Final = last
        self._noise: Final = noise

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Learn, and round."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            check_small(self.name, site, MOST_PLACES)
            scores = self._learn(site, ledger, entropy)
            ledger.spend("assignment", assign_flops(len(site.spoils), len(site.places)))
            return place(site.spoils, scores, site.places)

        return Recovery(placements=layer_by_layer(scene, attack))

    def _learn(self, site: Site, ledger: Ledger, entropy: Entropy) -> Tensor:
        """Return learned scores float64 (blocks, places), -inf where a block does not fit."""
        blocks, places = site.spoils.blocks, site.places
        allowed = torch.zeros(len(places), len(places), dtype=torch.float64)
        # Rows after the blocks are empty pieces, which fit everywhere.
        allowed[: len(blocks)] = fitting(blocks, places)
        learned = torch.zeros_like(allowed).requires_grad_()
        optimiser = torch.optim.Adam([learned], self._lr)
        cost = 2 * product_flops(blocks, places)
        for step in range(self._steps):
            ledger.spend("mixing", cost)
            temperature = self._first * (self._last / self._first) ** (step / max(1, self._steps - 1))
            noise = -torch.log(-torch.log(entropy.uniform(learned.numel()).clamp_(1e-12, 1 - 1e-12)))
            noisy = learned + self._noise * noise.view_as(learned)
            soft = sinkhorn(noisy / temperature + allowed, _NORMALISATIONS)
            weight = mixed(site, soft.detach()[: len(blocks)])
            slope = site.descent(weight, some_images(site, self._images, entropy), 0.0, ledger)
            # Minus the gradient for the share of each block at each place.
            gain = products(blocks, slope, places)
            optimiser.zero_grad()
            torch.autograd.backward(soft[: len(blocks)], -gain.masked_fill_(gain.isinf(), 0.0))
            optimiser.step()
        return (learned.detach() + allowed)[: len(blocks)].contiguous()


def sinkhorn(scores: Tensor, times: int) -> Tensor:
    """Return exp(scores) with rows and columns normalised in turn, in logarithms.

    Source: R. Sinkhorn, "A relationship between arbitrary positive matrices and doubly stochastic matrices", 1964.

    Args:
        scores: (places, places); -inf where nothing may lie.
        times: that both are normalised.
    """
    for _ in range(times):
        scores = functional.log_softmax(scores, dim=1)
        scores = functional.log_softmax(scores, dim=0)
    return scores.exp()


def check_small(name: str, site: Site, most: int) -> None:
    """Refuse a layer that is cut into more blocks than a slow search is meant for.

    Raises:
        InputError: it is.
    """
    if len(site.places) > most:
        raise InputError(f"{name} is for layers of up to {most} blocks, this one has {len(site.places)}: cut larger")
