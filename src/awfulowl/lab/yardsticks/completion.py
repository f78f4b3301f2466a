"""What a pirate makes of a placement: holes are filled from the floor's weights, and what was unknown is tuned."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from torch import Tensor, nn

from awfulowl.costs import TRAINING, Ledger, SpentError
from awfulowl.lab.attacks.base import Recovery, network
from awfulowl.lab.scenes.grading import share_right
from awfulowl.lab.scenes.loot import Scene, assemble
from awfulowl.lab.sites.relearning import relearn
from awfulowl.lab.victims.fitting import Schedule
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy

TUNING: Final = Schedule(epochs=5, batch=128, lr=0.01, momentum=0.9, weight_decay=5e-4)


class Completed(NamedTuple):
    """The network that a pirate ends with, and how it came about: as placed, filled, or tuned."""

    model: nn.Module
    way: str


def complete(scene: Scene, recovery: Recovery, fill: Mapping[str, Tensor], ledger: Ledger, seed: int) -> Completed:
    """Return the best of three networks by the pirate's validation images: as recovered, filled, and tuned.

    Args:
        scene: what the pirate has.
        recovery: with placements; without any it is returned as it is.
        fill: weights that lie under the blocks, by name in the state: those of floor F1.
        ledger: charged with evaluations and tuning; what it does not allow is left out.
        seed: of the order of images.
    """
    found = [Completed(network(scene, recovery), "as placed")]
    if recovery.placements and fill:
        filled = {**fill, **recovery.weights}
        for layer, placement in recovery.placements.items():
            name = f"{layer}.weight"
            filled[name] = assemble(scene.layers[layer], placement, filled[name])
        found.append(Completed(network(scene, Recovery(weights=filled)), "filled"))
        tuned = _tuned(scene, filled, ledger, seed)
        if tuned is not None:
            found.append(Completed(network(scene, Recovery(weights=tuned)), "tuned"))
    return _best(scene, found, ledger)


def _tuned(scene: Scene, start: Mapping[str, Tensor], ledger: Ledger, seed: int) -> dict[str, Tensor] | None:
    """Return weights after a short training, or None where there is nothing to learn from or too little to spend."""
    if scene.threat.lacking({"public", "knows_labels"}):
        return None
    try:
        with seeded(seed):
            return relearn(scene, start, scene.public, TUNING, Entropy(seed), ledger)
    except SpentError:
        return None


def _best(scene: Scene, found: list[Completed], ledger: Ledger) -> Completed:
    """Return the best on validation images; without labels the last: more was done to it."""
    images = len(scene.validation.labels)
    cost = scene.forward_flops * images * len(found)
    if not images or bool((scene.validation.labels < 0).any()) or not ledger.affords(flops=cost):
        return found[-1]
    ledger.spend("validation", cost)
    scores = [share_right(one.model, scene.validation) for one in found]
    return found[max(range(len(found)), key=lambda index: (scores[index], index))]


def completion_flops(scene: Scene) -> float:
    """Return the most operations that a completion takes: tuning, and three looks at the validation images."""
    images = TRAINING * TUNING.epochs * len(scene.public.labels) + 4 * len(scene.validation.labels)
    return scene.forward_flops * (images + len(scene.public.labels))
