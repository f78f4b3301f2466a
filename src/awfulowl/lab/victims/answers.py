"""What a victim and networks stolen from it answer to the same images, again and again."""

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from awfulowl.errors import ModelError
from awfulowl.lab.victims.tail import Tail, mapped
from awfulowl.limits import MIB

_BATCH: Final = 500
_MOST_ENTERED_BYTES: Final = 256 * MIB
"""Of what reaches a layer, for all images of a set: beyond that a network is asked as a whole, batch by batch."""


class Answers:
    """Remembers what a victim answers.

    Args:
        victim: in eval mode; it must not change any more, nor may images that it is shown.
    """

    def __init__(self, victim: nn.Module) -> None:
        self.victim: Final = victim
        # With the images: no others can then come where they lie.
        self._classes: Final[dict[tuple[object, ...], tuple[Tensor, Tensor]]] = {}

    def own(self, inputs: Tensor) -> Tensor:
        """Return the victim's classes (n,) of inputs (n, ...)."""
        key = inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype
        if key not in self._classes:
            self._classes[key] = inputs, predict(self.victim, inputs)
        return self._classes[key][1]

    @torch.no_grad()
    def of(self, model: nn.Module, inputs: Tensor, layers: Iterable[str] = ()) -> Tensor:
        """Return the classes (n,) that a network gives to inputs (n, ...).

        Stolen networks are often their victim up to the first layer that was attacked: cut there, they have what comes
        before in common, which is computed once (`Tail.enter`).

        Args:
            model: any network.
            inputs: images.
            layers: where it was attacked.
        """
        if model is self.victim:
            return self.own(inputs)
        attacked = set(layers)
        layer = next((name for name, _ in model.named_modules() if name in attacked), None)
        tail = None if layer is None else _cut(model, layer, inputs)
        if layer is None or tail is None:
            return predict(model, inputs)
        entered, found, own = tail.enter(inputs), [], model.get_submodule(layer)
        for start in range(0, len(inputs), _BATCH):
            part = mapped(entered, slice(start, start + _BATCH))
            found.append(tail(own(part.inputs), part.aside).argmax(1))
        return torch.cat(found)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the classes (n,) that a model gives to inputs (n, ...)."""
    return torch.cat([model(part).argmax(1) for part in torch.split(inputs, _BATCH)])


def _cut(model: nn.Module, layer: str, inputs: Tensor) -> Tail | None:
    """Return what follows a layer; None where a model cannot be cut, or too much would have to be kept."""
    try:
        tail = Tail(model, layer)
        one = tail.enter(inputs[:1])
    except ModelError:
        return None
    size = len(inputs) * sum(part.nbytes for part in (one.inputs, *one.aside))
    return tail if size <= _MOST_ENTERED_BYTES else None
