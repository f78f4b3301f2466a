"""What a user may ask of a plan."""

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from awfulowl.errors import InputError

AUTO: Final = "auto"
ERROR_BUDGET: Final = 0.01
Shape = Literal["columns", "rows", "rectangles", "scattered"]


def parse_arithmetic(text: str) -> tuple[str, float]:
    """Return the arithmetic and the error budget that a word means: "auto:0.002" sets the budget of auto.

    Raises:
        InputError: the budget is no number.
    """
    kind, colon, budget = text.partition(":")
    if kind != AUTO or not colon:
        return text, ERROR_BUDGET
    try:
        return kind, float(budget)
    except ValueError:
        raise InputError(f"error budget {budget!r} is no number; an example is auto:0.002") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of a plan; what is None is chosen by the planner, which says in the plan's notes what it relaxed.

    Raises:
        InputError: a value is out of range.
    """

    block: Literal["auto"] | int | tuple[int, int] = "auto"
    """Rows and columns of a block. `auto`: the largest of 256 to 16 that gives the largest layer 64 blocks."""

    replicas: int | None = None
    """Devices that hold each block."""

    share: float | None = None
    """Largest share of a layer's input slices that a device may ever see."""

    domain_share: float | None = None
    """Largest share of a layer's input slices that a domain may ever see."""

    shape: Shape = "columns"
    """What lives together. Anything but whole columns shows more slices, and is for comparison."""

    strict: bool = False
    """Refuse what cannot keep the standard rules, instead of relaxing them."""

    separate_neighbours: bool = False
    """No domain serves two layers that follow each other."""

    arithmetic: str = "float32"
    """float32, int8, int16, or auto: for each layer the narrowest integers whose error is within `error_budget`."""

    error_budget: float = ERROR_BUDGET
    """Largest error of a layer on the example, over the length of its product, that `auto` accepts of int8."""

    sharing: str | None = None
    """None, inputs:2 (to inputs:8) or replicated; of integers only."""

    keep: tuple[str, ...] = ()
    """Modules or products that stay at the owner, by path; a path keeps everything below it."""

    def __post_init__(self) -> None:
        # These wait for PyTorch, and command lines are completed by what this module says.
        from awfulowl.arithmetic.numbers import FLOAT32, NAMES  # noqa: PLC0415
        from awfulowl.veil.shares import sharing_of  # noqa: PLC0415

        sides = (self.block,) if isinstance(self.block, int) else self.block
        if sides != "auto" and min(sides) < 1:
            raise InputError(f"block {self.block!r}: a block has at least one row and one column")
        if self.replicas is not None and self.replicas < 1:
            raise InputError(f"replicas {self.replicas} is below 1")
        for name, share in (("share", self.share), ("domain_share", self.domain_share)):
            if share is not None and not 0.0 < share <= 1.0:
                raise InputError(f"{name} {share} is not in (0, 1]")
        if self.arithmetic not in {*NAMES, AUTO}:
            raise InputError(f"arithmetic {self.arithmetic!r} is none of {', '.join((*NAMES, AUTO))}")
        if not 0.0 < self.error_budget < math.inf:
            raise InputError(f"error budget {self.error_budget} is not above 0")
        if sharing_of(self.sharing).shares > 1 and self.arithmetic == FLOAT32:
            raise InputError(
                f"sharing {self.sharing!r} needs exact integers: choose arithmetic 'int8', 'int16' or 'auto'. "
                "Shares of floats are not uniform and would show what they hide"
            )
        if self.shape not in get_args(Shape):
            raise InputError(f"shape {self.shape!r} is none of {', '.join(get_args(Shape))}")
