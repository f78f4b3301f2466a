"""Naive possession (rung P1): what blocks in their right places are worth, without and with training."""

import math
from typing import Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from awfulowl.blocks.grid import Grid
from awfulowl.costs import Ledger
from awfulowl.lab.request import Order
from awfulowl.lab.scenes.loot import positions, span
from awfulowl.lab.sites.relearning import epochs_for
from awfulowl.lab.victims.fitting import Schedule, fit
from awfulowl.lab.victims.kinds import Victim
from awfulowl.models.data import Labelled
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy

DROPPED: Final = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
"""Shares of blocks that are missing, as in figure 6 of the founding paper and below."""
WARM_SHARES: Final = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)

WARM_NEEDS: Final = frozenset({"knows_architecture", "knows_inputs", "knows_labels", "public"})
"""Fields of the threat model without which there is nothing to train on, from loot or from scratch."""

_STEPS: Final = 100
"""Fewest of a warm start: a short training, since a long one forgets where it began."""
_TUNING: Final = Schedule(epochs=6, batch=64, lr=0.02, momentum=0.9, weight_decay=5e-4, warmup=0.1)


@torch.no_grad()
def drop(model: nn.Module, grids: dict[str, Grid], share: float, entropy: Entropy) -> None:
    """Set a share of each layer's blocks to zero, in place; which ones is drawn."""
    for layer, grid in grids.items():
        weight = model.get_submodule(layer).get_parameter("weight")
        places = positions(grid)
        for index in entropy.permutation(len(places))[: round(share * len(places))]:
            row, column = places[index].tolist()
            weight[span(grid, row, column)] = 0.0


def withheld(grids: dict[str, Grid], share: float, order: Order, entropy: Entropy) -> dict[str, Tensor]:
    """Return which weights a pirate holds that has a share of all blocks, and lacks those withheld in an order.

    Args:
        grids: of the victim's layers, from the first to the last.
        share: of all blocks together that the pirate holds.
        order: which blocks are withheld first; within a layer it is drawn.
        entropy: of what is drawn.

    Returns:
        By layer, bool of the shape of the weights: true where held.
    """
    layers = [*grids]
    size = {layer: math.prod(grid.shape) for layer, grid in grids.items()}
    first = {
        "random": layers,
        "shallow first": layers,
        "deep first": layers[::-1],
        "largest first": sorted(layers, key=lambda layer: -size[layer]),
    }[order]
    blocks = [(layer, place) for layer in first for place in positions(grids[layer]).tolist()]
    drawn = [blocks[index] for index in entropy.permutation(len(blocks))]
    if order != "random":
        rank = {layer: number for number, layer in enumerate(first)}
        drawn.sort(key=lambda one: rank[one[0]])  # stable: within a layer as drawn
    held = {layer: torch.zeros(grid.shape, dtype=torch.bool) for layer, grid in grids.items()}
    for layer, (row, column) in drawn[round((1 - share) * len(drawn)) :]:
        held[layer][span(grids[layer], row, column)] = True
    return held


def warm_start(
    victim: Victim, held: dict[str, Tensor], public: Labelled, seed: int, ledger: Ledger, *, loot: bool
) -> nn.Module:
    """Train all layers on public images, from held weights with fresh ones in the holes, or from scratch.

    What is fresh is drawn from a seed of its own; biases and norms are fresh too: the owner keeps them.

    Args:
        victim: who was robbed.
        held: by layer, bool of the shape of its weights.
        public: the pirate's images.
        seed: of fresh weights and of the order of images.
        ledger: charged before.
        loot: whether held weights are used; without, the same training starts from scratch.

    Raises:
        InputError: there are no images, or the loss is not finite.
        SpentError: the budget does not allow it.
    """
    model = victim.kind.build(seed)
    if loot:
        with torch.no_grad():
            for layer, mask in held.items():
                own = model.get_submodule(layer).get_parameter("weight")
                own.copy_(torch.where(mask, victim.model.get_submodule(layer).get_parameter("weight"), own))
    images = len(public.labels)
    affordable = ledger.left() / _TUNING.cost(victim.forward_flops, images) * _TUNING.epochs if images else 1
    epochs = max(1, int(min(epochs_for(images, _TUNING.batch, _TUNING.epochs, _STEPS), affordable)))
    schedule = replace(_TUNING, epochs=epochs, mirrored=victim.kind.schedule.mirrored)
    with seeded(seed):
        fit(model, *public, schedule, Entropy(seed), ledger)
    return model
