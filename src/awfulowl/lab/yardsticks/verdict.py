"""Is it theft? What loot adds over the floor, and whether blocks of another network would have added as much."""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.randomness import Entropy
from awfulowl.results import Interval

Word = Literal["advantage", "no advantage", "undecided"]

ENOUGH: Final = 3
"""Fewest victims and shuffles of which a verdict is given."""

_RESAMPLES: Final = 2000
_AT_ONCE: Final = 200
_TAILS: Final = (0.025, 0.975)

Answers = Sequence[Sequence[Tensor]]
"""Which test images are right, bool (n,), by victim and by shuffle. What has no shuffles, as floors, has one."""


class Difference(NamedTuple):
    """A difference of accuracies, and its 95 % interval over victims, shuffles and images."""

    value: float
    interval: Interval


class Verdict(NamedTuple):
    """What the chosen attack adds over the floor, and over the same pipeline fed with another network's blocks."""

    word: Word
    over_floor: Difference
    over_foreign: Difference | None
    reason: str


def accuracy(answers: Answers, entropy: Entropy) -> Difference:
    """Return a mean accuracy with its interval.

    Raises:
        InputError: there is nothing to average.
    """
    return _bootstrap([[right.float() for right in shuffles] for shuffles in answers], entropy)


def difference(answers: Answers, others: Answers, entropy: Entropy) -> Difference:
    """Return the paired difference of two accuracies: same victim, same shuffle, same image.

    Args:
        answers: of one pipeline.
        others: of another; a single shuffle of a victim stands for all of its shuffles.
        entropy: of the bootstrap.

    Raises:
        InputError: the two do not belong together.
    """
    if len(answers) != len(others):
        raise InputError(f"answers about {len(answers)} victims cannot be paired with those about {len(others)}")
    paired = []
    for own, other in zip(answers, others, strict=True):
        if len(other) not in {1, len(own)}:
            raise InputError(f"{len(own)} shuffles cannot be paired with {len(other)}")
        theirs = [*other] * len(own) if len(other) == 1 else [*other]
        paired.append([mine.float() - their.float() for mine, their in zip(own, theirs, strict=True)])
    return _bootstrap(paired, entropy)


def judge(chosen: Answers, floor: Answers, foreign: Answers | None, entropy: Entropy) -> Verdict:
    """Judge the attack that was chosen on validation data.

    An advantage is one whose interval over the floor lies above 0, and for which the victim's blocks are needed: the
    same pipeline fed with another network's blocks is beaten, by the same measure. Accuracy alone is no evidence.

    Args:
        chosen: which test images the attack's network is right about.
        floor: those of the best floor that the threat model grants, by validation data.
        foreign: those of the same pipeline fed with blocks of a network that shares no seed with the victim; None
            where it could not be run.
        entropy: of the bootstrap.

    Raises:
        InputError: they do not belong together.
    """
    over_floor = difference(chosen, floor, entropy)
    over_foreign = None if foreign is None else difference(chosen, foreign, entropy)
    word, reason = _decide(chosen, over_floor, over_foreign)
    return Verdict(word, over_floor, over_foreign, reason)


def _decide(chosen: Answers, over_floor: Difference, over_foreign: Difference | None) -> tuple[Word, str]:
    if over_floor.interval.low <= 0:
        return "no advantage", "its interval over the floor reaches 0 or less"
    if over_foreign is None:
        return "undecided", "the same pipeline was not fed with another network's blocks"
    if over_foreign.interval.low <= 0:
        return "no advantage", "blocks of another network do as well"
    fewest = min(len(shuffles) for shuffles in chosen)
    if min(len(chosen), fewest) < ENOUGH:
        return "undecided", f"{len(chosen)} victims and {fewest} shuffles are fewer than {ENOUGH} of each"
    return "advantage", "it beats the floor, and blocks of another network"


def _bootstrap(values: Sequence[Sequence[Tensor]], entropy: Entropy) -> Difference:
    """Resample victims, within each its shuffles, and images, all with replacement.

    The same images are drawn for all victims, since they are shown the same ones.
    """
    if not values or not all(values):
        raise InputError("there are no answers to compare")
    sizes = {len(one) for shuffles in values for one in shuffles}
    if len(sizes) > 1 or sizes == {0}:
        raise InputError(f"answers about {sorted(sizes)} images cannot be compared")
    images = sizes.pop()
    table = torch.stack([one for shuffles in values for one in shuffles]).double()
    starts = torch.tensor([0, *(len(shuffles) for shuffles in values)]).cumsum(0)[:-1]
    lengths = torch.tensor([len(shuffles) for shuffles in values])
    weights = (1 / lengths.double() / len(values)).repeat_interleave(lengths)
    chance = torch.Generator().manual_seed(entropy.below(1 << 62))
    most = int(lengths.max())
    means = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        by_image = _drawn_images(table, images, chance)
        victims = torch.randint(len(values), (_AT_ONCE, len(values)), generator=chance)
        shuffle = (torch.rand(_AT_ONCE, len(values), most, generator=chance) * lengths[victims][..., None]).long()
        drawn = torch.gather(by_image[:, None, :].expand(-1, len(values), -1), 2, starts[victims][..., None] + shuffle)
        means.append(drawn.mean(dim=(1, 2)))
    low, high = torch.quantile(torch.cat(means), torch.tensor(_TAILS, dtype=torch.float64)).tolist()
    value = float(weights @ table.mean(1))
    return Difference(value, Interval(min(low, value), max(high, value)))


def _drawn_images(table: Tensor, images: int, chance: torch.Generator) -> Tensor:
    """Return the means (resamples, rows) of a table (rows, images) over images drawn with replacement."""
    drawn = torch.randint(images, (_AT_ONCE, images), generator=chance)
    counts = torch.zeros(_AT_ONCE, images, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts @ table.T / images
