"""Secret positions (rung S1): figures 6 and 7 of the founding paper, on its layer and on others.

Blocks are set to zero, and pairs of those that are left exchange their places. The paper draws accuracy over the
number of pairs, drawn with replacement; what matters is the share of held blocks that is displaced, which stands
beside it. Test accuracy is right here: nothing is chosen by it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.scenes.drawing import Block, grids_of
from awfulowl.lab.scenes.loot import Spoils, block_shape, positions, span
from awfulowl.lab.sites.site import Site, look
from awfulowl.limits import MIB
from awfulowl.models.archives import read_bounded
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from awfulowl.results import Interval, bootstrap

DROPPED: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)
"""Shares of blocks missing, of figure 6."""
MISSING: Final = (0.0, 0.85, 0.9, 0.95, 0.97)
"""Shares of blocks missing before others are exchanged, of figure 7; and none missing, which the paper left out."""
PAIRS: Final = (0, 25, 50, 100, 150, 200, 300, 375)
_OF_ALL: Final = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75)
"""Pairs by held blocks, where the paper's numbers would be too few to matter."""
_MOST_BYTES: Final = 4 * MIB


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mean accuracy over draws, and how the blocks were treated."""

    dropped: float
    pairs: int
    displaced: float
    """Share of held blocks that are not in their place, mean of the draws."""
    accuracy: float
    interval: Interval
    draws: tuple[float, ...]


class Curves(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures 6 and 7 for one layer; `zeroed` is the accuracy without it, `whole` with all of it."""

    model: str
    layer: str
    blocks: int
    images: int
    seed: int
    whole: float
    zeroed: float
    dropped: tuple[Point, ...]
    exchanged: tuple[Point, ...]


class Setup(NamedTuple):
    """A layer and its blocks, ready to be evaluated."""

    site: Site
    weight: Tensor
    accuracy: Callable[[Tensor], float]


def set_up(model: nn.Module, layer: str, test: Labelled, block: Block = "auto") -> Setup:
    """Look at a layer of a trained network; what comes before it is computed once.

    Raises:
        InputError: there is no such layer, or there are no images.
        ModelError: the model cannot be cut behind the layer.
    """
    grid = grids_of(model, [layer], block)[layer]
    bias = getattr(model.get_submodule(layer), "bias", None)
    spoils = Spoils(grid=grid, blocks=(), bias=None if bias is None else bias.detach())
    site = look(model, layer, spoils, test, Ledger())
    weight = model.get_submodule(layer).get_parameter("weight").detach()
    return Setup(site, weight, lambda weight: site.evaluate(weight, Ledger())[1])


def curves(
    name: str,
    setup: Setup,
    *,
    layer: str,
    draws: int,
    seed: int,
    on_point: Callable[[int, int], None] = lambda _, __: None,
) -> Curves:
    """Measure both figures.

    Args:
        name: of the model, for the record.
        setup: of its layer.
        layer: its name.
        draws: for every point.
        seed: of what is drawn; equal seeds give equal numbers.
        on_point: told how many points are done, and how many there are.
    """
    entropy = Entropy(seed)
    blocks = setup.site.grid.blocks
    wanted = [(share, 0) for share in DROPPED]
    wanted += [(share, pairs) for share in MISSING for pairs in _pairs(share, blocks)]
    points = []
    for number, (share, pairs) in enumerate(wanted):
        points.append(_point(setup, share, pairs, draws, entropy))
        on_point(number + 1, len(wanted))
    return Curves(
        model=name,
        layer=layer,
        blocks=blocks,
        images=len(setup.site),
        seed=seed,
        whole=setup.accuracy(setup.weight),
        zeroed=setup.accuracy(torch.zeros_like(setup.weight)),
        dropped=tuple(points[: len(DROPPED)]),
        exchanged=tuple(points[len(DROPPED) :]),
    )


def _pairs(share: float, blocks: int) -> list[int]:
    """Return numbers of pairs: the paper's, and for all blocks a share of them."""
    held = round((1 - share) * blocks)
    return [*PAIRS] if share else [round(part * held) for part in _OF_ALL]


def _point(setup: Setup, share: float, pairs: int, draws: int, entropy: Entropy) -> Point:
    found = [_drawn(setup, share, pairs, entropy) for _ in range(draws)]
    accuracies = [accuracy for accuracy, _ in found]
    return Point(
        dropped=share,
        pairs=pairs,
        displaced=fmean(displaced for _, displaced in found),
        accuracy=fmean(accuracies),
        interval=bootstrap(accuracies, entropy),
        draws=tuple(accuracies),
    )


def _drawn(setup: Setup, share: float, pairs: int, entropy: Entropy) -> tuple[float, float]:
    """Return the accuracy of one draw, and the share of held blocks that is displaced in it."""
    grid = setup.site.grid
    places = positions(grid)
    order = torch.tensor(entropy.permutation(len(places)), dtype=torch.int64)
    held = places[order[: round((1 - share) * len(places))]]
    shapes = [block_shape(grid, row, column) for row, column in held.tolist()]
    where = torch.tensor(exchanged(shapes, pairs, entropy), dtype=torch.int64)
    weight = torch.zeros_like(setup.weight)
    for own, target in zip(held.tolist(), held[where].tolist(), strict=True):
        weight[span(grid, *target)] = setup.weight[span(grid, *own)]
    displaced = float((where != torch.arange(len(held))).double().mean()) if len(held) else 0.0
    return setup.accuracy(weight), displaced


def exchanged(shapes: Sequence[object], pairs: int, entropy: Entropy) -> list[int]:
    """Return where each block is after random pairs exchanged their places; blocks of different shapes cannot.

    Args:
        shapes: of the blocks.
        pairs: how many are drawn, with replacement as in the paper, so that a block may be drawn twice.
        entropy: of what is drawn.
    """
    at = [*range(len(shapes))]
    for _ in range(pairs if shapes else 0):
        one, other = entropy.below(len(shapes)), entropy.below(len(shapes))
        if shapes[at[one]] == shapes[at[other]]:
            at[one], at[other] = at[other], at[one]
    return at


class Published(NamedTuple):
    """The paper's own results: means by share dropped, and by share dropped and pairs exchanged."""

    dropped: Mapping[float, float]
    exchanged: Mapping[tuple[float, int], float]


class _Exchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prune_rate: float
    exchange_pairs_sum: int
    accuracies: tuple[float, ...]


def read_published(paths: Sequence[Path]) -> Published:
    """Read the result files of the paper's published code: of figure 6, of figure 7, in any order.

    Raises:
        InputError: a file cannot be read, or is neither.
    """
    dropped: dict[float, float] = {}
    exchanges: dict[tuple[float, int], float] = {}
    for path in paths:
        try:
            content = msgspec.json.decode(read_bounded(path, _MOST_BYTES), type=dict[str, list[float] | _Exchange])
            for key, found in content.items():
                if isinstance(found, _Exchange):
                    exchanges[round(found.prune_rate, 3), found.exchange_pairs_sum] = fmean(found.accuracies)
                else:
                    # Three runs, and their mean as a fourth number.
                    dropped[round(float(key), 3)] = fmean(found[:3])
        except OSError as error:
            raise InputError(f"{path}: no readable results: {error.strerror or error}") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise InputError(f"{path}: neither results of figure 6 nor of figure 7: {error}") from error
    return Published(dropped, exchanges)
