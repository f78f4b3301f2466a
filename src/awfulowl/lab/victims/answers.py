"""What a victim and networks stolen from it answer to the same images, again and again."""

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from awfulowl.errors import ModelError
from awfulowl.lab.victims.tail import Entered, Tail, mapped
from awfulowl.limits import MIB

_BATCH: Final = 500
_MOST_KEPT_BYTES: Final = 256 * MIB
"""Of what reaches a layer, for all images of a set."""


_Images = tuple[int, tuple[int, ...]]
"""Where images lie and how many they are; whoever remembers by it holds them, too, so that nothing else comes there."""


class Answers:
    """Remembers what a victim answers, and what reaches a layer of it.

    Stolen networks are often the victim up to the first layer that was attacked. What comes before is computed once for
    a set of images, and not for every network that is graded.

    Args:
        victim: in eval mode; it must not change any more, nor may images that it is shown.
    """

    def __init__(self, victim: nn.Module) -> None:
        self.victim: Final = victim
        self._classes: Final[dict[_Images, tuple[Tensor, Tensor]]] = {}
        self._entered: Final[dict[tuple[_Images, str], tuple[Tensor, Entered | None]]] = {}
        self._cuts: Final[dict[str, Tail | None]] = {}

    def own(self, inputs: Tensor) -> Tensor:
        """Return the victim's classes (n,) of inputs (n, ...)."""
        key = _key(inputs)
        if key not in self._classes:
            self._classes[key] = inputs, predict(self.victim, inputs)
        return self._classes[key][1]

    @torch.no_grad()
    def of(self, model: nn.Module, inputs: Tensor, layers: Iterable[str] = ()) -> Tensor:
        """Return the classes (n,) that a network gives to inputs (n, ...).

        Args:
            model: any network; one that is the victim up to one of `layers` is asked from there on.
            inputs: images.
            layers: where it may differ.
        """
        if model is self.victim:
            return self.own(inputs)
        attacked = set(layers)
        layer = next((name for name, _ in self.victim.named_modules() if name in attacked), None)
        tail = None if layer is None else self._shared(model, layer)
        entered = None if tail is None or layer is None else self._enter(inputs, layer)
        if layer is None or tail is None or entered is None:
            return predict(model, inputs)
        found, own = [], model.get_submodule(layer)
        for start in range(0, len(inputs), _BATCH):
            part = mapped(entered, slice(start, start + _BATCH))
            found.append(tail(own(part.inputs), part.aside).argmax(1))
        return torch.cat(found)

    def _shared(self, model: nn.Module, layer: str) -> Tail | None:
        """Return what follows a layer in a network that is the victim before it; None where it is not."""
        if layer not in self._cuts:
            self._cuts[layer] = _cut(self.victim, layer)
        victim, other = self._cuts[layer], _cut(model, layer)
        return other if victim is not None and other is not None and _same(victim.head, other.head) else None

    def _enter(self, inputs: Tensor, layer: str) -> Entered | None:
        """Return what reaches a layer of the victim; None where that is too much to be kept, or cannot be cut."""
        key = _key(inputs), layer
        tail = self._cuts[layer]
        if tail is not None and key not in self._entered:
            one = tail.enter(inputs[:1])
            size = len(inputs) * sum(part.nbytes for part in (one.inputs, *one.aside))
            self._entered[key] = inputs, tail.enter(inputs) if size <= _MOST_KEPT_BYTES else None
        return self._entered[key][1] if key in self._entered else None


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the classes (n,) that a model gives to inputs (n, ...)."""
    return torch.cat([model(part).argmax(1) for part in torch.split(inputs, _BATCH)])


def _key(inputs: Tensor) -> _Images:
    return inputs.data_ptr(), tuple(inputs.shape)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two traced networks do the same with the same numbers, bit for bit."""
    own, theirs = one.state_dict(), other.state_dict()
    alike = repr(one) == repr(other) and own.keys() == theirs.keys()
    return alike and all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


def _cut(model: nn.Module, layer: str) -> Tail | None:
    try:
        return Tail(model, layer)
    except ModelError:
        return None
