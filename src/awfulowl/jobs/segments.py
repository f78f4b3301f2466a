"""How far two runs of the same steps are apart, where machines add in another order.

The error of a stretch of steps is counted number by number, each relative to how far that number moves and how far
numbers of its kind move as a rule: a bound on the plain distance would let small steps pass that were never made. The
largest error of any tensor counts. A number that a runner has made huge, in a step that it faked, frees itself and
nothing else: in a norm over many numbers it would hide all that is faked later.

Rounding has kinks. Where the input of a ReLU, or two candidates of a maximum, are closer together than machines round,
the gradient jumps, and honest ends are apart by thousands of times the rounding. A tolerance for that would let much
pass, so that there are second looks (`looks`) instead: the stretch is run again from states that are the committed one
but for rounding, and a runner passes that comes within the tolerance of any of them. So nothing is accepted beyond the
tolerance but what an honest run reaches from a state that nobody can tell from the committed one, and honest runners
cost a verifier nothing more unless they meet a kink.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.jobs.loop import Row, Trainer, Work, repeatable, run
from awfulowl.jobs.state import MODEL, State, form
from awfulowl.randomness import Entropy, Seeded

MARGIN: Final = 256.0
"""The tolerance over the median error of honest runs, which is that of runs without a kink."""
LEAST_TOLERANCE: Final = 5e-4
"""A few times what second looks without a kink differ by, in float32."""
LOOKS: Final = 64
"""How often a stretch is looked at a second time, at most, before a runner is refused."""
UNITS: Final = (1.0, 4.0, 16.0, 64.0)
"""How far weights are moved for second looks, in turn, in units of their last place.

A sum of n products in any order is the exact one of weights that are off by n units at most, and by about sqrt(n) as a
rule (Higham, "Accuracy and stability of numerical algorithms", 2002, section 3.1; Higham and Mary, 2019).
"""
_FLOOR: Final = 1e-30
_EXCUSED: Final = 2.0
"""Units of the last place: what a number is off by after it was rounded itself, however little it moves."""

Variation = tuple[int, bool]
"""Threads, and whether oneDNN's kernels are used: other kernels add in another order, as another machine does."""
VARIATIONS: Final[tuple[Variation, ...]] = ((1, True), (2, True), (3, True), (4, True), (1, False), (2, False))


class Look(NamedTuple):
    """One run of a stretch: what its first step said, and its end, which changes with the next run."""

    row: Row
    end: State


def error(start: State, ours: State, theirs: State) -> float:
    """Return how far two ends are apart, relative to the movement from the start: the largest error of any tensor.

    A tensor's error is the root mean square, over its numbers, of |ours - theirs| / (|ours - start| + s), with s the
    median, over tensors of its kind (the model's parameters and buffers; each kind of optimiser state), of the median
    of the movements in that tensor that are not 0. To raise s one has to move most numbers of most tensors.

    Infinite where the states differ in form, in a whole number, or where one is not finite.
    """
    if form(ours) != form(theirs) or ours.step != theirs.step:
        return float("inf")
    typical = _typical(start, ours)
    return max((_apart(start, ours, theirs, name, typical) for name in ours.tensors), default=0.0)


def _apart(start: State, ours: State, theirs: State, name: str, typical: Mapping[str, float]) -> float:
    own, other = ours.tensors[name], theirs.tensors[name]
    if torch.equal(own, other):
        return 0.0
    if not own.is_floating_point():
        return float("inf")
    moved = _moved(start, ours, name)
    size = torch.maximum(own.double().abs(), other.double().abs())
    excused = _EXCUSED * torch.finfo(own.dtype).eps * size
    beyond = ((own.double() - other.double()).abs() - excused).clamp(min=0.0)
    value = float((beyond / (moved + typical.get(_kind(name), 0.0) + _FLOOR)).square().mean().sqrt())
    return value if value == value else float("inf")  # noqa: PLR0124 - NaN


def _typical(start: State, ours: State) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for name, own in ours.tensors.items():
        if own.is_floating_point():
            moved = _moved(start, ours, name)
            moved = moved[moved > 0]
            if moved.numel():
                found.setdefault(_kind(name), []).append(float(moved.median()))
    return {kind: statistics.median_low(values) for kind, values in found.items()}


def _moved(start: State, ours: State, name: str) -> Tensor:
    own, before = ours.tensors[name].double(), start.tensors.get(name)
    return own.abs() if before is None else (own - before.double()).abs()


def _kind(name: str) -> str:
    return MODEL if name.startswith(MODEL) else name.rpartition(".")[2]


def looks(trainer: Trainer, begun: State, last: int, entropy: Entropy, advance: Callable[[], Row]) -> Iterator[Look]:
    """Yield runs of a stretch: from its start as it was committed, then from states that are it but for rounding.

    Second looks are run with oneDNN's kernels and without them by turns, whose rounding differs in kind, too. What a
    start was moved by is taken off the end again, so that movements are compared.

    Args:
        trainer: that runs them.
        begun: the committed state.
        last: the step before which the stretch ends.
        entropy: the verifier's own, which nobody else can foresee.
        advance: takes a step with the trainer, and counts it.

    Raises:
        InputError: the training diverges.
    """
    yield _look(trainer, begun, last, advance)
    for number in range(LOOKS):
        start = nudged(begun, UNITS[number // 2 % len(UNITS)], entropy)
        with kernels(fused=number % 2 == 0):
            row, end = _look(trainer, start, last, advance)
        yield Look(row, _put_back(end, start, begun))


def _look(trainer: Trainer, start: State, last: int, advance: Callable[[], Row]) -> Look:
    trainer.load(start)
    row = advance()
    while trainer.step < last:
        advance()
    return Look(row, trainer.state())


def nudged(state: State, units: float, entropy: Entropy) -> State:
    """Return a state with each weight moved, on its own, by up to so many units of its last place."""
    moved = dict(state.tensors)
    for name, tensor in state.tensors.items():
        if name.startswith(MODEL) and tensor.is_floating_point():
            drawn = Seeded(entropy.seed(), torch.int32, tuple(tensor.shape)).expand().double() / 2.0**31
            moved[name] = (tensor.double() * (1.0 + units * torch.finfo(tensor.dtype).eps * drawn)).to(tensor.dtype)
    return State(state.step, moved)


def _put_back(end: State, start: State, begun: State) -> State:
    tensors = dict(end.tensors)
    for name, moved in start.tensors.items():
        before = begun.tensors[name]
        if moved is not before and name in tensors:
            tensors[name] = tensors[name] - (moved - before)
    return State(end.step, tensors)


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
    """Return the tolerance that a job should declare: `MARGIN` times the median error of honest runs.

    Runs that came out alike to the last bit say nothing of rounding, and are left out.

    Raises:
        InputError: the job diverges, or errors are so large that a fake could hide in them.
    """
    found = [one for one in errors(work, starts, variations) if one]
    bound = MARGIN * statistics.median(found) if found else 0.0
    if not bound < 1.0:
        raise InputError(
            f"honest runs of {work.job.proving.segment} steps are apart by {statistics.median(found):.1e} of their "
            "movement: such a job can only be verified by a machine of the runner's class"
        )
    return max(bound, LEAST_TOLERANCE)


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
