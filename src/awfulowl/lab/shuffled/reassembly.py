"""Put a residual network together again from its shuffled layers and its answers to known inputs.

Source: Park, "I Dropped a Neural Net", 2026. Pairing: training for stable gradients leaves the product B A of the two
layers of a block with a negative diagonal, so |tr B A| / |B A| tells partners from strangers, and one linear
assignment pairs them all. Ordering: sort by how much a block changes the inputs; then rank by all pairwise exchanges
(Bradley and Terry's model); then repair by exchanging neighbours while the answers come closer. What is added here
for networks on which this stops early: blocks are also taken out and put back elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.lab.shuffled.puzzle import Piece

_ROWS: Final = 256
_RANK_ROUNDS: Final = 5
_RANK_STEPS: Final = 200
_PRIOR: Final = 0.1
"""Wins that everybody has over everybody: with none, who never lost has no finite rank."""

_EXACT: Final = 1e-9
"""Of the variance of the answers: rounding of float32, 1e-14 squared, with room for deep networks."""


class Assembly(NamedTuple):
    """Which pieces are the two layers of each block, first to last, and which is the last layer.

    `errors` are the mean squared errors of the answers: as seeded, as ranked, as repaired. `passes` are passes of one
    row through the whole network.
    """

    blocks: tuple[tuple[int, int], ...]
    last: int
    errors: tuple[float, float, float]
    passes: float

    @property
    def error(self) -> float:
        """Mean squared error of the answers."""
        return self.errors[-1]


def dominance(leaving: Sequence[Tensor], entering: Sequence[Tensor]) -> Tensor:
    """Return |tr B A| / |B A| (Frobenius) for every B (width, inner) and every A (inner, width).

    Source: Park, 2026, diagonal dominance ratio.
    """
    # |B A|² = tr(BᵀB A Aᵀ) and tr(B A) = Σ B ∘ Aᵀ: no product of every B with every A is made.
    second, first = torch.stack([*leaving]).double(), torch.stack([*entering]).double()
    traces = second.flatten(1) @ first.transpose(1, 2).flatten(1).T
    squares = (second.transpose(1, 2) @ second).flatten(1) @ (first @ first.transpose(1, 2)).flatten(1).T
    return traces.abs() / squares.clamp_min(torch.finfo(torch.float64).tiny).sqrt()


@torch.no_grad()
def reassemble(pieces: Sequence[Piece], inputs: Tensor, answers: Tensor, *, rows: int = _ROWS) -> Assembly:
    """Put the pieces in their places.

    Args:
        pieces: blocks' layers (inner, width) and (width, inner), as many of each, and one more of another shape.
        inputs: (n, width).
        answers: what the network answered, (n, outputs).
        rows: of the inputs that are used while blocks are ranked; repair uses all.

    Raises:
        InputError: the pieces are not those of such a network, or inputs and answers do not fit it.
    """
    entering, leaving, last = _sorted(pieces)
    _check(pieces[last], inputs, answers)
    partners = pair([pieces[index].weight for index in leaving], [pieces[index].weight for index in entering])
    blocks = [(entering[mine], leaving[other]) for mine, other in enumerate(partners)]
    network = _Blocks([(pieces[one], pieces[other]) for one, other in blocks], pieces[last])
    few = network.task(inputs[:rows], answers[:rows])
    order = _seed(few)
    every = network.task(inputs, answers)
    seeded = every.error(order)
    order = _rank(few, order)
    ranked = every.error(order)
    order = _repair(every, order)
    return Assembly(
        tuple(blocks[index] for index in order), last, (seeded, ranked, every.error(order)), few.passes + every.passes
    )


def pair(leaving: Sequence[Tensor], entering: Sequence[Tensor]) -> list[int]:
    """Return for each first layer the number of its partner among the second ones."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - an extra: only the lab needs it

    found = linear_sum_assignment(dominance(leaving, entering).T.numpy(), maximize=True)[1]
    return [int(index) for index in found]


class _Task:
    """The error of an order of blocks on given inputs; what was passed through is counted."""

    def __init__(self, blocks: Sequence[tuple[Piece, Piece]], last: Piece, inputs: Tensor, answers: Tensor) -> None:
        self._blocks = blocks
        self._last = last
        self.inputs = inputs
        self.answers = answers
        self.passes = 0.0
        self.exact = _EXACT * float(answers.double().var(dim=0).sum())

    def __len__(self) -> int:
        return len(self._blocks)

    def through(self, block: int, x: Tensor) -> Tensor:
        """Return (..., width) after one block."""
        self.passes += x.numel() / x.shape[-1] / len(self)
        first, second = self._blocks[block]
        return x + functional.linear(
            functional.relu(functional.linear(x, first.weight, first.bias)), second.weight, second.bias
        )

    def states(self, order: Sequence[int]) -> list[Tensor]:
        """Return what enters each block of an order, and what leaves the last one."""
        found = [self.inputs]
        for block in order:
            found.append(self.through(block, found[-1]))
        return found

    def errors(self, leaving: Tensor) -> Tensor:
        """Return the mean squared errors of (..., n, width) that leave the last block."""
        answers = functional.linear(leaving, self._last.weight, self._last.bias)
        return (answers - self.answers).square().mean(dim=(-2, -1))

    def error(self, order: Sequence[int]) -> float:
        """Return the mean squared error of the answers."""
        return float(self.errors(self.states(order)[-1]))

    def tail(self, order: Sequence[int], x: Tensor) -> float:
        """Return the mean squared error when x enters the last blocks of an order."""
        for block in order:
            x = self.through(block, x)
        return float(self.errors(x))


class _Blocks(NamedTuple):
    blocks: Sequence[tuple[Piece, Piece]]
    last: Piece

    def task(self, inputs: Tensor, answers: Tensor) -> _Task:
        return _Task(self.blocks, self.last, inputs, answers)


def _seed(task: _Task) -> list[int]:
    """Sort blocks by how much they change the inputs, upwards or downwards: whichever answers better."""
    changes = [float((task.through(block, task.inputs) - task.inputs).norm()) for block in range(len(task))]
    upwards = sorted(range(len(task)), key=changes.__getitem__)
    return min(upwards, upwards[::-1], key=task.error)


def _rank(task: _Task, order: list[int]) -> list[int]:
    """Rank blocks by exchanges of all pairs, again from the new order while that helps."""
    error = task.error(order)
    for _ in range(_RANK_ROUNDS):
        tried = _ranked(_wins(task, order))
        reached = task.error(tried)
        if not reached < error:
            break
        order, error = tried, reached
    return order


def _wins(task: _Task, order: Sequence[int]) -> Tensor:
    """Return 1 at [a, b] where the answers are better with block a before block b, all others as they are."""
    wins = torch.zeros(len(order), len(order), dtype=torch.float64)
    states = task.states(order)
    error = task.errors(states[-1])
    for place in range(len(order) - 1):
        later = range(place + 1, len(order))
        # One copy of the stream for each partner: it differs in two blocks only, so the rest is one product.
        x = torch.stack([task.through(order[other], states[place]) for other in later])
        for at in later:
            own = at - place - 1
            moved = task.through(order[place], x[own])
            x = task.through(order[at], x)
            x[own] = moved
        for other, swapped in zip(later, task.errors(x), strict=True):
            first, second = (order[place], order[other])[:: 1 if bool(error <= swapped) else -1]
            wins[first, second] = 1.0
    return wins


def _ranked(wins: Tensor) -> list[int]:
    """Return the players of a tournament, best first, by Bradley and Terry's model.

    Source: Hunter, "MM algorithms for generalized Bradley-Terry models", 2004, equation 3.
    """
    wins = wins + _PRIOR * (1 - torch.eye(len(wins), dtype=wins.dtype))
    games, strength = wins + wins.T, torch.ones(len(wins), dtype=wins.dtype)
    for _ in range(_RANK_STEPS):
        strength = wins.sum(dim=1) / (games / (strength[:, None] + strength)).sum(dim=1)
        strength /= strength.sum()
    order: list[int] = torch.argsort(strength, descending=True, stable=True).tolist()
    return order


def _repair(task: _Task, order: list[int]) -> list[int]:
    """Exchange neighbours, then move single blocks, while the error falls."""
    moves: Sequence[Callable[[int], Iterator[tuple[int, int]]]] = (_neighbours, _elsewhere)
    error, kind = task.error(order), 0
    while kind < len(moves) and error > task.exact:
        order, reached = _sweep(task, order, error, moves[kind])
        kind = 0 if reached < error else kind + 1
        error = reached
    return order


def _sweep(
    task: _Task, order: list[int], error: float, moves: Callable[[int], Iterator[tuple[int, int]]]
) -> tuple[list[int], float]:
    """Try every move once, and keep those that help."""
    states = task.states(order)
    for source, target in moves(len(order)):
        tried = list(order)
        tried.insert(target, tried.pop(source))
        start = min(source, target)
        reached = task.tail(tried[start:], states[start])
        if reached < error:
            order, error = tried, reached
            states[start + 1 :] = _continued(task, order[start:], states[start])
    return order, error


def _continued(task: _Task, order: Sequence[int], x: Tensor) -> list[Tensor]:
    found = []
    for block in order:
        x = task.through(block, x)
        found.append(x)
    return found


def _neighbours(count: int) -> Iterator[tuple[int, int]]:
    return ((place, place + 1) for place in range(count - 1))


def _elsewhere(count: int) -> Iterator[tuple[int, int]]:
    return ((source, target) for source in range(count) for target in range(count) if abs(source - target) > 1)


def _sorted(pieces: Sequence[Piece]) -> tuple[list[int], list[int], int]:
    """Return the first layers of blocks, the second ones, and the last layer of the network, by their shapes."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, piece in enumerate(pieces):
        by_shape.setdefault(tuple(piece.weight.shape), []).append(index)
    wanted = (len(pieces) - 1) // 2
    for (inner, width), entering in by_shape.items():
        leaving = by_shape.get((width, inner), [])
        if inner > width and len(entering) == len(leaving) == wanted and len(pieces) == 2 * wanted + 1:
            (last,) = set(range(len(pieces))) - {*entering, *leaving}
            if pieces[last].weight.shape[1] == width:
                return entering, leaving, last
    shapes = {f"{len(found)} x {shape}" for shape, found in by_shape.items()}
    raise InputError(
        f"pieces of shapes {', '.join(sorted(shapes))} are not the blocks of a residual network and its end"
    )


def _check(last: Piece, inputs: Tensor, answers: Tensor) -> None:
    outputs, width = last.weight.shape
    if inputs.shape != (len(inputs), width) or answers.shape != (len(inputs), outputs) or not len(inputs):
        raise InputError(
            f"inputs {tuple(inputs.shape)} and answers {tuple(answers.shape)} do not fit a network of {width} inputs "
            f"and {outputs} outputs"
        )
