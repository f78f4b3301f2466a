"""How a device may lie: the answers that tests, benchmarks and demonstrations try to slip past the check."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["one row", "two rows", "random", "low rank", "stale", "other block", "zeros", "sign"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

StepKind = Literal["skipped", "doubled", "scaled", "stale"]
STEP_KINDS: Final[tuple[StepKind, ...]] = get_args(StepKind)

Lie = Callable[[Tensor, torch.Generator], Tensor]
"""From a right answer (batch, outputs, *space) to an error of any scale; the caller scales it."""


def _one_row(y: Tensor, generator: torch.Generator) -> Tensor:
    return _rows(y, 1, generator)


def _two_rows(y: Tensor, generator: torch.Generator) -> Tensor:
    return _rows(y, 2, generator)


def _rows(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    error = torch.zeros_like(y)
    for row in torch.randperm(y.shape[1], generator=generator)[:count]:
        error[:, row] = torch.randn(y[:, row].shape, generator=generator)
    return error


def _random(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(y.shape, generator=generator)


def _low_rank(y: Tensor, generator: torch.Generator) -> Tensor:
    left = torch.randn(y.shape[0], 1, generator=generator)
    right = torch.randn(1, y[0].numel(), generator=generator)
    return (left @ right).reshape(y.shape)


def _stale(y: Tensor, generator: torch.Generator) -> Tensor:
    """The answer to another input: here, to another sample of the batch."""
    return y.roll(1, 0) - y if y.shape[0] > 1 else _random(y, generator)


def _other_block(y: Tensor, _: torch.Generator) -> Tensor:
    """The answer of another block: here, of other rows."""
    return y.roll(max(1, y.shape[1] // 2), 1) - y


def _zeros(y: Tensor, _: torch.Generator) -> Tensor:
    return -y


def _sign(y: Tensor, _: torch.Generator) -> Tensor:
    return -2 * y


_LIES: Final[Mapping[Kind, Lie]] = {
    "one row": _one_row,
    "two rows": _two_rows,
    "random": _random,
    "low rank": _low_rank,
    "stale": _stale,
    "other block": _other_block,
    "zeros": _zeros,
    "sign": _sign,
}


def falsify(y: Tensor, kind: Kind, size: float | None, generator: torch.Generator) -> Tensor:
    """Return a false answer in place of y (batch, outputs, *space).

    Args:
        y: the right answer; of integers, the error is rounded away from zero and wraps around.
        kind: of the error E.
        size: |E| / |y| of each sample; None leaves the error as large as the kind makes it.
        generator: of the error.
    """
    if not y.is_floating_point():
        error = falsify(y.double(), kind, size, generator) - y.double()
        return (y.to(torch.int64) + (error.sign() * error.abs().ceil()).to(torch.int64)).to(y.dtype)
    error = _LIES[kind](y, generator)
    if size is not None:
        flat, right = error.flatten(1), y.flatten(1)
        scale = size * right.norm(dim=1) / flat.norm(dim=1).clamp_min(torch.finfo(y.dtype).tiny)
        error = (flat * scale[:, None]).reshape(y.shape)
    return y + error


def _happens(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


class Liar:
    """Falsifies answers of a worker (`Worker.tamper`), and keeps count; every one, or with some probability.

    `requests` are the ids of those that were answered falsely: where the right answer is zero, so may the lie be.
    """

    def __init__(self, kind: Kind, size: float | None, probability: float = 1.0, seed: int = 0) -> None:
        self.requests: list[int] = []
        self._kind = kind
        self._size = size
        self._probability = probability
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def told(self) -> int:
        """How many answers were falsified."""
        return len(self.requests)

    def __call__(self, request: int, answers: list[Tensor]) -> list[Tensor]:
        """Return false answers to a request, or the right ones."""
        if not _happens(self._probability, self._generator):
            return answers
        false = [falsify(y, self._kind, self._size, self._generator) for y in answers]
        if not all(map(torch.equal, false, answers)):
            self.requests.append(request)
        return false


class Misstep:
    """Falsifies the gradients that a device steps along (`Learner.tamper`); every time, or with some probability."""

    def __init__(self, kind: StepKind, size: float = 0.1, probability: float = 1.0, seed: int = 0) -> None:
        """Prepare to lie: `size` is by how much scaled gradients are longer."""
        self.told = 0
        self._kind = kind
        self._size = size
        self._probability = probability
        self._generator = torch.Generator().manual_seed(seed)
        self._last: dict[int, Tensor] = {}

    def __call__(self, block: int, gradient: Tensor) -> None:
        """Falsify the gradient of a block in place; stale ones are those of the step before."""
        last = self._last.get(block)
        if self._kind == "stale":
            self._last[block] = gradient.clone()
        if not _happens(self._probability, self._generator):
            return
        self.told += self._kind != "stale" or last is not None
        if self._kind == "skipped":
            gradient.zero_()
        elif self._kind == "doubled":
            gradient.mul_(2)
        elif self._kind == "scaled":
            gradient.mul_(1 + self._size)
        elif last is not None:
            gradient.copy_(last)
