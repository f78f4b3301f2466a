"""How far two runs of the same steps are apart, where machines add in another order.

The error of a stretch of steps is counted number by number, each relative to how far that number moves and how far
numbers of its kind move as a rule: a bound on the plain distance would let small steps pass that were never made. The
largest error of any tensor counts. One huge number among others that move, made so in a step that a runner faked,
frees itself alone: in a norm over many numbers it would hide all that is faked later. A state in which most numbers are
huge, move and matter to nothing does free all others.

Rounding has kinks. Where the input of a ReLU, or two candidates of a maximum, are closer together than machines round,
the gradient jumps, and honest ends are apart by thousands of times the rounding. A tolerance for that would let much
pass, so that there are second looks (`looks`) instead: the stretch is run again from states that are the committed one
but for rounding, and a runner passes that comes within the tolerance of any of them. So nothing is accepted beyond the
tolerance but what an honest run reaches from a state that nobody can tell from the committed one, and honest runners
cost a verifier nothing more unless they meet a kink.
"""

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.jobs.job import MOST_TOLERANCE
from awfulowl.jobs.loop import Row, Trainer, Work, repeatable, run
from awfulowl.jobs.state import MODEL, State, form
from awfulowl.randomness import Entropy, Seeded

MARGIN: Final = 256.0
"""The tolerance over the median error of honest runs, which is that of runs without a kink."""
LEAST_TOLERANCE: Final = 5e-4
"""A few times what second looks without a kink differ by, in float32."""
LOOKS: Final = 64
"""How often a stretch is looked at a second time, at most, before a runner is refused."""
MOST_LOOKS: Final = 4 * LOOKS
"""Second looks at all stretches of a proof together."""
UNITS: Final = (1.0, 4.0, 16.0, 64.0)
"""How far weights are moved for second looks, in turn, in units of their last place.

A sum of n products in any order is the exact one of weights that are off by n units at most, and by about sqrt(n) as a
rule (Higham, "Accuracy and stability of numerical algorithms", 2002, section 3.1; Higham and Mary, 2019).
"""
_FLOOR: Final = 1e-30
_STILL: Final = MODEL + "still"
_EXCUSED: Final = 2.0
"""Units of the last place: what a number is off by after it was rounded itself, however little it moves."""
_COARSEST: Final = torch.finfo(torch.float32).eps
"""A unit of the last place of bf16 is more than a step moves: to excuse it would be to excuse the step."""

Variation = tuple[int, bool]
"""Threads, and whether oneDNN's kernels are used: other kernels add in another order, as another machine does."""
VARIATIONS: Final[tuple[Variation, ...]] = ((1, True), (2, True), (3, True), (4, True), (1, False), (2, False))


class Look(NamedTuple):
    """One run of a stretch: what its first step said, and its end, which changes with the next run."""

    row: Row
    end: State
    number: int = 0
    """Of the second look, from 1; 0: the run from the committed state itself."""


def error(start: State, ours: State, theirs: State, still: Collection[str] = ()) -> float:
    """Return how far two ends are apart, relative to the movement from the start: the largest error of any tensor.

    A tensor's error is the root mean square, over its numbers, of |ours - theirs| / (|ours - start| + s), with s the
    median, over tensors of its kind that move (the model's parameters; its buffers; each kind of optimiser state), of
    the median movement of all numbers in that tensor. To raise s one has to move most numbers of most of them.

    Infinite where the states differ in form, in a whole number, or where they differ and one is not finite.

    Args:
        start: of the stretch.
        ours: its end, run here.
        theirs: the committed end.
        still: names of what the optimiser does not move (`Layout.still`), a kind of its own.
    """
    if form(ours) != form(theirs) or ours.step != theirs.step:
        return float("inf")
    kinds = {name: _kind(name, still) for name in ours.tensors}
    typical = _typical(start, ours, kinds)
    return max((_apart(start, ours, theirs, name, typical.get(kinds[name], 0.0)) for name in kinds), default=0.0)


def _apart(start: State, ours: State, theirs: State, name: str, typical: float) -> float:
    own, other = ours.tensors[name], theirs.tensors[name]
    if torch.equal(own, other):
        return 0.0
    if not own.is_floating_point():
        return float("inf")
    moved = _moved(start, ours, name)
    size = torch.maximum(own.double().abs(), other.double().abs())
    excused = _EXCUSED * _unit(own) * size
    beyond = (_distance(own, other) - excused).clamp(min=0.0)
    value = float((beyond / (moved + typical + _FLOOR)).square().mean().sqrt())
    return value if value == value else float("inf")  # noqa: PLR0124 - NaN


def _typical(start: State, ours: State, kinds: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for name, own in ours.tensors.items():
        if own.is_floating_point():
            moved = _moved(start, ours, name)
            if bool((moved > 0).any()):
                found.setdefault(kinds[name], []).append(float(moved.median()))
    return {kind: statistics.median_low(values) for kind, values in found.items()}


def _unit(tensor: Tensor) -> float:
    return min(torch.finfo(tensor.dtype).eps, _COARSEST)


def _moved(start: State, ours: State, name: str) -> Tensor:
    own, before = ours.tensors[name], start.tensors.get(name)
    return own.double().abs() if before is None else _distance(own, before)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    # Equal infinities, as masks hold them, are 0 apart.
    return torch.where(one == other, 0.0, (one.double() - other.double()).abs())


def _kind(name: str, still: Collection[str]) -> str:
    if not name.startswith(MODEL):
        return name.rpartition(".")[2]
    return _STILL if name in still else MODEL


def looks(
    trainer: Trainer, begun: State, last: int, entropy: Entropy, advance: Callable[[], Row], most: int = LOOKS
) -> Iterator[Look]:
    """Yield runs of a stretch: from its start as it was committed, then from states that are it but for rounding.

    Second looks are run with oneDNN's kernels and without them by turns, whose rounding differs in kind, too. What a
    start was moved by is taken off the end again, so that movements are compared. One that cannot be run says nothing,
    and is left out.

    Args:
        trainer: that runs them.
        begun: the committed state.
        last: the step before which the stretch ends.
        entropy: the verifier's own, which nobody else can foresee.
        advance: takes a step with the trainer, and counts it.
        most: second looks.

    Raises:
        InputError: from the committed state itself the training diverges, or the job's code raises.
    """
    yield _look(trainer, begun, last, advance)
    for number in range(most):
        start = nudged(begun, UNITS[number // 2 % len(UNITS)], entropy, trainer.layout.still)
        try:
            with kernels(fused=number % 2 == 0):
                row, end, _ = _look(trainer, start, last, advance)
        except InputError:
            continue
        yield Look(row, _put_back(end, start, begun), number + 1)


def _look(trainer: Trainer, start: State, last: int, advance: Callable[[], Row]) -> Look:
    trainer.load(start)
    row = advance()
    while trainer.step < last:
        advance()
    return Look(row, trainer.state())


def nudged(state: State, units: float, entropy: Entropy, still: Collection[str] = ()) -> State:
    """Return a state with each weight moved, on its own, by up to so many units of its last place; others stay.

    Coarser types than float32 are moved by units of float32, most often not at all.
    """
    moved = dict(state.tensors)
    for name, tensor in state.tensors.items():
        if _kind(name, still) == MODEL and tensor.is_floating_point():
            drawn = Seeded(entropy.seed(), torch.int32, tuple(tensor.shape)).expand().double() / 2.0**31
            moved[name] = (tensor.double() * (1.0 + units * _unit(tensor) * drawn)).to(tensor.dtype)
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
                theirs = _varied(work, begun, end, variation)
                found.append(error(begun, ours, theirs, trainer.layout.still))
    return found


def calibrate(work: Work, starts: Sequence[int], variations: Sequence[Variation] = VARIATIONS) -> float:
    """Return the tolerance that a job should declare: `MARGIN` times the median error of honest runs.

    Runs that came out alike to the last bit say nothing of rounding, and are left out.

    Raises:
        InputError: the job diverges, errors are so large that a fake could hide in them, or weights are of a coarser
            type than float32.
    """
    _check_types(work)
    found = [one for one in errors(work, starts, variations) if one]
    bound = MARGIN * statistics.median(found) if found else 0.0
    if not bound <= MOST_TOLERANCE:
        raise InputError(
            f"honest runs of {work.job.proving.segment} steps are apart by {statistics.median(found):.1e} of their "
            "movement: such a job can only be verified by a machine of the runner's class"
        )
    return max(bound, LEAST_TOLERANCE)


def _check_types(work: Work) -> None:
    with repeatable(work.job.training.threads):
        types = {one.dtype for one in Trainer(work).parameters}
    # Runs agree in most numbers, and where they do not they are a whole step apart: no median tells of that.
    coarse = next((one for one in types if torch.finfo(one).eps > _COARSEST), None)
    if coarse is not None:
        raise InputError(
            f"weights are stored as {coarse}, in which rounding is as much as a step moves: such a job can only be "
            "verified by a machine of the runner's class; keep weights in float32 and set precision instead"
        )


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
