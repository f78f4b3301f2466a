"""Hill climbing and annealing on cross-entropy: random swaps, thousands a second since little changes with each."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import ClassVar, Final

from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.positions.incremental import Incremental
from awfulowl.lab.positions.swapping import IMAGES, cooling, random_filling, random_swaps, search, some_images
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.site import layer_by_layer, make_site
from awfulowl.randomness import Entropy

EVALUATIONS: Final = 5000
"""Of a search that is not told otherwise: some seconds of one core on 500 images."""


class HillClimbing(Attack):
    """Keep every random swap of two blocks that lowers the cross-entropy of public images (rung P2).

    Args:
        evaluations: swaps that are tried, unless the budget ends before.
        images: public images to judge by.

    Raises:
        InputError: a number is less than 1.
    """

    name: ClassVar[str] = "hill-climbing"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, evaluations: int = EVALUATIONS, images: int = IMAGES) -> None:
        _check_counts(evaluations, images)
        self._evaluations: Final = evaluations
        self._images: Final = images

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Start from random positions and climb."""
        return _swapped(scene, self._images, lambda: repeat(0.0, self._evaluations), ledger, entropy)


class Annealing(Attack):
    """Simulated annealing of random swaps of two blocks on the cross-entropy of public images (rung P2).

    Source: S. Kirkpatrick, C. Gelatt and M. Vecchi, "Optimization by simulated annealing", 1983.

    Args:
        evaluations: swaps that are tried, unless the budget ends before.
        images: public images to judge by.
        first: temperature at the start, in units of cross-entropy.
        last: temperature at the end.

    Raises:
        InputError: a number is less than 1, or a temperature not above 0.
    """

    name: ClassVar[str] = "annealing"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(
        self, evaluations: int = EVALUATIONS, images: int = IMAGES, first: float = 3e-3, last: float = 1e-5
    ) -> None:
        _check_counts(evaluations, images)
        if not 0 < last <= first:
            raise InputError(f"temperatures from {first:g} to {last:g}: they fall, and stay above 0")
        self._evaluations: Final = evaluations
        self._images: Final = images
        self._first: Final = first
        self._last: Final = last

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Start from random positions and cool."""
        temperatures = partial(cooling, self._first, self._last, self._evaluations)
        return _swapped(scene, self._images, temperatures, ledger, entropy)


def _swapped(
    scene: Scene, images: int, temperatures: Callable[[], Iterator[float]], ledger: Ledger, entropy: Entropy
) -> Recovery:
    """Search every layer by random swaps from random positions, at temperatures that begin anew for each."""

    def attack(layer: str, model: nn.Module) -> Tensor:
        site = make_site(scene, layer, ledger, model)
        state = Incremental(site, random_filling(site, entropy), some_images(site, images, entropy), ledger)
        search(state, random_swaps(site, state.filled, entropy), temperatures(), ledger, entropy)
        return site.places.positions[state.chosen()]

    return Recovery(placements=layer_by_layer(scene, attack))


def _check_counts(evaluations: int, images: int) -> None:
    if evaluations < 1 or images < 1:
        raise InputError(f"{evaluations} evaluations on {images} images: each must be 1 or more")
