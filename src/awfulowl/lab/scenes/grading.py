"""How right a stolen network is: positions, answers, agreement with the victim, and weights."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from awfulowl.lab.scenes.loot import Scene, Truth
from awfulowl.lab.victims.answers import Answers, predict
from awfulowl.models.data import Labelled


class Grade(NamedTuple):
    """What the grader says.

    Shares of held blocks in their row, in their column and in both, None where nothing was placed; accuracy on test
    images, agreement with the victim's answers on them, cosine with the victim's weights over all attacked layers
    (the mean of the layers'), accuracy on validation images; and which test images are right (n,) bool.
    """

    positions_right: float | None
    rows_right: float | None
    columns_right: float | None
    accuracy: float
    agreement: float
    cosine: float
    cosines: Mapping[str, float]
    validation: float
    right: Tensor


def grade(model: nn.Module, placements: Mapping[str, Tensor], scene: Scene, truth: Truth) -> Grade:
    """Compare a network and a placement with the truth.

    Args:
        model: the pirate's network.
        placements: int64 (k, 2) by layer; may be empty.
        scene: what the pirate had.
        truth: what it should have found.
    """
    rows, columns, both = _right(placements, truth)
    found = compare(model, truth.answers, [*scene.layers], validation=truth.validation, test=truth.test)
    return found._replace(positions_right=both, rows_right=rows, columns_right=columns)


def compare(
    model: nn.Module, answers: Answers, layers: Sequence[str], *, validation: Labelled, test: Labelled
) -> Grade:
    """Compare a network with the victim, without positions.

    Args:
        model: the pirate's network.
        answers: the victim's.
        layers: whose weights are compared; none: their cosine is 0.
        validation: images to choose by.
        test: images for the report.
    """
    classes = answers.of(model, test.inputs, layers)
    right = classes == test.labels
    cosines = {layer: cosine(model, answers.victim, layer) for layer in layers}
    return Grade(
        positions_right=None,
        rows_right=None,
        columns_right=None,
        accuracy=float(right.double().mean()),
        agreement=float((classes == answers.own(test.inputs)).double().mean()),
        cosine=sum(cosines.values()) / max(1, len(cosines)),
        cosines=cosines,
        validation=_share(answers.of(model, validation.inputs, layers), validation.labels),
        right=right,
    )


def share_right(model: nn.Module, examples: Labelled) -> float:
    """Return the accuracy on some images; not a number where there are none."""
    return _share(predict(model, examples.inputs), examples.labels) if len(examples.labels) else math.nan


def _share(classes: Tensor, labels: Tensor) -> float:
    return float((classes == labels).double().mean()) if len(labels) else math.nan


def cosine(model: nn.Module, victim: nn.Module, layer: str) -> float:
    """Return the cosine between a layer's weights in two networks; 0 where one of them is zero."""
    own, other = (
        one.get_submodule(layer).get_parameter("weight").detach().double().flatten() for one in (model, victim)
    )
    length = own.norm() * other.norm()
    return float(own @ other / length) if length > 0 else 0.0


def _right(placements: Mapping[str, Tensor], truth: Truth) -> tuple[float | None, float | None, float | None]:
    """Return shares of placed layers' held blocks in the right row, the right column, and both."""
    if not placements:
        return None, None, None
    held = sum(len(placement) for placement in placements.values())
    if held == 0:
        return None, None, None
    hits = [(placement == truth.positions[layer]) for layer, placement in placements.items()]
    rows = sum(int(hit[:, 0].sum()) for hit in hits)
    columns = sum(int(hit[:, 1].sum()) for hit in hits)
    both = sum(int(hit.all(1).sum()) for hit in hits)
    return rows / held, columns / held, both / held
