"""G0, class means: one gradient at a layer of zeros points to where every block belongs."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import assign_flops, place, product_flops, products
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy

LABELLED: frozenset[str] = frozenset(
    {"knows_architecture", "knows_other_layers", "knows_inputs", "knows_labels", "public"}
)
"""What attacks need that learn from labelled images between known layers."""


class ClassMeans(Attack):
    """Assign blocks by their product with minus the gradient of the loss at a layer of zeros (rung P2).

    ReLUs count as linear for the gradient, so it is W2ᵀ (Y - p)ᵀ X / n with one linear layer behind: the mean inputs of
    the classes, carried back. The plain gradient is blind to units of negative bias, which are off.
    """

    name: ClassVar[str] = "class-means"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Take one gradient, and assign."""
        del entropy

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            guess = site.descent(torch.zeros(site.grid.shape), torch.arange(len(site)), 1.0, ledger)
            return place_by_guess(site, guess, ledger)

        return Recovery(placements=layer_by_layer(scene, attack))


def place_by_guess(site: Site, guess: Tensor, ledger: Ledger) -> Tensor:
    """Return the placement int64 (k, 2) by products of blocks with a guess of the grid's shape."""
    ledger.spend("scores", product_flops(site.spoils.blocks, site.places))
    ledger.spend("assignment", assign_flops(len(site.spoils), len(site.places)))
    return place(site.spoils, products(site.spoils.blocks, guess, site.places), site.places)
