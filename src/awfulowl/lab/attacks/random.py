"""Random positions: what an attack has to beat."""

from typing import ClassVar

import torch

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.loot import Scene, Spoils
from awfulowl.randomness import Entropy


class RandomPositions(Attack):
    """Put every block on a random place that fits it (rung P2, the standard line)."""

    name: ClassVar[str] = "random"
    rung: ClassVar[str] = "P2"

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Draw places without replacement."""
        del ledger
        return Recovery(placements={layer: at_random(spoils, entropy) for layer, spoils in scene.layers.items()})


def at_random(spoils: Spoils, entropy: Entropy) -> torch.Tensor:
    """Return a random placement int64 (k, 2) of held blocks."""
    placement = torch.full((len(spoils), 2), -1, dtype=torch.int64)
    for held, places in spoils.alike():
        placement[held] = places[entropy.permutation(len(places))[: len(held)]]
    return placement
