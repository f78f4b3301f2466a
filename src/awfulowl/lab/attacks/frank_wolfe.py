"""Frank-Wolfe: every block is everywhere a little, and each gradient's best assignment moves the mixture."""

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.positions.swapping import some_images
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import assign, assign_flops, place, product_flops, products, score
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy

_STEPS: Final = 25
_IMAGES: Final = 2000
_LEAK: Final = 0.5


class FrankWolfe(Attack):
    """Minimise the cross-entropy over mixtures of placements; the vertex of each step is one assignment (rung P2).

    The weights are W(P) = sum over blocks k and places p of P[k, p] B_k at p, with P a mixture of placements; the
    gradient for P[k, p] is <B_k, gradient at p>. Step t goes 2 / (t + 3) of the way to the best assignment; the
    gradient is that of fresh images, through ReLUs that leak at first. The final mixture is rounded by an assignment.

    Source: M. Frank and P. Wolfe, "An algorithm for quadratic programming", 1956; the rounding is that of
    J. Vogelstein et al., "Fast approximate quadratic programming for graph matching", 2015.

    Args:
        steps: gradients that are taken.
        images: public images for each.

    Raises:
        InputError: a number is less than 1.
    """

    name: ClassVar[str] = "frank-wolfe"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, steps: int = _STEPS, images: int = _IMAGES) -> None:
        if min(steps, images) < 1:
            raise InputError(f"{steps} steps on {images} images: each must be 1 or more")
        self._steps: Final = steps
        self._images: Final = images

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Mix, and round."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            return place(site.spoils, self._mixture(site, ledger, entropy), site.places)

        return Recovery(placements=layer_by_layer(scene, attack))

    def _mixture(self, site: Site, ledger: Ledger, entropy: Entropy) -> Tensor:
        """Return the shares (blocks, places) of the final mixture, -inf where a block does not fit."""
        blocks, places = site.spoils.blocks, site.places
        mixture = uniform(site)
        for step in range(self._steps):
            cost = 2 * len(places) * sum(block.numel() for block in blocks) + product_flops(blocks, places)
            ledger.spend("mixing", cost + assign_flops(len(blocks), len(places)))
            weight = mixed(site, mixture)
            leak = _LEAK * (1 - step / max(1, self._steps - 1))
            chosen = some_images(site, self._images, entropy)
            vertex = assign(products(blocks, site.descent(weight, chosen, leak, ledger), places))
            share = 2.0 / (step + 3)
            mixture.mul_(1 - share)
            mixture[torch.arange(len(blocks)), vertex] += share
        ledger.spend("assignment", assign_flops(len(blocks), len(places)))
        return mixture


def uniform(site: Site) -> Tensor:
    """Return the mixture float64 (blocks, places) of all placements; -inf where a block does not fit."""
    return score(
        site.spoils.blocks,
        site.places,
        lambda held, room: torch.full((len(held), len(room)), 1.0 / len(room), dtype=torch.float64),
    )


def mixed(site: Site, mixture: Tensor) -> Tensor:
    """Return the weights, of the grid's shape, of a mixture (blocks, places) of placements."""
    whole = torch.zeros(site.grid.shape)
    cells = site.places.cells(whole)
    for numbers, room in site.places.alike(site.spoils.blocks):
        held = site.spoils.stacked(torch.tensor(numbers))
        shares = mixture[torch.tensor(numbers)[:, None], torch.tensor(room)].to(held.dtype)
        for where, piece in zip(room, (shares.T @ held.flatten(1)).reshape(-1, *held.shape[1:]), strict=True):
            cells[where].copy_(piece)
    return whole
