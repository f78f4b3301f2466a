"""Floors: the best that a pirate can do without any device, with the same knowledge, data, queries and compute.

A floor is an attack that looks at nothing stolen, so it is run, limited and graded as attacks are.
"""

from typing import ClassVar, Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.costs import TRAINING, Ledger
from awfulowl.lab.attacks.base import Attack, Recovery, Scope
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.sites.relearning import WHOLE, epochs_for, fresh_start, queries, relearn
from awfulowl.lab.sites.site import UNKNOWN_BIAS, make_site
from awfulowl.lab.sites.surrogates import Retraining, retrain
from awfulowl.lab.victims.fitting import Loss, Schedule, distillation, fit
from awfulowl.randomness import Entropy

_LABELLED: Final = frozenset({"knows_architecture", "knows_inputs", "knows_labels", "public"})
_MOST_EPOCHS: Final = 100
"""More of them over few images teach nothing."""

LAYER: Final = Schedule(epochs=15, batch=128, lr=0.05, momentum=0.9, weight_decay=5e-4)


class MissingLayers(Attack):
    """Train the missing layers on public images, between the layers that are known (floor F1)."""

    name: ClassVar[str] = "F1 missing layers"
    rung: ClassVar[str] = "P1"
    scope: ClassVar[Scope] = "layer"
    needs: ClassVar[frozenset[str]] = _LABELLED | {"knows_other_layers"}

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Retrain one layer from zero, or several together from fresh weights."""
        images = len(scene.public.labels)
        epochs = epochs_for(images, LAYER.batch, LAYER.epochs)
        if len(scene.layers) == 1:
            layer = scene.only_layer
            site = make_site(scene, layer, ledger)
            affordable = ledger.left() / Retraining(epochs=1).flops(site)
            retraining = Retraining(epochs=max(1, int(min(epochs, affordable))))
            return Recovery(
                weights={f"{layer}.weight": retrain(site, retraining, ledger, entropy), **_guessed_bias(scene, layer)}
            )
        schedule = _within(LAYER, epochs, images * scene.forward_flops, ledger)
        return Recovery(weights=relearn(scene, fresh_start(scene, entropy), scene.public, schedule, entropy, ledger))


def _guessed_bias(scene: Scene, layer: str) -> dict[str, Tensor]:
    """Return the bias that `retrain` learned with, where none is known."""
    name = f"{layer}.bias"
    if name not in scene.unknown:
        return {}
    return {name: torch.full_like(scene.model.state_dict()[name], UNKNOWN_BIAS)}


class WholeFromPublic(Attack):
    """Train a fresh network on public images alone (floor F1).

    Args:
        mirrored: whether images may be mirrored.
    """

    name: ClassVar[str] = "F1 all layers"
    rung: ClassVar[str] = "P1"
    scope: ClassVar[Scope] = "any"
    needs: ClassVar[frozenset[str]] = _LABELLED

    def __init__(self, *, mirrored: bool = False) -> None:
        self._mirrored: Final = mirrored

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Train as long as the budget allows."""
        model = scene.build(entropy.below(1 << 62))
        _train(model, scene.public, scene, ledger, entropy, mirrored=self._mirrored)
        return Recovery(weights=model.state_dict())


class Distilled(Attack):
    """Train what is unknown on the service's answers to as many queries as are allowed (floor F2).

    Args:
        mirrored: whether images may be mirrored.
    """

    name: ClassVar[str] = "F2 distilled"
    rung: ClassVar[str] = "P1"
    scope: ClassVar[Scope] = "any"
    needs: ClassVar[frozenset[str]] = frozenset({"knows_architecture", "knows_inputs", "public", "queries"})

    def __init__(self, *, mirrored: bool = False) -> None:
        self._mirrored: Final = mirrored

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Ask about public images and variations of them, and learn the answers."""
        inputs, answers = asked(scene, ledger, entropy, mirrored=self._mirrored)
        if scene.threat.knows_other_layers:
            schedule = _within(LAYER, LAYER.epochs, len(inputs) * scene.forward_flops, ledger)
            start = fresh_start(scene, entropy)
            weights = relearn(scene, start, (inputs, answers), schedule, entropy, ledger, loss=distillation)
            return Recovery(weights=weights)
        model = scene.build(entropy.below(1 << 62))
        _train(model, (inputs, answers), scene, ledger, entropy, loss=distillation)
        return Recovery(weights=model.state_dict())


class FromBase(Attack):
    """Start from a public network of the same task, and learn the service's answers, or labels without (floor F3).

    Args:
        base: the public network.
        mirrored: whether images may be mirrored.
    """

    name: ClassVar[str] = "F3 base model"
    rung: ClassVar[str] = "P1"
    scope: ClassVar[Scope] = "any"
    needs: ClassVar[frozenset[str]] = frozenset({"knows_architecture", "knows_inputs", "public", "knows_base_model"})

    def __init__(self, base: nn.Module, *, mirrored: bool = False) -> None:
        self._base: Final = base
        self._mirrored: Final = mirrored

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Fine-tune the base model."""
        model = scene.build(entropy.below(1 << 62))
        model.load_state_dict(self._base.state_dict())
        if scene.threat.grants("queries"):
            answered = asked(scene, ledger, entropy, mirrored=self._mirrored)
            _train(model, answered, scene, ledger, entropy, loss=distillation, rate=WHOLE.lr / 3)
        elif scene.threat.grants("knows_labels"):
            _train(model, scene.public, scene, ledger, entropy, rate=WHOLE.lr / 3, mirrored=self._mirrored)
        return Recovery(weights=model.state_dict())


def floors(*, base: nn.Module | None, mirrored: bool) -> list[Attack]:
    """Return every floor; F3 only where there is a base model."""
    found: list[Attack] = [MissingLayers(), WholeFromPublic(mirrored=mirrored), Distilled(mirrored=mirrored)]
    return found if base is None else [*found, FromBase(base, mirrored=mirrored)]


def asked(scene: Scene, ledger: Ledger, entropy: Entropy, *, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Return inputs (n, ...) and answers (n, classes) to them, as many as queries and operations allow."""
    inputs = queries(scene, ledger, entropy, mirrored=mirrored)
    return inputs, scene.service.ask(inputs, ledger)


def _train(
    model: nn.Module,
    examples: tuple[Tensor, Tensor],
    scene: Scene,
    ledger: Ledger,
    entropy: Entropy,
    *,
    loss: Loss = functional.cross_entropy,
    rate: float = WHOLE.lr,
    mirrored: bool = False,
) -> None:
    inputs, targets = examples
    whole = replace(WHOLE, lr=rate, mirrored=mirrored)
    schedule = _within(whole, _MOST_EPOCHS, len(inputs) * scene.forward_flops, ledger)
    fit(model, inputs, targets, schedule, entropy, ledger, loss=loss)


def _within(schedule: Schedule, epochs: int, forward: float, ledger: Ledger) -> Schedule:
    """Return a schedule of at most so many epochs within the budget; `forward` operations take all images once."""
    affordable = ledger.left() / (TRAINING * forward)
    return replace(schedule, epochs=max(1, int(min(epochs, affordable))))
