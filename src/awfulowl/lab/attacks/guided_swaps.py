"""Guided swaps: one gradient names the exchanges of two blocks that should help, and these are tried exactly."""

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.positions.incremental import EMPTY, Incremental
from awfulowl.lab.positions.swapping import IMAGES, Swap, random_filling, some_images
from awfulowl.lab.scenes.loot import Scene, assemble
from awfulowl.lab.sites.placing import product_flops, products
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy

_CHECKED: Final = 300
_ROUNDS: Final = 20
_AT_ONCE: Final = 1024


class GuidedSwaps(Attack):
    """Exchange blocks where the gradient at the present placement promises most, as long as the loss falls (rung P2).

    With S the products of blocks with minus the gradient at each place, exchanging what lies at p and q gains
    S[p, q] + S[q, p] - S[p, p] - S[q, q] to first order. From the right positions it moves away from them, to a lower
    loss on the public images: a loss does not name positions.

    Args:
        rounds: gradients that are taken at most.
        checked: exchanges that are evaluated exactly after each.
        images: public images for both.

    Raises:
        InputError: a number is less than 1.
    """

    name: ClassVar[str] = "guided-swaps"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, rounds: int = _ROUNDS, checked: int = _CHECKED, images: int = IMAGES) -> None:
        if min(rounds, checked, images) < 1:
            raise InputError(f"{rounds} rounds of {checked} swaps on {images} images: each must be 1 or more")
        self._rounds: Final = rounds
        self._checked: Final = checked
        self._images: Final = images

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Start from random positions, and exchange."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            images = some_images(site, self._images, entropy)
            state = Incremental(site, random_filling(site, entropy), images, ledger)
            for _ in range(self._rounds):
                if not ledger.affords(flops=round_flops(site, len(images))) or not self._improve(site, state, ledger):
                    break
            return site.places.positions[state.chosen()]

        return Recovery(placements=layer_by_layer(scene, attack))

    def _improve(self, site: Site, state: Incremental, ledger: Ledger) -> bool:
        """Take one gradient, try the best swaps, and say whether one was made."""
        weight = assemble(site.spoils, site.places.positions[state.chosen()])
        slope = site.descent(weight, state.images, 0.0, ledger)
        ledger.spend("scores", product_flops(site.spoils.blocks, site.places))
        made = False
        for swap in best_swaps(products(site.spoils.blocks, slope, site.places), state.filled, self._checked):
            if not ledger.affords(flops=state.swap_flops + state.whole_flops, evaluations=2):
                return False
            if state.filled[swap.one] == state.filled[swap.other]:
                continue  # both are empty by now
            tried = state.try_swap(*swap)
            if tried.loss < state.loss:
                state.make(tried)
                made = True
        return made


def round_flops(site: Site, images: int) -> float:
    """Return the operations of one gradient and its scores."""
    return images * 2 * (site.layer_flops + site.tail_flops) + product_flops(site.spoils.blocks, site.places)


def best_swaps(scores: Tensor, filled: list[int], count: int) -> list[Swap]:
    """Return the exchanges of two places that gain most to first order, the best first, none that loses.

    Args:
        scores: (blocks, places), products with minus the gradient; -inf where a block does not fit.
        filled: the block at every place, `EMPTY` for none.
        count: how many at most.
    """
    held = torch.tensor(filled)
    # What is empty scores 0 everywhere.
    at = torch.cat([scores, scores.new_zeros(1, scores.shape[1])])[torch.where(held == EMPTY, len(scores), held)]
    own, numbers = at.diagonal(), torch.arange(len(held))
    found: list[tuple[float, Swap]] = []
    for some in torch.split(numbers, _AT_ONCE):
        gains = at[some] + at[:, some].T - own[some, None] - own
        gains[(held[some, None] == held) | (numbers <= some[:, None]) | ~gains.isfinite()] = -torch.inf
        best = torch.topk(gains.flatten(), min(count, gains.numel()))
        for gain, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if gain > 0:
                found.append((gain, Swap(int(some[index // len(held)]), index % len(held))))
    return [swap for _, swap in sorted(found, reverse=True)[:count]]
