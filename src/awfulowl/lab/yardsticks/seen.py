"""What is seen: the share of input slices that coalitions of devices see, by the shape of the plan.

A device sees the whole input slice of every block that it holds, and one block of a column is enough. So with
scattered blocks a share f of the devices sees 1 - (1 - f)^R of a layer of R block rows, and with whole columns f.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, get_args

from awfulowl.placement.cutting import Layer
from awfulowl.placement.exposure import expose
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.planner import make_plan
from awfulowl.randomness import Entropy

SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)


class Sight(NamedTuple):
    """How much of a model's input slices a random coalition sees: now, and after all devices were replaced once.

    Means over layers weighted by their inputs, and of the most exposed layer.
    """

    shape: Shape
    replicas: int
    coalition: float
    seen: float
    projected: float
    most: float


def compare_shapes(
    layers: Sequence[Layer],
    devices: Sequence[Device],
    *,
    block: int,
    seed: int,
    replicas: Sequence[int] = (1, 2),
    coalitions: Sequence[float] = (0.1, 0.3, 0.5),
) -> list[Sight]:
    """Plan a model in every shape and return what coalitions would see of it.

    Args:
        layers: of the model (`placement.survey`).
        devices: who holds blocks.
        block: rows and columns of a block.
        seed: of the plans.
        replicas: numbers of them.
        coalitions: shares of the devices.

    Raises:
        InputError: an option is out of range.
        RuleError: a plan cannot be made for these devices.
    """
    found = []
    for shape in SHAPES:
        for count in replicas:
            made = make_plan(layers, devices, Options(block=block, shape=shape, replicas=count), Entropy(seed))
            exposure = expose(made, shares=coalitions, churn=1)
            for place, whole in enumerate(exposure.model):
                most = max(panel.coalitions[place].seen for panel in exposure.panels)
                found.append(Sight(shape, count, whole.share, whole.seen, whole.projected, most))
    return found
