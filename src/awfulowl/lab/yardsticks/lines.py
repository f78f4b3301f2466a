"""The standard lines of every table: what a number has to be read against."""

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from awfulowl.lab.attacks.base import Recovery, network
from awfulowl.lab.attacks.random import at_random
from awfulowl.lab.scenes.grading import Grade, grade
from awfulowl.lab.scenes.loot import Scene, Truth
from awfulowl.randomness import Entropy

VICTIM: Final = "victim"
ZEROED: Final = "zeroed"
RANDOM: Final = "random positions"
TRUE: Final = "true positions"
CEILING: Final = "ceiling"
LINES: Final = (VICTIM, ZEROED, RANDOM, TRUE, CEILING)
"""In the order in which they are shown; floors and controls stand beside them."""

FOREIGN: Final = "foreign network"
SHUFFLED: Final = "shuffled blocks"
PUBLIC_ONLY: Final = "public-only network"
CONTROLS: Final = (FOREIGN, SHUFFLED, PUBLIC_ONLY)
"""Whose blocks go through the pipeline of the chosen attack; none shares a seed with the victim."""
OTHER_FOREIGN: Final = "another foreign network"
"""What the foreign network is judged against, as the victim is judged against the foreign one."""


def line(name: str, scene: Scene, truth: Truth, seed: int) -> Grade:
    """Return how right the network of a line is; all but the ceiling, which is trained (see `audit.cells`).

    Raises:
        KeyError: there is no such line.
    """
    if name == VICTIM:
        return grade(truth.victim, {}, scene, truth)
    recovery = _RECOVERIES[name](scene, truth, seed)
    return grade(network(scene, recovery), recovery.placements, scene, truth)


def true_positions(truth: Truth) -> Recovery:
    """Return what no attack can beat: every held block in its place."""
    return Recovery(placements=truth.positions)


def _zeroed(_: Scene, __: Truth, ___: int) -> Recovery:
    return Recovery()


def _random(scene: Scene, _: Truth, seed: int) -> Recovery:
    entropy = Entropy(seed)
    return Recovery(placements={layer: at_random(spoils, entropy) for layer, spoils in scene.layers.items()})


def _true(_: Scene, truth: Truth, __: int) -> Recovery:
    return true_positions(truth)


_RECOVERIES: Final = {ZEROED: _zeroed, RANDOM: _random, TRUE: _true}


@torch.no_grad()
def shuffled(scene: Scene, seed: int) -> Scene:
    """Return the scene with the entries of every held block shuffled: what their scale alone is worth."""
    chance = torch.Generator().manual_seed(Entropy(seed).below(1 << 62))

    def mixed(block: Tensor) -> Tensor:
        return block.flatten()[torch.randperm(block.numel(), generator=chance)].reshape(block.shape)

    layers = {
        layer: replace(spoils, blocks=tuple(mixed(block) for block in spoils.blocks))
        for layer, spoils in scene.layers.items()
    }
    return replace(scene, layers=layers)
