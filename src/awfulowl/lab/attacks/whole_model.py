"""Nothing is in clear, and a share of everything is held: recover the whole model from what devices hold and see.

What a device sees is worth more than what it holds: where a layer's inputs and outputs are seen, it can be learned
apart from all others. Units of a hidden layer may be renamed, so the order of the columns that were seen is not a
secret that matters: equal slices are one column, and rows follow from what enters the next layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from awfulowl.costs import TRAINING, Ledger
from awfulowl.lab.attacks.base import Attack, Recovery, Scope
from awfulowl.lab.scenes.loot import LEFT_OUT, Scene, Watched, assemble
from awfulowl.lab.sites.relearning import WHOLE, queries
from awfulowl.lab.traffic.hints import Held, Hinting, Student
from awfulowl.lab.traffic.placing import place_by_traffic
from awfulowl.lab.victims.fitting import Schedule, fit
from awfulowl.randomness import Entropy

_NEEDS: Final = frozenset({"knows_architecture", "knows_inputs", "public", "queries"})


class Hints(Attack):
    """Distil the service's answers with hints from all activations that were seen (rung P2).

    Args:
        hinting: how the student is taught.
        most_epochs: over the queries; fewer where the budget ends.
        mirrored: whether queries may be mirrored images.
    """

    name: ClassVar[str] = "hints"
    rung: ClassVar[str] = "P2"
    scope: ClassVar[Scope] = "model"
    needs: ClassVar[frozenset[str]] = _NEEDS | {"sees_inputs"}

    def __init__(self, *, hinting: Hinting | None = None, most_epochs: int = 20, mirrored: bool = False) -> None:
        self._hinting: Final = hinting or Hinting()
        self._most_epochs: Final = most_epochs
        self._mirrored: Final = mirrored

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Ask, watch, and teach a fresh student."""
        inputs, watched = watch(scene, ledger, entropy, mirrored=self._mirrored)
        placements = self.place(scene, watched, ledger)
        model = scene.build(entropy.below(1 << 62))
        held = _put(model, scene, placements)
        schedule = self._schedule(len(inputs), scene, ledger)
        numbers = torch.arange(len(inputs))
        student = Student(
            model, inputs, watched, held, self._hinting, schedule.epochs * -(-len(inputs) // schedule.batch)
        )
        try:
            fit(student, numbers, numbers, schedule, entropy, ledger, loss=student.loss)
        finally:
            student.release()
        return Recovery(weights=model.state_dict(), placements=placements)

    def place(self, scene: Scene, watched: Watched, ledger: Ledger) -> dict[str, Tensor]:
        """Return positions int64 (k, 2) of held blocks, by layer; here held blocks are not used."""
        del scene, watched, ledger
        return {}

    def _schedule(self, queries: int, scene: Scene, ledger: Ledger) -> Schedule:
        affordable = ledger.left() / (TRAINING * queries * scene.forward_flops)
        return replace(WHOLE, epochs=max(1, int(min(self._most_epochs, affordable))))


def watch(scene: Scene, ledger: Ledger, entropy: Entropy, *, mirrored: bool) -> tuple[Tensor, Watched]:
    """Return queries (n, ...), and the answers and activations that came of them.

    Raises:
        InputError: no query is left, or no operations to learn from its answer.
    """
    inputs = queries(scene, ledger, entropy, mirrored=mirrored)
    return inputs, scene.service.watch(inputs, ledger)


class HintsAndBlocks(Hints):
    """The same, with held blocks placed by traffic and kept as they are (rung P2).

    Args:
        positions: int64 (k, 2) by layer where they are known (rung P1); None: found from what was seen.
        hinting: how the student is taught.
        most_epochs: over the queries.
        mirrored: whether queries may be mirrored images.
    """

    name: ClassVar[str] = "hints-and-blocks"

    def __init__(
        self,
        *,
        positions: Mapping[str, Tensor] | None = None,
        hinting: Hinting | None = None,
        most_epochs: int = 20,
        mirrored: bool = False,
    ) -> None:
        super().__init__(hinting=hinting or Hinting(frozen=1.0), most_epochs=most_epochs, mirrored=mirrored)
        self._positions: Final = positions

    def place(self, scene: Scene, watched: Watched, ledger: Ledger) -> dict[str, Tensor]:
        """Return the positions that are known, or those that traffic tells."""
        if self._positions is not None:
            return dict(self._positions)
        return place_by_traffic(scene, watched, ledger)


@torch.no_grad()
def _put(model: nn.Module, scene: Scene, placements: Mapping[str, Tensor]) -> dict[str, Held]:
    """Put held blocks into a fresh model, and scale what is around them to their size."""
    found = {}
    for layer, placement in placements.items():
        spoils = scene.layers[layer]
        if not (placement != torch.tensor(LEFT_OUT)).any():
            continue
        own = model.get_submodule(layer).get_parameter("weight")
        weight = assemble(spoils, placement)
        ones = assemble(dataclasses.replace(spoils, blocks=tuple(map(torch.ones_like, spoils.blocks))), placement) > 0
        scale = weight[ones].square().mean().sqrt() / own.square().mean().sqrt()
        own.copy_(torch.where(ones, weight, own * scale))
        found[layer] = Held(weight, ones)
    return found
