"""Train what is not known of a network, with everything that is known kept as it is."""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.costs import TRAINING, Ledger
from awfulowl.errors import InputError
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.victims.fitting import Loss, Schedule, fit
from awfulowl.lab.victims.tail import Tail
from awfulowl.randomness import Entropy

WHOLE: Final = Schedule(epochs=1, batch=64, lr=0.003, weight_decay=0.01, optimiser="adamw", warmup=0.2)
"""Of a network of which nothing is known; how many epochs there are, the budget says."""

_FEWEST_STEPS: Final = 300
"""Fewer images are shown more often."""


class _Behind(nn.Module):
    """A layer and what follows it; only the layer's parameters are its own."""

    def __init__(self, layer: nn.Module, tail: Tail) -> None:
        super().__init__()
        self.layer = layer
        self._tail = tail

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits for what enters the layer."""
        return self._tail(self.layer(x))


def epochs_for(images: int, batch: int, epochs: int, steps: int = _FEWEST_STEPS) -> int:
    """Return so many epochs, or more where those would be fewer than so many steps."""
    return max(epochs, math.ceil(steps / max(1, math.ceil(images / batch))))


def relearn(
    scene: Scene,
    start: Mapping[str, Tensor],
    examples: tuple[Tensor, Tensor],
    schedule: Schedule,
    entropy: Entropy,
    ledger: Ledger,
    *,
    loss: Loss = functional.cross_entropy,
) -> dict[str, Tensor]:
    """Train the unknown parameters of a scene's model, and return them by name.

    Where one layer is unknown, what comes before it is computed once.

    Args:
        scene: what the pirate has.
        start: values to start from, by name in the state; the others start as they are in the scene's model.
        examples: inputs (n, ...) and targets (n, ...).
        schedule: how.
        entropy: of the order.
        ledger: charged before.
        loss: a mean over images.

    Raises:
        InputError: there is nothing to learn from, or the loss is not finite.
        SpentError: the budget does not allow it.
    """
    model = scene.fresh_copy()
    model.load_state_dict({**model.state_dict(), **start})
    moving = {name: one for name, one in model.named_parameters() if name in scene.unknown}
    inputs, targets = examples
    tail = _alone(scene, model, inputs)
    if tail is None:
        fit(model, inputs, targets, schedule, entropy, ledger, loss=loss, only=[*moving.values()])
    else:
        ledger.spend("forward", tail.enter_flops(inputs[:1]) * len(inputs))
        behind = _Behind(model.get_submodule(scene.only_layer), tail)
        tail.train(dropout=True)
        try:
            fit(
                behind,
                tail.enter(inputs).inputs,
                targets,
                schedule,
                entropy,
                ledger,
                loss=loss,
                only=[*moving.values()],
            )
        finally:
            tail.train(dropout=False)
    return {name: one.detach().clone() for name, one in moving.items()}


def _alone(scene: Scene, model: nn.Module, inputs: Tensor) -> Tail | None:
    """Return what follows the only unknown layer, or None where there are several or something goes around it."""
    if len(scene.layers) != 1 or not len(inputs):
        return None
    layer = scene.only_layer
    if any(not name.startswith(f"{layer}.") for name in scene.unknown):
        return None
    tail = Tail(model, layer)
    return tail if not tail.enter(inputs[:1]).aside else None


def fresh_start(scene: Scene, entropy: Entropy) -> dict[str, Tensor]:
    """Return fresh weights for what is unknown."""
    state = scene.build(entropy.below(1 << 62)).state_dict()
    return {name: state[name] for name in sorted(scene.unknown)}


def queries(scene: Scene, ledger: Ledger, entropy: Entropy, *, mirrored: bool) -> Tensor:
    """Return inputs (n, ...) to ask about: as many as are left, and as one epoch over their answers can be paid for.

    Raises:
        InputError: there are none.
    """
    affordable = ledger.left() / (TRAINING * scene.forward_flops)
    count = math.floor(min(ledger.left("queries"), scene.threat.queries, affordable))
    if count < 1:
        raise InputError("no query is left, or no operations to learn from its answer")
    return augmented(scene.public.inputs, count, entropy, mirrored=mirrored)


def augmented(inputs: Tensor, count: int, entropy: Entropy, *, mirrored: bool) -> Tensor:
    """Return so many inputs made of some: themselves first, then moved (and mirrored) ones, and mixtures of two.

    Args:
        inputs: (n, ...); pictures (n, channels, height, width) are moved by up to an eighth of their side.
        count: how many are returned.
        entropy: of what is drawn.
        mirrored: whether half of the moved pictures are mirrored.
    """
    if count <= len(inputs):
        return inputs[:count]
    chance = torch.Generator().manual_seed(entropy.below(1 << 62))
    more = count - len(inputs)
    chosen = inputs[torch.randint(len(inputs), (more,), generator=chance)]
    if inputs.dim() == 4:
        chosen = _moved(chosen, chance, mirrored=mirrored)
    other = inputs[torch.randint(len(inputs), (more,), generator=chance)]
    share = torch.rand(more, generator=chance)
    share[: more // 2] = 1.0
    share = share.reshape(-1, *[1] * (inputs.dim() - 1))
    return torch.cat([inputs, share * chosen + (1 - share) * other])


def _moved(pictures: Tensor, chance: torch.Generator, *, mirrored: bool) -> Tensor:
    count, _, height, width = pictures.shape
    far = max(1, height // 8)
    larger = functional.pad(pictures, (far,) * 4, mode="replicate")
    top, left = torch.randint(2 * far + 1, (2, count), generator=chance).tolist()
    found = torch.stack([one[:, y : y + height, x : x + width] for one, y, x in zip(larger, top, left, strict=True)])
    if mirrored:
        flipped = torch.rand(count, generator=chance) < 0.5
        found = torch.where(flipped[:, None, None, None], found.flip(3), found)
    return found
