"""An attack of your own: put every block where its largest weights meet the inputs that are on most.

owl audit digits --data digits --threat examples/threat.toml -o audit --attack examples/own_attack.py:Greedy
"""

from typing import ClassVar

import torch

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.placing import Places, place
from awfulowl.lab.victims.tail import Tail
from awfulowl.randomness import Entropy


class Greedy(Attack):
    """Assign block columns by the mean of their inputs and the mean size of the block's weights."""

    name: ClassVar[str] = "greedy"
    rung: ClassVar[str] = "P2"
    needs: ClassVar[frozenset[str]] = frozenset({"knows_architecture", "knows_other_layers", "public"})

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Score every block at every place, and assign."""
        del entropy
        spoils = scene.layers[scene.only_layer]
        tail, places = Tail(scene.model, scene.only_layer), Places(spoils.grid)
        ledger.spend("forward", len(scene.public.labels) * tail.enter_flops(scene.public.inputs[:1]))
        means = tail.enter(scene.public.inputs).inputs.abs().mean(0).reshape(spoils.grid.inputs, -1).mean(1)
        entering = torch.stack([means[column.span.start : column.span.stop].mean() for column in spoils.grid.columns])
        sizes = torch.stack([block.abs().mean() for block in spoils.blocks])
        scores = torch.outer(sizes.double(), entering[places.columns].double())
        return Recovery(placements={scene.only_layer: place(spoils, scores, places)})
