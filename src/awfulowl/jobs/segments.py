"""How far two runs of the same steps are apart, where machines add in another order.

The error of a stretch of steps is counted relative to how far the stretch moves, separately for the model (parameters
and buffers together) and each kind of optimiser state: a bound on the plain distance would let small steps pass that
were never made.

Not stopped: a runner that fakes one step to make up a state in which one number that does not matter is huge. Size and
movement of the whole kind are then as large as it likes, and later fakes hide below the tolerance. Only bits that have
to be equal are safe from it; there is no such path where a job gives no tolerance.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.jobs.loop import Trainer, Work, repeatable, run
from awfulowl.jobs.state import MODEL, State, form

MARGIN: Final = 64.0
"""The bound over the largest error of a few honest runs.

Most errors are rounding, about 10^-7; a rare one is thousands of times larger, where the rounding turned a ReLU or
the place of a maximum. A few honest runs do not meet the rarest: with a margin of 16 one of 34 honest runs was refused.
What errs less than this bound passes: bf16 in place of fp32 may, and only bits that have to be equal find it for sure.
"""
_FLOOR: Final = 1e-30
_ROUNDING: Final = 2.0**-24

Variation = tuple[int, bool]
"""Threads, and whether oneDNN's kernels are used: other kernels add in another order, as another machine does."""
VARIATIONS: Final[tuple[Variation, ...]] = ((1, True), (2, True), (3, True), (4, True), (1, False), (2, False))


def error(start: State, ours: State, theirs: State) -> float:
    """Return the largest distance of two ends relative to the movement from the start, over kinds of tensors.

    Infinite where the states differ in form, in a whole number, or where one is not finite.
    """
    if form(ours) != form(theirs) or ours.step != theirs.step:
        return float("inf")
    apart: dict[str, float] = {}
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, own in ours.tensors.items():
        other = theirs.tensors[name]
        if not own.is_floating_point():
            if not torch.equal(own, other):
                return float("inf")
            continue
        kind, before = _kind(name), start.tensors.get(name)
        apart[kind] = apart.get(kind, 0.0) + _square(own, other)
        moved[kind] = moved.get(kind, 0.0) + _square(own, before)
        size[kind] = size.get(kind, 0.0) + _square(own, None)
    return max((_ratio(apart[kind], moved[kind], size[kind]) for kind in apart), default=0.0)


def _ratio(apart: float, moved: float, size: float) -> float:
    if apart == 0.0:
        return 0.0
    if not apart < float("inf"):
        return float("inf")
    # Numbers of some size cannot be told apart below their own rounding, however little they move.
    return float((apart / (moved + size * _ROUNDING**2 + _FLOOR)) ** 0.5)


def _kind(name: str) -> str:
    return MODEL if name.startswith(MODEL) else name.rpartition(".")[2]


def _square(one: Tensor, other: Tensor | None) -> float:
    wide = one.double() if other is None else one.double() - other.double()
    value = float(wide.square().sum())
    return value if value == value else float("inf")  # noqa: PLR0124 - NaN


def errors(work: Work, starts: Sequence[int], variations: Sequence[Variation] = VARIATIONS) -> list[float]:
    """Return the errors of honest runs: from states of one run, the same stretch in every variation.

    Raises:
        InputError: the job diverges.
    """
    found: list[float] = []
    with repeatable(work.job.training.threads):
        trainer = Trainer(work)
        for start in sorted(starts):
            run(trainer, start)
            begun = trainer.state().copy()
            end = min(work.steps, start + work.job.proving.segment)
            run(trainer, end)
            ours = trainer.state().copy()
            for variation in variations:
                found.append(error(begun, ours, _varied(work, begun, end, variation)))  # noqa: PERF401 - long
    return found


def calibrate(work: Work, starts: Sequence[int], variations: Sequence[Variation] = VARIATIONS) -> float:
    """Return the tolerance that a job should declare: `MARGIN` times the largest error of honest runs.

    Raises:
        InputError: the job diverges, or errors are so large that a fake could hide in them.
    """
    found = errors(work, starts, variations)
    bound = MARGIN * max(found, default=0.0)
    if not bound < 1.0:
        raise InputError(
            f"honest runs of {work.job.proving.segment} steps are apart by {max(found):.1e} of their movement: such a "
            "job can only be verified by a machine of the runner's class"
        )
    return max(bound, MARGIN * _ROUNDING)


def _varied(work: Work, begun: State, end: int, variation: Variation) -> State:
    threads, fused = variation
    with repeatable(threads), kernels(fused):
        trainer = Trainer(work)
        trainer.load(begun)
        run(trainer, end)
        return trainer.state()


@contextmanager
def kernels(fused: bool) -> Iterator[None]:
    """Compute with oneDNN's kernels, or without them."""
    backend: Any = torch.backends.mkldnn
    before = backend.enabled
    backend.enabled = fused
    try:
        yield
    finally:
        backend.enabled = before


def describe(found: Sequence[float]) -> Mapping[str, float]:
    """Return the median and the largest of some errors."""
    ordered = sorted(found)
    return {"median": ordered[len(ordered) // 2], "largest": ordered[-1]}
