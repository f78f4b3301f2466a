"""What benchmarks of the check draw: of the right shape, repeatable, and no lie is the truth."""

from functools import partial

import pytest
import torch

from awfulowl.blocks.kernels import Convolution, Dense, product
from benchmarks.inputs_and_lies import INPUTS, LIES_AT_POSITIONS, Told, lies_about


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("shape", [(4, 300), (4, 30, 5, 5)])
def test_inputs_are_repeatable(kind: str, shape: tuple[int, ...]) -> None:
    x, again, other = (INPUTS[kind](shape, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert (x.shape, x.dtype) == (shape, torch.float32)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize(("axes", "kind"), [(axes, kind) for axes in (0, 2) for kind in lies_about(axes)])
def test_lies_are_about_the_answer(axes: int, kind: str) -> None:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    kernel = Convolution((1, 1), (1, 1), (1, 1)) if axes else Dense()
    weights, x = draw(6, 8, *[3] * axes), draw(2, 8, *[5] * axes)
    multiply = partial(product, kernel, x=x)
    told = Told(multiply(weights), weights, multiply, draw)
    error = lies_about(axes)[kind](told)
    assert error.shape == told.y.shape
    assert bool((error.flatten(1).norm(dim=1) > 0).all())


def test_errors_at_opposite_positions_add_up_to_nothing() -> None:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    told = Told(draw(2, 6, 5, 5), draw(6, 8, 3, 3), lambda weights: weights, draw)
    error = LIES_AT_POSITIONS["opposite positions"](told)
    assert int((error != 0).any(dim=1).sum()) == 2 * 2
    torch.testing.assert_close(error.sum(dim=(2, 3)), torch.zeros(2, 6))
