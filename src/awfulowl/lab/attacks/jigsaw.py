"""Jigsaw: copied inputs show where in a value a block was cut, and which blocks lie side by side."""

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from awfulowl.blocks.kernels import Dense
from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.positions.duplicates import DISTINCT, chains, copies, links, patterns, phases, pooled
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import assign_flops, place, product_flops, products, standardise
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.lab.sites.surrogates import Retraining, retrain
from awfulowl.randomness import Entropy

_UNLIKELY: Final = 100.0
"""Deviations that a place of another phase loses: a phase may be wrong, so none is impossible."""


class Jigsaw(Attack):
    """Chain blocks by the copies that their edges cut, and assign chains by their summed scores (rung P2).

    Inputs that are always equal have nearly equal weights, since they get the same gradients and decay takes what was
    left of their differences. The phase of a block, its column modulo the number of copies, is seen in the block alone;
    edges that cut a value join neighbours. Where differences are left (a short training), phases are not believed, and
    without copies there are none: then blocks are placed by the score alone.

    Args:
        retraining: how the surrogate that scores are taken from is learned; None: the class means, one gradient.
    """

    name: ClassVar[str] = "jigsaw"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, retraining: Retraining | None = None) -> None:
        self._retraining: Final = retraining

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Score, find phases and chains, and assign."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            held = site.spoils.blocks
            guess = self._guess(site, ledger, entropy)
            ledger.spend("scores", product_flops(held, site.places))
            ledger.spend("assignment", assign_flops(len(held), len(site.places)))
            scores = joined(site, standardise(products(held, guess, site.places)))
            return place(site.spoils, scores, site.places)

        return Recovery(placements=layer_by_layer(scene, attack))

    def _guess(self, site: Site, ledger: Ledger, entropy: Entropy) -> Tensor:
        if self._retraining is not None:
            return retrain(site, self._retraining, ledger, entropy)
        return site.descent(torch.zeros(site.grid.shape), torch.arange(len(site)), 1.0, ledger)


def joined(site: Site, scores: Tensor) -> Tensor:
    """Return scores that know of phases and chains, where inputs are copied and the blocks show it.

    Args:
        site: the attacked layer.
        scores: float64 (blocks, places), standardised; changed in place.
    """
    period = copies(site.twins)
    if period == 1 or not isinstance(site.grid.kernel, Dense) or not len(site.spoils):
        return scores
    held, places = site.spoils.blocks, site.places
    columns = patterns(places, period)
    found = phases(held, columns)
    if float(found.distinct.median()) < DISTINCT:
        return scores
    index = {pattern: number for number, pattern in enumerate(found.patterns)}
    expected = torch.tensor([index[pattern] for pattern in columns])[places.columns]
    scores -= _UNLIKELY * ((found.found[:, None] != expected) & (found.found[:, None] >= 0))
    return pooled(scores, chains(links(held, found, columns, places, period), len(held)), places)
