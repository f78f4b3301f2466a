"""Undo a secret permutation of hidden units, given a network to compare with: no data, seconds."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.lab.shuffled.symmetry import Axis, Symmetry
from awfulowl.randomness import Entropy

State = Mapping[str, Tensor]
"""Tensors by their names, as `state_dict` gives them."""

_MOST_ROUNDS: Final = 100
_LEAST_GAIN: Final = 1e-12
"""Of the similarity, relative: as in the published code, what is smaller is rounding."""


class Matching(NamedTuple):
    """The permutations that bring a network closest to another, and the inner product of the two then."""

    permutations: tuple[Tensor, ...]
    similarity: float
    rounds: int


def draw_permutations(symmetry: Symmetry, entropy: Entropy) -> tuple[Tensor, ...]:
    """Return a random permutation for every group of units."""
    return tuple(torch.tensor(entropy.permutation(size)) for size in symmetry.sizes)


def permute(state: State, symmetry: Symmetry, permutations: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return a state whose unit i is the given state's unit `permutations[...][i]`; the network computes the same.

    Raises:
        InputError: the permutations are not those of the symmetry.
    """
    if [len(one) for one in permutations] != list(symmetry.sizes):
        raise InputError(f"{len(permutations)} permutations do not fit groups of {symmetry.sizes} units")
    return {name: _moved(tensor, symmetry.axes[name], permutations) for name, tensor in state.items()}


@torch.no_grad()
def match(reference: State, permuted: State, symmetry: Symmetry, entropy: Entropy) -> Matching:
    """Find the permutations that bring `permuted` closest to `reference`.

    Coordinate descent: with all other permutations as they are, the best one is a linear assignment. Source:
    Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2022, algorithm 1. It starts from the order of the network rather
    than from the identity: each permutation is first found from the tensors whose other sides are known by then, which
    is the exact inverse if one is a permuted copy of the other.

    Raises:
        InputError: the two are not of one architecture.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - an extra: only the lab needs it

    _check(reference, permuted, symmetry)
    found: list[Tensor | None] = [None] * len(symmetry.sizes)
    for index in range(len(symmetry.sizes)):
        scores = _scores(reference, permuted, symmetry, index, found)
        found[index] = torch.as_tensor(linear_sum_assignment(scores.numpy(), maximize=True)[1])
    best = [one for one in found if one is not None]
    similarity = _similarity(reference, permuted, symmetry, best)
    for rounds in range(_MOST_ROUNDS):
        before = similarity
        for index in entropy.permutation(len(best)):
            scores = _scores(reference, permuted, symmetry, index, best)
            tried = list(best)
            tried[index] = torch.as_tensor(linear_sum_assignment(scores.numpy(), maximize=True)[1])
            # Where a tensor has the same units on two sides the assignment may make things worse.
            reached = _similarity(reference, permuted, symmetry, tried)
            if reached > similarity:
                best, similarity = tried, reached
        if similarity - before <= _LEAST_GAIN * abs(similarity):
            return Matching(tuple(best), similarity, rounds + 1)
    return Matching(tuple(best), similarity, _MOST_ROUNDS)


def _scores(
    reference: State, permuted: State, symmetry: Symmetry, index: int, known: Sequence[Tensor | None]
) -> Tensor:
    """Return what unit i of the reference and unit j of the other have in common, summed over all tensors.

    Tensors with a side whose permutation is not known yet are left out.
    """
    total = torch.zeros(symmetry.sizes[index], symmetry.sizes[index], dtype=torch.float64)
    for name, axes in symmetry.axes.items():
        for dimension, axis in enumerate(axes):
            if axis is None or axis.permutation != index:
                continue
            others = [one for place, one in enumerate(axes) if one is not None and place != dimension]
            if any(known[one.permutation] is None for one in others):
                continue
            rest = tuple(None if place == dimension else one for place, one in enumerate(axes))
            moved = _moved(permuted[name], rest, known)
            left, right = (_units(tensor, dimension, symmetry.sizes[index]) for tensor in (reference[name], moved))
            total += left @ right.T
    return total


def _units(tensor: Tensor, dimension: int, count: int) -> Tensor:
    return tensor.double().movedim(dimension, 0).reshape(count, -1)


def _moved(tensor: Tensor, axes: Sequence[Axis | None], permutations: Sequence[Tensor | None]) -> Tensor:
    for dimension, axis in enumerate(axes):
        if axis is not None and (chosen := permutations[axis.permutation]) is not None:
            within = torch.arange(axis.repeats)
            tensor = tensor.index_select(dimension, (chosen[:, None] * axis.repeats + within).flatten())
    return tensor


def _similarity(reference: State, permuted: State, symmetry: Symmetry, permutations: Sequence[Tensor]) -> float:
    moving = [name for name, axes in symmetry.axes.items() if any(axes)]
    return sum(
        float((reference[name].double() * _moved(permuted[name], symmetry.axes[name], permutations)).sum())
        for name in moving
    )


def _check(reference: State, permuted: State, symmetry: Symmetry) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (reference, permuted)]
    if shapes[0] != shapes[1] or shapes[0].keys() != symmetry.axes.keys():
        raise InputError("the two networks have other tensors than the one whose symmetry was found")
    for name, tensor in (*reference.items(), *permuted.items()):
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds numbers that are not finite")
