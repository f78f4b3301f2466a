"""Blocks on a GPU, where there is one: float32 throughout, so the owner's check accepts what it answers."""

import pytest
import torch

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, product
from awfulowl.device.store import Store, full_precision
from awfulowl.limits import GIB, Limits
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Check
from awfulowl.wire.messages import Apply, Sheet, Term

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")


@pytest.mark.parametrize("kernel", [Dense(), Convolution((1, 1), (1, 1), (1, 1))])
def test_products_on_the_gpu_pass_the_check(kernel: Kernel) -> None:
    full_precision()
    size: tuple[int, ...] = () if isinstance(kernel, Dense) else (3, 3)
    weight = torch.randn(256, 192, *size)
    grid = make_grid(tuple(weight.shape), kernel, 1, block=64)
    held = Store(Limits(), GIB, "cuda")
    rows, slices = (b"r" * 16,), (b"s" * 16,)
    held.load([Sheet(rows, (256,), slices, (192,), kernel)], [weight])
    x = torch.randn(32, 192, *[8 for _ in size])
    (y,) = held.apply(Apply(slices, (Term(rows, slices),)), x)
    assert y.device.type == "cpu"
    torch.testing.assert_close(y, product(kernel, weight, x), rtol=1e-3, atol=1e-3)
    assert bool(Check([weight], grid, Entropy(0)).accepts(x, y).all())
    assert torch.equal(held.fetch(rows, slices), weight)
