"""The surrogate: learn the layer anew from public images, and put every block where the new layer resembles it."""

from typing import ClassVar, Final

from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED, place_by_guess
from awfulowl.lab.positions.profiles import add_standardised, profile_tables
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import assign_flops, place, product_flops, products, standardise
from awfulowl.lab.sites.site import layer_by_layer, make_site
from awfulowl.lab.sites.surrogates import Retraining, retrain
from awfulowl.randomness import Entropy

NORMS_WEIGHT: Final = 0.5
"""Of norms beside the surrogate, both at deviation 1: set by hand in our measurements, and never tuned to a victim."""


class Surrogate(Attack):
    """Assign blocks by their product with the retrained layer (rung P2).

    The layers around it pin every unit, so a layer trained from nothing resembles the hidden one: its cosine with the
    truth is about .2, which is many deviations over the thousands of entries of a block.

    Args:
        retraining: how the layer is learned.
    """

    name: ClassVar[str] = "surrogate"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, retraining: Retraining | None = None) -> None:
        self._retraining: Final = retraining or Retraining()

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Retrain, and assign."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            return place_by_guess(site, retrain(site, self._retraining, ledger, entropy), ledger)

        return Recovery(placements=layer_by_layer(scene, attack))


class SurrogateWithNorms(Attack):
    """Assign by the surrogate's scores plus half the scores of norms, both at mean 0 and deviation 1 (rung P2).

    Args:
        retraining: how the layer is learned.
        columns: whether column norms count; without weight decay in the victim's training they are noise.
    """

    name: ClassVar[str] = "surrogate-norms"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, retraining: Retraining | None = None, *, columns: bool = True) -> None:
        self._retraining: Final = retraining or Retraining()
        self._columns: Final = columns

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Retrain, add what norms say, and assign."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            guess = retrain(site, self._retraining, ledger, entropy)
            held = site.spoils.blocks
            ledger.spend("scores", product_flops(held, site.places))
            ledger.spend("assignment", assign_flops(len(held), len(site.places)))
            scores = standardise(products(held, guess, site.places))
            add_standardised(scores, profile_tables(site, columns=self._columns), NORMS_WEIGHT)
            return place(site.spoils, scores, site.places)

        return Recovery(placements=layer_by_layer(scene, attack))
