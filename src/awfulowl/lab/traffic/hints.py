"""Distillation with hints: what devices saw inside the victim teaches every layer of a student apart.

A student learns the victim's answers (Hinton, Vinyals and Dean, 2015) and, at the input of every layer, the activations
that were seen there (Romero et al., "FitNets: hints for thin deep nets", 2015). At first the true activations replace
the student's own where they were seen (teacher forcing: Williams and Zipser, 1989), so that layers learn side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.lab.scenes.loot import Watched
from awfulowl.lab.victims.fitting import distillation


@dataclass(frozen=True, kw_only=True, slots=True)
class Hinting:
    """How a student is taught: shares are of all steps, from the first one."""

    weight: float = 1.0
    """Of the hints of each layer, as the squared error over the variance of what was seen, beside the answers."""
    forced: float = 0.7
    """In which true activations replace the student's."""
    frozen: float = 0.5
    """In which held blocks stay as they are."""


class Held(NamedTuple):
    """Weights of a layer, and where they are held ones, of the same shape."""

    weight: Tensor
    mask: Tensor


class Student(nn.Module):
    """A network that is called with the numbers of queries, and learns what was seen of them.

    Args:
        network: what learns; changed.
        inputs: (n, ...), the queries.
        watched: answers and activations of all of them, in the same order.
        held: blocks in their places, by layer.
        hinting: how.
        steps: of the training: calls in training mode.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        watched: Watched,
        held: Mapping[str, Held],
        hinting: Hinting,
        steps: int,
    ) -> None:
        super().__init__()
        self.network = network
        self._inputs: Final = inputs
        self._watched: Final = watched
        self._held: Final = held
        self._hinting: Final = hinting
        self._steps: Final = max(1, steps)
        self._step = 0
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._losses: list[Tensor] = []
        self._handles: list[Any] = [
            network.get_submodule(layer).register_forward_pre_hook(self._hint(layer))
            for layer, seen in watched.seen.items()
            if bool(seen.any())
        ]
        for layer, blocks in held.items():
            weight = network.get_submodule(layer).get_parameter("weight")
            self._handles.append(weight.register_hook(self._freeze(blocks.mask)))  # type: ignore[no-untyped-call]

    def forward(self, chosen: Tensor) -> Tensor:
        """Return the student's answers (batch, classes) to the queries of these numbers (batch,)."""
        self._losses.clear()
        self._chosen = chosen
        if self.training:
            self._step += 1
            self._put_back()
        logits: Tensor = self.network(self._inputs[chosen])
        return logits

    def loss(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Return the divergence from the victim's answers, and the errors of the hints of the last call."""
        hints = torch.stack(self._losses).sum() if self._losses else torch.zeros(())
        return distillation(logits, self._watched.logits[chosen]) + self._hinting.weight * hints

    def release(self) -> None:
        """Take all hooks out of the network."""
        for handle in self._handles:
            handle.remove()

    def _within(self, share: float) -> bool:
        return self._step <= share * self._steps

    def _hint(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor | None]:
        entered, seen = self._watched.inputs[layer], self._watched.seen[layer]
        variance = entered[:, seen].var().clamp_min(torch.finfo(entered.dtype).tiny)
        shown = seen.reshape(1, -1, *[1] * (entered.dim() - 2))

        def hint(_: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor | None:
            if not self.training:
                return None
            own, true = arguments[0], entered[self._chosen]
            if own.requires_grad:
                errors = (own - true).square()[:, seen]
                self._losses.append(errors.mean() / variance)
            return torch.where(shown, true, own) if self._within(self._hinting.forced) else None

        return hint

    def _freeze(self, mask: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient.masked_fill(mask, 0.0) if self._within(self._hinting.frozen) else gradient

    @torch.no_grad()
    def _put_back(self) -> None:
        """Undo what momentum and decay did to held blocks."""
        if self._within(self._hinting.frozen):
            for layer, (weight, mask) in self._held.items():
                own = self.network.get_submodule(layer).get_parameter("weight")
                own.copy_(torch.where(mask, weight, own))
