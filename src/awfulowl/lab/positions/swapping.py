"""Searches that exchange two blocks at a time: which exchanges there are, and which are kept."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.positions.incremental import EMPTY, Incremental
from awfulowl.lab.sites.site import Site
from awfulowl.randomness import Entropy

IMAGES: Final = 500
"""Public images on which a search judges, where it has them."""

_DRAWN: Final = 1024


class Swap(NamedTuple):
    """Two places of one shape, at least one of them filled."""

    one: int
    other: int


def some_images(site: Site, count: int, entropy: Entropy) -> Tensor:
    """Return the numbers, int64 (n,), of some public images, drawn without replacement.

    Raises:
        InputError: no labels are known.
    """
    if bool((site.labels < 0).any()):
        raise InputError("a search judges by labels, and those of the public images are not known")
    return torch.tensor(entropy.permutation(len(site))[:count])


def random_filling(site: Site, entropy: Entropy) -> list[int]:
    """Return the block at every place of a random placement; `EMPTY` where there is none."""
    filled = [EMPTY] * len(site.places)
    for blocks, places in site.places.alike(site.spoils.blocks):
        for block, where in zip(blocks, entropy.permutation(len(places)), strict=False):
            filled[places[where]] = block
    return filled


def random_swaps(site: Site, filled: list[int], entropy: Entropy) -> Iterator[Swap]:
    """Yield random swaps for ever, of a placement that changes meanwhile: a block and another place that fits it."""
    alike = [places for blocks, places in site.places.alike(site.spoils.blocks) if len(places) > 1]
    sizes = [sum(filled[place] != EMPTY for place in places) for places in alike]
    edges = torch.tensor(sizes, dtype=torch.float64).cumsum(0) / max(1, sum(sizes))
    while alike:
        drawn = entropy.uniform(3 * _DRAWN).view(3, -1)
        which = torch.searchsorted(edges, drawn[0]).clamp_(max=len(alike) - 1).tolist()
        for number, first, second in zip(which, drawn[1].tolist(), drawn[2].tolist(), strict=True):
            places = alike[number]
            one, other = places[_below(first, len(places))], places[_below(second, len(places))]
            if filled[one] != filled[other]:
                yield Swap(one, other)


def _below(uniform: float, bound: int) -> int:
    """Return an integer in [0, bound) from a number in (0, 1]."""
    return math.ceil(uniform * bound) - 1


def search(
    state: Incremental, swaps: Iterator[Swap], temperatures: Iterator[float], ledger: Ledger, entropy: Entropy
) -> None:
    """Try swaps and keep what Metropolis et al. (1953) would, until the temperatures or the budget end.

    Args:
        state: the placement, which is changed.
        swaps: to try, in order.
        temperatures: in units of cross-entropy, one for each; 0 keeps only what is better.
        ledger: asked before every step.
        entropy: of what is kept though it is worse.
    """
    chances: Iterator[float] = iter(())
    for temperature, swap in zip(temperatures, swaps, strict=False):
        if not ledger.affords(flops=state.swap_flops + state.whole_flops, evaluations=2):
            return
        tried = state.try_swap(*swap)
        worse = tried.loss - state.loss
        if worse >= 0:
            if temperature <= 0:
                continue
            chance = next(chances, None)
            if chance is None:
                chances = iter(entropy.uniform(_DRAWN).tolist())
                chance = next(chances)
            if worse > -temperature * math.log(chance):
                continue
        state.make(tried)


def cooling(first: float, last: float, steps: int) -> Iterator[float]:
    """Yield temperatures that fall geometrically from the first to the last."""
    for step in range(steps):
        yield first * (last / first) ** (step / max(1, steps - 1))
