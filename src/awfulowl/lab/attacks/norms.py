"""Norms: a block's rows are as strong as the next layer takes them in, its columns as strong as their inputs allow."""

from typing import ClassVar

from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.positions.profiles import Tables, at_places, profile_tables
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import assign_flops, place
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy


class Norms(Attack):
    """Assign blocks by Pearson's correlation of norms (rung P2): no labels, and no pass through the layer.

    The row profile of a block, the norms of its rows, is compared with the norms of the next layer's columns over
    each row of the grid; its column profile with the root mean squares of the inputs over each column of the grid.
    Columns show nothing where the victim was trained without weight decay.
    """

    name: ClassVar[str] = "norms"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = frozenset({"knows_architecture", "knows_other_layers", "knows_inputs", "public"})

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Score by correlations, and assign."""
        del entropy

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            return place_by_norms(site, profile_tables(site), ledger)

        return Recovery(placements=layer_by_layer(scene, attack))


def place_by_norms(site: Site, tables: Tables, ledger: Ledger) -> Tensor:
    """Return the placement int64 (k, 2) by scores of rows and columns."""
    ledger.spend("assignment", assign_flops(len(site.spoils), len(site.places)))
    return place(site.spoils, at_places(tables, site), site.places)
