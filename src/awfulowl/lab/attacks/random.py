"""Random positions: what an attack has to beat."""

from typing import ClassVar

import torch

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.scenes.loot import Scene, Spoils
from awfulowl.lab.sites.placing import Places
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
    places, chosen = Places(spoils.grid), torch.empty(len(spoils), dtype=torch.int64)
    for held, room in places.alike(spoils.blocks):
        chosen[held] = torch.tensor(room)[entropy.permutation(len(room))[: len(held)]]
    return places.positions[chosen]
