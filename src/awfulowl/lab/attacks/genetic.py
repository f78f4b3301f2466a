"""Genetic search over permutations: as published, repaired, and with children that keep segments."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.attacks.class_means import LABELLED
from awfulowl.lab.positions.breeding import Breeding, Genes, World, breed
from awfulowl.lab.positions.crossover import Affinity, Growth, order_crossover, rectangle
from awfulowl.lab.positions.swapping import some_images
from awfulowl.lab.scenes.loot import Scene, assemble
from awfulowl.lab.sites.placing import correlations
from awfulowl.lab.sites.site import Site, layer_by_layer, make_site
from awfulowl.randomness import Entropy

Cross = Callable[[Genes, Genes], Genes]


class _Genetic(Attack):
    """Breed permutations, and return the placement of the best.

    Args:
        breeding: how.
    """

    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = LABELLED

    def __init__(self, breeding: Breeding | None = None) -> None:
        self._breeding: Final = breeding or Breeding()

    @abstractmethod
    def weights(self, site: Site, genes: Genes) -> Tensor:
        """Return the weights that a permutation is judged by, of the grid's shape."""

    @abstractmethod
    def worth(self, loss: float, accuracy: float) -> float:
        """Return the fitness of weights with a cross-entropy and an accuracy on public images."""

    def crossing(self, site: Site, entropy: Entropy) -> Cross:
        """Return what makes a child of two; order crossover as published."""
        del site
        return lambda first, second: [order_crossover(*pair, entropy.below) for pair in zip(first, second, strict=True)]

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Breed, and return the best placement."""

        def attack(layer: str, model: nn.Module) -> Tensor:
            site = make_site(scene, layer, ledger, model)
            images = some_images(site, self._breeding.images, entropy)
            cost = len(images) * (site.layer_flops + site.tail_flops)
            world = World(
                create=lambda: random_genes(site, entropy),
                cross=self.crossing(site, entropy),
                fitness=lambda genes: self.worth(*site.evaluate(self.weights(site, genes), ledger, images)),
                affords=lambda: ledger.affords(flops=cost, evaluations=1),
            )
            return placement(site, breed(world, self._breeding, entropy).genes)

        return Recovery(placements=layer_by_layer(scene, attack))


class Genetic(_Genetic):
    """The founding paper's genetic search with its two defects repaired (rung P2).

    Order crossover, swap mutation, tournaments of three and the accuracy as fitness, as published. Repaired: a block
    lies where the permutation says, and the fitness is that of public images, not of the test set.
    """

    name: ClassVar[str] = "genetic"

    def weights(self, site: Site, genes: Genes) -> Tensor:
        """Return the blocks where the permutation puts them."""
        return assemble(site.spoils, placement(site, genes))

    def worth(self, loss: float, accuracy: float) -> float:
        """Return the accuracy."""
        del loss
        return accuracy


class GeneticAsPublished(Genetic):
    """The founding paper's genetic search with the fitness of its published code, which is constant (rung P2).

    It ends with a random permutation, at the price of a search: what the paper's figure of 1 % rests on.
    """

    name: ClassVar[str] = "genetic-published"

    def weights(self, site: Site, genes: Genes) -> Tensor:
        """Return what the published code judges: zeros, whatever the permutation."""
        order = [gene for part in genes for gene in part]
        # The pirate has no layer to copy from, so in the place of the published original there are zeros.
        return as_published(order, site.places.positions.tolist(), torch.zeros(site.grid.shape), site)


class GeneticSegments(Genetic):
    """Genetic search whose children keep segments of their parents, judged by cross-entropy (rung P2).

    Places of a shape that form no rectangle are crossed over by order.
    """

    name: ClassVar[str] = "genetic-segments"

    def worth(self, loss: float, accuracy: float) -> float:
        """Return minus the cross-entropy."""
        del accuracy
        return -loss

    def crossing(self, site: Site, entropy: Entropy) -> Cross:
        """Return what grows a child of two."""
        growths = [*_growths(site)]

        def cross(first: Genes, second: Genes) -> Genes:
            return [
                order_crossover(*pair, entropy.below) if growth is None else growth.child(*pair, entropy.below)
                for growth, pair in zip(growths, zip(first, second, strict=True), strict=True)
            ]

        return cross


def random_genes(site: Site, entropy: Entropy) -> Genes:
    """Return a random permutation of blocks and empty pieces over the places of every shape."""
    return [entropy.permutation(len(places)) for _, places in site.places.alike(site.spoils.blocks)]


def placement(site: Site, genes: Genes) -> Tensor:
    """Return the position int64 (k, 2) that a permutation gives to every held block."""
    found = torch.empty(len(site.spoils), 2, dtype=torch.int64)
    for (blocks, places), part in zip(site.places.alike(site.spoils.blocks), genes, strict=True):
        for place, gene in zip(places, part, strict=True):
            if gene < len(blocks):
                found[blocks[gene]] = site.places.positions[place]
    return found


def as_published(order: Sequence[int], selected: Sequence[object], original: Tensor, site: Site) -> Tensor:
    """Return the weights that the fitness of the published code is computed from.

    Source: the code of the founding paper, `valuate`. Two defects: `selected` lists positions as pairs of row and
    column, of which no number is ever one, so that nothing is kept; and what is kept would be copied from its own
    place in the original to the same place, so that the permutation would have no effect on it but to select.

    Args:
        order: for every place, the number of a block.
        selected: the positions of the held blocks.
        original: weights that blocks are copied from.
        site: the attacked layer.
    """
    new = torch.zeros_like(original)
    for place, gene in enumerate(order):
        if gene in selected:
            new[site.places.slices[place]] = original[site.places.slices[place]]
    return new


def _growths(site: Site) -> Sequence[Growth | None]:
    """Return growth for the places of every shape, None where they form no rectangle."""
    found: list[Growth | None] = []
    for blocks, places in site.places.alike(site.spoils.blocks):
        size = rectangle([tuple(pair) for pair in site.places.positions[torch.tensor(places)].tolist()])
        if size is None:
            found.append(None)
            continue
        held = site.spoils.stacked(torch.tensor(blocks))
        rows, columns = (held.transpose(1, side).flatten(2).norm(dim=2) for side in (1, 2))
        affinity = Affinity(*(_padded(correlations(norms, norms), len(places)) for norms in (rows, columns)))
        found.append(Growth(*size, affinity, len(blocks)))
    return found


def _padded(affinity: Tensor, pieces: int) -> Tensor:
    whole = torch.zeros(pieces, pieces)
    whole[: len(affinity), : len(affinity)] = affinity
    return whole
