"""The interface of attacks: the author writes `recover`; everything that must be the same for all is done here."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, final

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger, SpentError
from awfulowl.errors import InputError
from awfulowl.lab.scenes.grading import Grade, grade
from awfulowl.lab.scenes.loot import LEFT_OUT, Scene, Truth, assemble, positions
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy

Scope = Literal["layer", "model", "any"]
"""What an attack is about: scattered layers between known ones, a model of which nothing is in clear, or both."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recovery:
    """What an attack made of a scene.

    `placements` are int64 (k, 2) by layer: row and column of every held block, distinct, (-1, -1) for a block that is
    left out. `weights` are entries of the state of the model that were recovered otherwise; where a layer has both,
    blocks lie on top of its weights. Layers with neither stay as the pirate knows them.
    """

    placements: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """An attack's recovery, the network that it gives, how right that is, and what it cost.

    `cost` is by unit: flops, evaluations, queries, bytes, gpu_hours; `seconds` is the only number that equal seeds do
    not repeat.
    """

    attack: str
    seed: int
    recovery: Recovery
    model: nn.Module
    grade: Grade
    cost: Mapping[str, float]
    by_kind: Mapping[str, int]
    seconds: float


class Attack(ABC):
    """A way to make something of loot.

    A subclass gives a name, the rung of the papers' ladder that it stands on, the fields of the threat model that it
    needs, and `recover`. Options are arguments of its constructor, all with defaults.
    """

    name: ClassVar[str]
    rung: ClassVar[str]
    scope: ClassVar[Scope] = "layer"
    needs: ClassVar[frozenset[str]] = frozenset({"knows_architecture"})

    @abstractmethod
    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Make what can be made of a scene.

        Args:
            scene: all that may be looked at; nothing of it is changed.
            ledger: counts operations, evaluations and queries *before* they are done. It raises `SpentError` at the
                end of a budget; an attack that has something by then asks `affords` first and returns that.
            entropy: every random number; PyTorch's global generator is seeded as well.
        """

    @final
    def __call__(self, scene: Scene, truth: Truth, *, seed: int, budget: Ledger | None = None) -> Outcome:
        """Run the attack and grade it.

        Args:
            scene: what the pirate has.
            truth: what only the grader sees.
            seed: of everything random; equal seeds give equal numbers.
            budget: a fresh ledger; without one, nothing but the queries of the threat model is limited.

        Raises:
            InputError: the threat model does not grant what the attack needs, the budget ended before there was an
                answer, or the answer is none.
        """
        self.check_granted(scene)
        ledger = Ledger(queries=scene.threat.queries) if budget is None else budget
        started = time.perf_counter()
        try:
            with seeded(seed):
                recovery = self.recover(scene, ledger, Entropy(seed))
        except SpentError as error:
            raise InputError(f"attack {self.name}: the budget ended before there was an answer: {error}") from error
        seconds = time.perf_counter() - started
        try:
            check(recovery, scene)
        except InputError as error:
            raise InputError(f"attack {self.name}: {error}") from error
        model = network(scene, recovery)
        return Outcome(
            attack=self.name,
            seed=seed,
            recovery=recovery,
            model=model,
            grade=grade(model, recovery.placements, scene, truth),
            cost=ledger.cost(),
            by_kind=ledger.by_kind,
            seconds=seconds,
        )

    @final
    def check_granted(self, scene: Scene) -> None:
        """Refuse a scene that lacks what the attack needs.

        Raises:
            InputError: a field of the threat model is not granted, or the scene is of another scope.
        """
        scene.threat.demand(f"attack {self.name}", self.needs)
        whole = not scene.threat.knows_other_layers
        if self.scope != "any" and whole != (self.scope == "model"):
            raise InputError(
                f"attack {self.name} is for {_SCOPES[self.scope]}: set knows_other_layers = {str(whole).lower()}"
            )


_SCOPES: Final[Mapping[Scope, str]] = {
    "layer": "layers between known ones",
    "model": "a model of which no layer is known",
}


def check(recovery: Recovery, scene: Scene) -> None:
    """Refuse what is no answer: other layers or shapes, places twice or outside the grid, numbers that are not finite.

    Raises:
        InputError: it is none.
    """
    for layer, placement in recovery.placements.items():
        if layer not in scene.layers:
            raise InputError(f"it places blocks of {layer!r}, which is not attacked")
        _check_placement(layer, placement, scene)
    state = scene.model.state_dict()
    for name, weights in recovery.weights.items():
        if name not in state or state[name].shape != weights.shape:
            raise InputError(f"it recovers {name!r} of shape {tuple(weights.shape)}, which the model has not")
        if weights.is_floating_point() and not torch.isfinite(weights).all():
            raise InputError(f"it recovers {name!r} with numbers that are not finite")


def _check_placement(layer: str, placement: Tensor, scene: Scene) -> None:
    spoils = scene.layers[layer]
    if placement.dtype != torch.int64 or placement.shape != (len(spoils), 2):
        raise InputError(
            f"its placement of {layer!r} is {tuple(placement.shape)} of {placement.dtype}, not ({len(spoils)}, 2) of "
            "torch.int64"
        )
    placed = [(row, column) for row, column in placement.tolist() if (row, column) != LEFT_OUT]
    if len(set(placed)) < len(placed):
        raise InputError(f"it places two blocks of {layer!r} on each other")
    there = {(row, column) for row, column in positions(spoils.grid).tolist()}
    outside = next((place for place in placed if place not in there), None)
    if outside is not None:
        raise InputError(f"it places a block of {layer!r} at row {outside[0]}, column {outside[1]}, outside the grid")
    assemble(spoils, placement)


def network(scene: Scene, recovery: Recovery) -> nn.Module:
    """Return the network that a recovery gives: what is known, recovered weights over it, placed blocks on top."""
    model = scene.fresh_copy()
    state = model.state_dict()
    for name, weights in recovery.weights.items():
        state[name] = weights.detach()
    for layer, placement in recovery.placements.items():
        name = f"{layer}.weight"
        state[name] = assemble(scene.layers[layer], placement, state[name])
    model.load_state_dict(state)
    return model.eval()
