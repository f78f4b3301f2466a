"""How long a device says that a gradient is."""

import pytest
import torch

from awfulowl.blocks.kernels import Kernel, gradient
from awfulowl.errors import RefusedError
from tests.unit.device.pupil import KERNELS, Pupil, some_jobs, summed, taught
from tests.unit.device.test_store import handles, sheet

R, S = handles("r", 4), handles("s", 4)


@pytest.mark.parametrize(("kernel", "size", "space", "groups"), KERNELS, ids=str)
def test_a_measure_is_the_norm_and_moves_nothing(
    kernel: Kernel, size: tuple[int, ...], space: tuple[int, ...], groups: int
) -> None:
    pupil, layout, weight = Pupil(), sheet([6], [6], kernel, groups), torch.randn(6, 6 // groups, *size)
    pupil.load(layout, weight)
    jobs = some_jobs(2, 6, 6, kernel, size, space)
    for number, (x, dy) in enumerate(jobs, start=1):
        pupil.job(number, layout.rows, layout.slices, dy, x)
    whole = sum(gradient(kernel, size, x.double(), dy.double(), groups).square().sum() for x, dy in jobs[:1])
    assert pupil.measure(layout.rows, layout.slices, [1]) == pytest.approx(float(whole), rel=1e-5)
    both = torch.stack([gradient(kernel, size, x.double(), dy.double(), groups) for x, dy in jobs]).sum(dim=0)
    for _ in range(2):
        found = pupil.measure(layout.rows, layout.slices, [1, 2])
        assert found == pytest.approx(float(both.square().sum()), rel=1e-5)
    assert pupil.measure(layout.rows, layout.slices, []) == 0.0
    assert torch.equal(pupil.weights(layout), weight)
    pupil.step(1, layout.slices, [1, 2])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * both, rtol=1e-4, atol=1e-4)


def strips() -> tuple[Pupil, torch.Tensor]:
    """Two sheets of two rows and two slices, one below the other, and the squares of the gradient of job 1."""
    pupil = Pupil()
    pupil.load(sheet([2, 1], [3, 2]), torch.zeros(3, 5))
    pupil.load(sheet([2, 2], [3, 2], row_offset=2), torch.zeros(4, 5))
    ((x, dy),) = jobs = some_jobs(1, 7, 5)
    pupil.job(1, R, S[:2], dy, x)
    return pupil, summed(jobs).square()


@pytest.mark.parametrize(
    ("rows", "place"), [(R, slice(0, 7)), (R[:2], slice(0, 3)), (R[2:], slice(3, 7)), (R[3:1:-1], slice(3, 7))]
)
@pytest.mark.parametrize(
    ("slices", "across"), [(S[:2], slice(0, 5)), (S[:1], slice(0, 3)), (S[1:2], slice(3, 5)), (S[1::-1], slice(0, 5))]
)
def test_a_measure_is_of_the_blocks_that_are_named(
    rows: tuple[bytes, ...], place: slice, slices: tuple[bytes, ...], across: slice
) -> None:
    """Other devices may be asked about other slices of the same sheet."""
    pupil, squares = strips()
    assert pupil.measure(rows, slices, [1]) == pytest.approx(float(squares[place, across].sum()), rel=1e-5)


@pytest.mark.parametrize(("rows", "places"), [(R[2:3], [3, 4]), (R[1:3], [2, 3, 4]), (R[:3], [0, 1, 2, 3, 4])])
def test_some_rows_of_a_sheet_are_measured_right_or_refused(rows: tuple[bytes, ...], places: list[int]) -> None:
    pupil, squares = strips()
    try:
        found = pupil.measure(rows, S[:2], [1])
    except RefusedError:
        return
    assert found == pytest.approx(float(squares[places].sum()), rel=1e-5)


def test_rows_that_are_not_held_are_not_measured() -> None:
    pupil, layout, _ = taught(3, 4)
    with pytest.raises(RefusedError, match="not held"):
        pupil.measure((*layout.rows, R[3]), layout.slices, [])
