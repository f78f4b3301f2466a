"""What a request comes down to: products of weights that lie side by side, and their sums."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from awfulowl.arithmetic.products import Weights
from awfulowl.blocks.grid import Span
from awfulowl.blocks.kernels import Kernel
from awfulowl.errors import RefusedError


class Product(NamedTuple):
    """Add `weights` times the inputs `source` to the outputs `target`."""

    weights: Weights
    kernel: Kernel
    groups: int
    source: Span
    target: Span


class Recipe(NamedTuple):
    """A term, looked up once: the products that make it, and its number of outputs."""

    products: tuple[Product, ...]
    outputs: int


def join(left: Product, right: Product) -> Product | None:
    """Return one product for two whose weights and inputs lie side by side, or None."""
    one, other = left.weights.planes, right.weights.planes
    side_by_side = (
        left.groups == right.groups == 1
        and left.target == right.target
        and left.source.stop == right.source.start
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.stride() == other.stride()
        and one.data_ptr() + one.shape[2] * one.stride(2) * one.element_size() == other.data_ptr()
    )
    if not side_by_side:
        return None
    shape = (*one.shape[:2], one.shape[2] + other.shape[2], *one.shape[3:])
    weights = left.weights._replace(planes=one.as_strided(shape, one.stride()))
    return left._replace(weights=weights, source=Span(left.source.start, right.source.stop))


def add_up(recipe: Recipe, x: Tensor, multiply: Callable[[Product, Tensor], Tensor]) -> Tensor:
    """Return the sum of a recipe's products with inputs x (batch, sum of slices, *space)."""
    total: Tensor | None = None
    for one in recipe.products:
        part = multiply(one, x[:, one.source.start : one.source.stop])
        if total is None and one.target.size == recipe.outputs:
            total = part
            continue
        if total is None:
            total = part.new_zeros((part.shape[0], recipe.outputs, *part.shape[2:]))
        total[:, one.target.start : one.target.stop] += part
    if total is None:
        raise RefusedError("apply: a term without products")
    return total
