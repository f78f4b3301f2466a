"""Blocks on a GPU, where there is one: float32 throughout, so the owner's check accepts what it answers."""

import pytest
import torch

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, backward, gradient, product
from awfulowl.device.dense import full_precision
from awfulowl.device.store import Store
from awfulowl.limits import GIB, Limits
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Check
from awfulowl.wire.messages import Apply, ApplyTransposed, Load
from awfulowl.wire.parts import Sheet, Term
from tests.unit.device.pupil import Pupil, by_torch, some_jobs
from tests.unit.device.test_store import CONV, sheet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")


@pytest.mark.parametrize("kernel", [Dense(), Convolution((1, 1), (1, 1), (1, 1))])
def test_products_on_the_gpu_pass_the_check(kernel: Kernel) -> None:
    full_precision()
    size: tuple[int, ...] = () if isinstance(kernel, Dense) else (3, 3)
    weight = torch.randn(256, 192, *size)
    grid = make_grid(tuple(weight.shape), kernel, 1, block=64)
    held = Store(Limits(), GIB, "cuda")
    rows, slices = (b"r" * 16,), (b"s" * 16,)
    held.load(Load((Sheet(rows, (256,), slices, (192,), kernel),)), [weight])
    x = torch.randn(32, 192, *[8 for _ in size])
    (y,) = held.apply(Apply(slices, (Term(rows, slices),)), x)
    assert y.device.type == "cpu"
    torch.testing.assert_close(y, product(kernel, weight, x), rtol=1e-3, atol=1e-3)
    assert bool(Check([weight], grid, Entropy(0)).accepts(x, y).all())
    (home,) = held.fetch(rows, slices)
    assert torch.equal(home, weight)


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(("kernel", "size", "space"), [(Dense(), (), ()), (CONV, (3, 3), (8, 8))])
def test_training_on_the_gpu(kernel: Kernel, size: tuple[int, ...], space: tuple[int, ...], is_kept: bool) -> None:
    """Inputs and gradients come in memory of the CPU, and a step needs them where the blocks are."""
    full_precision()
    pupil, layout, weight = Pupil(accelerator="cuda"), sheet([64], [48], kernel), torch.randn(64, 48, *size)
    pupil.load(layout, weight)
    steps = [some_jobs(2, 64, 48, kernel, size, space) for _ in range(3)]
    term = Term(layout.rows, layout.slices)
    for number, jobs in enumerate(steps, start=1):
        for job, (x, dy) in enumerate(jobs, start=1):
            before = pupil.weights(layout)
            if is_kept:
                pupil.keep(job, layout.slices, x)
                body = ApplyTransposed(layout.rows, layout.slices, (term,), space, job, job)
                (dx,) = pupil.learner.apply_transposed(body, [dy])
            else:
                (dx,) = pupil.transposed_with_job(job, layout, dy, x)
            assert dx.device.type == "cpu"
            torch.testing.assert_close(dx, backward(kernel, before, dy, space), rtol=1e-3, atol=1e-3)
        summed = torch.stack([gradient(kernel, size, x, dy) for x, dy in jobs]).sum(dim=0)
        found = pupil.measure(layout.rows, layout.slices, [1, 2])
        assert found == pytest.approx(float(summed.double().square().sum()), rel=1e-4)
        pupil.step(number, layout.slices, [1, 2], Descent.sgd(2.0**-10, momentum=0.75, first=number == 1))
    wanted = by_torch(kernel, weight, steps, lr=2.0**-10, momentum=0.75)
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-4, atol=1e-4)
