"""How fine is fine enough: the founding paper's inequality as printed, and a sound threshold beside it.

As printed, an attack succeeds if `gen Pop / Pr <= 2 Size(Tr) Ep` and `Pop P(clue) >= 1`, with
`P(clue) = 1/N (1 - 1/sqrt(N))^(N-1)` for N blocks. What is wrong with it: the number that the paper gives for its own
case (0.000452 for a population of 10) is 10 (15/16)^155, without the factor 1/1568. A block in its right place is
not rare (placing k of N blocks at random puts k/N of them right on average); what is rare is a gain that shows. It
charges a whole forward pass for a candidate, where a swap changes two slices. And it knows one attack, search.

Sound: whether one right block is *detectable*, its gain over the noise of that gain, for the fitness that is used; and
the largest block at which no attack of the lab succeeds for less than the floor costs, both in operations.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.grid import Grid
from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.scenes.loot import block_shape, positions, span
from awfulowl.lab.victims.tail import Tail
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from awfulowl.results import Interval, wilson

Fitness = Literal["accuracy", "cross-entropy", "margin"]

_Z: Final = 1.645
"""One-sided 5 %: a gain of nothing is taken for one in a twentieth of the cases."""

_MOST_BLOCKS: Final = 10**9


Place = tuple[int, ...]
"""Row and column of a block."""


class Printed(NamedTuple):
    """The paper's threshold: the largest population in the time of training, and the fewest blocks that protect."""

    population: float
    blocks: int | None


def clue_probability(blocks: int) -> float:
    """Return P(clue) = 1/N (1 - 1/sqrt(N))^(N-1), as printed.

    Raises:
        InputError: there are no blocks.
    """
    if blocks < 1:
        raise InputError(f"{blocks} blocks are none")
    return (1.0 - 1.0 / math.sqrt(blocks)) ** (blocks - 1) / blocks


def printed_threshold(*, generations: int, evaluated: int, trained: int, epochs: int) -> Printed:
    """Solve the paper's inequalities for N, with constants set.

    The first does not depend on N: it bounds the population, Pop <= 2 Size(Tr) Ep / (gen Size(Ev)). The second is then
    Pop P(clue) >= 1 with the largest population. P(clue) falls with N, so from some N on no attack succeeds.

    Args:
        generations: of the genetic search.
        evaluated: images on which a candidate is tried, Size(Ev) = 1 / Pr.
        trained: images of the training, Size(Tr).
        epochs: Ep.

    Returns:
        The population, and the smallest N at which the second inequality fails; None where it never does in 1e9.

    Raises:
        InputError: a constant is below 1.
    """
    if min(generations, evaluated, trained, epochs) < 1:
        raise InputError("generations, images and epochs are 1 or more each")
    population = 2.0 * trained * epochs / (generations * evaluated)
    low, high = 1, _MOST_BLOCKS
    if population * clue_probability(high) >= 1:
        return Printed(population, None)
    # P(1) is 1 (0^0) and P falls from there: bisection.
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if population * clue_probability(middle) >= 1 else (low, middle)
    return Printed(population, low)


class Detectable(NamedTuple):
    """What one right block does to a fitness: means over draws, and how often its gain shows.

    `signal` is the mean gain, `noise` the mean standard error of the gain over the images, `probability` the share of
    draws in which the gain is more than 1.645 of its own standard errors, with Wilson's interval.
    """

    fitness: Fitness
    signal: float
    noise: float
    probability: float
    interval: Interval
    draws: int


@torch.no_grad()
def detectability(
    model: nn.Module,
    layer: str,
    grid: Grid,
    held: Tensor,
    examples: Labelled,
    entropy: Entropy,
    *,
    draws: int = 200,
    right: float = 0.0,
    ledger: Ledger | None = None,
) -> list[Detectable]:
    """Measure whether one more block in its right place shows in a fitness.

    In every draw the held blocks lie at random places, but for a share that is right already; then one wrong block goes
    to its right place, and what lay there takes its own. Only what the two change is computed.

    Args:
        model: the victim.
        layer: a linear or convolutional layer without groups.
        grid: how it is cut.
        held: int64 (k, 2), the positions of the held blocks.
        examples: images and labels on which a pirate evaluates.
        entropy: of the draws.
        draws: how many.
        right: share of the held blocks that are right before.
        ledger: pays for the evaluations; None: nobody.

    Raises:
        InputError: less than two blocks are held, or blocks are not of one shape.
    """
    module = model.get_submodule(layer)
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or (isinstance(module, nn.Conv2d) and module.groups > 1):
        raise InputError(f"{layer} is a {type(module).__name__}, or has groups: not measured here")
    places = _alike(grid, held)
    tail = Tail(model, layer)
    entered = tail.enter(examples.inputs)
    blocks = {tuple(place): module.weight[span(grid, place[0], place[1])] for place in held.tolist()}
    gains: list[dict[Fitness, Tensor]] = []
    for _ in range(draws):
        layout = _scattered([tuple(place) for place in held.tolist()], places, right, entropy)
        weight = torch.zeros(grid.shape)
        for place, own in layout.items():
            weight[span(grid, place[0], place[1])] = blocks[own]
        outputs = _product(module, entered.inputs, weight, module.bias)
        before = fitnesses(tail(outputs, entered.aside), examples.labels)
        for place, block in _one_right(layout, blocks, entropy):
            _add(outputs, module, entered.inputs, grid, place, block)
        after = fitnesses(tail(outputs, entered.aside), examples.labels)
        gains.append({kind: after[kind] - before[kind] for kind in after})
        if ledger is not None:
            ledger.spend("evaluation", 2 * tail.flops(outputs[:1]) * len(outputs), evaluations=2)
    return [_summary(kind, [gain[kind] for gain in gains]) for kind in gains[0]]


def fitnesses(logits: Tensor, labels: Tensor) -> dict[Fitness, Tensor]:
    """Return three fitnesses (n,) of every image, each the larger the better.

    Accuracy is 0 or 1; cross-entropy stands with a minus; margin is the label's logit over the largest other one.
    """
    own = logits.gather(1, labels[:, None]).flatten()
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return {
        "accuracy": (own > others).double(),
        "cross-entropy": -functional.cross_entropy(logits, labels, reduction="none").double(),
        "margin": (own - others).double(),
    }


def _alike(grid: Grid, held: Tensor) -> list[tuple[int, int]]:
    """Return the places of a grid that fit all held blocks."""
    shapes = {block_shape(grid, row, column) for row, column in held.tolist()}
    if len(shapes) != 1 or len(held) < 2:
        raise InputError(f"{len(held)} blocks of shapes {sorted(shapes)}: two or more of one shape are exchanged")
    (shape,) = shapes
    return [(row, column) for row, column in positions(grid).tolist() if block_shape(grid, row, column) == shape]


def _scattered(held: Sequence[Place], places: Sequence[Place], right: float, entropy: Entropy) -> dict[Place, Place]:
    """Return which block lies at which place: a share at their own, the others anywhere but there."""
    order = [held[index] for index in entropy.permutation(len(held))]
    fixed = order[: min(round(right * len(order)), len(order) - 1)]
    moving = order[len(fixed) :]
    taken = set(fixed)
    free = [place for place in places if place not in taken]
    chosen = [free[index] for index in entropy.permutation(len(free))[: len(moving)]]
    return {**{place: place for place in fixed}, **dict(zip(chosen, moving, strict=True))}


def _one_right(
    layout: Mapping[Place, Place], blocks: Mapping[Place, Tensor], entropy: Entropy
) -> Iterable[tuple[Place, Tensor]]:
    """Return what is added where, so that one block that lay wrong lies right; nothing where none did."""
    wrong = [place for place, own in layout.items() if place != own]
    if not wrong:
        return []
    place = wrong[entropy.below(len(wrong))]
    own = layout[place]
    block, other = blocks[own], layout.get(own)
    there = torch.zeros_like(block) if other is None else blocks[other]
    return [(own, block - there), (place, there - block)]


def _add(
    outputs: Tensor, module: nn.Linear | nn.Conv2d, inputs: Tensor, grid: Grid, place: Place, block: Tensor
) -> None:
    """Add the product of a block at a place to the outputs of the layer."""
    down, across = grid.rows[place[0]], grid.columns[place[1]].span
    x = inputs[:, across.start : across.stop]
    outputs[:, down.start : down.stop] += _product(module, x, block, None)


def _product(module: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return functional.conv2d(x, weight, bias, module.stride, module.padding, module.dilation)
    return functional.linear(x, weight, bias)


def _summary(kind: Fitness, gains: Sequence[Tensor]) -> Detectable:
    means = torch.stack([gain.mean() for gain in gains])
    errors = torch.stack([gain.std() / math.sqrt(len(gain)) for gain in gains])
    shown = int((means > _Z * errors).sum())
    return Detectable(
        kind, float(means.mean()), float(errors.mean()), shown / len(gains), wilson(shown, len(gains)), len(gains)
    )


class Attempt(NamedTuple):
    """One attack on one cut: the block's rows and columns, what it cost, and whether it succeeded."""

    attack: str
    block: int
    flops: float
    succeeded: bool


class Granularity(NamedTuple):
    """Operations of the cheapest attack that succeeded, by block; and the largest block that holds, or None."""

    cheapest: Mapping[int, Attempt | None]
    holds: int | None


def sound_threshold(attempts: Iterable[Attempt], floor_flops: float) -> Granularity:
    """Return the largest block at which no attack succeeded for less than the floor costs.

    A block size holds only if all smaller ones that were tried hold too: an attack that fails at one size between
    two at which it succeeds has failed, and protected nothing. "Holds" is against the attacks that were tried.

    Args:
        attempts: attacks on cuts of several sizes; one attack several times, for several seeds: once is enough.
        floor_flops: what the cheapest floor costs.

    Raises:
        InputError: nothing was tried.
    """
    found: dict[int, Attempt | None] = {}
    for attempt in attempts:
        best = found.setdefault(attempt.block, None)
        if attempt.succeeded and (best is None or attempt.flops < best.flops):
            found[attempt.block] = attempt
    if not found:
        raise InputError("no attack was tried at any block size")
    holds = None
    for block in sorted(found):
        best = found[block]
        if best is not None and best.flops < floor_flops:
            break
        holds = block
    return Granularity(dict(sorted(found.items())), holds)
