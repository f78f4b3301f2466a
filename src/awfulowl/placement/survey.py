"""What a model consists of: its products in the order of execution, and which of them share an input."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.blocks.adapters.base import Product
from awfulowl.blocks.adapters.catalogue import Target, scatterable
from awfulowl.blocks.adapters.convolution import ConvolutionAdapter
from awfulowl.blocks.adapters.stand_in import Multiply
from awfulowl.blocks.kernels import Dense, product
from awfulowl.blocks.surgery import substitute
from awfulowl.errors import ModelError, PlanError
from awfulowl.placement.cutting import Layer
from awfulowl.placement.plan import Plan

UNFOLD_BELOW: Final = 4
"""Convolutions with fewer input channels (a colour image has 3) cannot be cut well on channel boundaries, so the
owner unfolds them: their taps become inputs that can."""


class Part(NamedTuple):
    """A module that is scattered, and whether its convolution is unfolded at the owner."""

    target: Target
    unfold: bool

    def products(self) -> dict[str, Product]:
        """Return its products by their names in the model."""
        return {product_name(self.target.name, found.name): found for found in self.target.products(unfold=self.unfold)}


class Survey(NamedTuple):
    """What was found in a model."""

    parts: Mapping[str, Part]
    layers: tuple[Layer, ...]
    kept: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def product_name(path: str, name: str) -> str:
    """Return a product's name within a model: the module's path, and the product's own name where it has one."""
    return f"{path}/{name}" if name else path


def survey(model: nn.Module, example: object = None) -> Survey:
    """Find what can be scattered, in the order of an example pass, or of definition where there is no example.

    Args:
        model: any module; it is not changed.
        example: what `model` is called with: a tensor, a tuple of arguments, or a dictionary of keyword arguments.

    Raises:
        ModelError: there is nothing to scatter, or weights are unreadable. What the model itself raises on the
            example passes unchanged.
    """
    found = scatterable(model)
    parts = {target.name: Part(target, _should_unfold(target)) for target in found.targets}
    products = {name: made for part in parts.values() for name, made in part.products().items()}
    notes = [f"{name} is also {', '.join(places)}: the owner keeps it there" for name, places in found.tied.items()]
    if not products:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in list(found.kept.items())[:8])
        raise ModelError(f"there is nothing to scatter in this model{f' ({reasons})' if reasons else ''}")
    if example is None:
        layers = [_layer(name, made) for name, made in products.items()]
    else:
        calls = _record(model, parts, products, example)
        layers = _layers(products, calls, samples_in(example))
        idle = [name for name in products if name not in calls]
        notes += [f"the example does not reach {name}: its place among its neighbours is a guess" for name in idle]
    return Survey(parts, tuple(layers), tuple(found.kept.items()), tuple(notes))


def parts_of(model: nn.Module, plan: Plan) -> dict[str, Part]:
    """Return the modules of a model that a plan scatters, as the plan scatters them.

    Raises:
        PlanError: the plan names products that the model does not have.
    """
    dense = {member.product: isinstance(panel.grid.kernel, Dense) for panel in plan.panels for member in panel.members}
    parts = {}
    known = set()
    for target in scatterable(model).targets:
        names = [product_name(target.name, made.name) for made in target.adapter.products(target.module)]
        if all(name in dense for name in names):
            unfold = isinstance(target.adapter, ConvolutionAdapter) and dense[names[0]]
            parts[target.name] = Part(target, unfold)
            known.update(names)
    missing = sorted(dense.keys() - known)
    if missing:
        raise PlanError(f"the plan scatters {missing[0]}, which this model does not have; make a new plan")
    return parts


def _should_unfold(target: Target) -> bool:
    if not isinstance(target.adapter, ConvolutionAdapter):
        return False
    (native,) = target.adapter.products(target.module)
    return native.groups == 1 and native.weights[0].shape[1] < UNFOLD_BELOW


def _shape(made: Product) -> tuple[int, ...]:
    return (sum(weight.shape[0] for weight in made.weights), *made.weights[0].shape[1:])


def _layer(name: str, made: Product) -> Layer:
    return Layer(name, _shape(made), made.kernel, made.groups)


class _Call(NamedTuple):
    """One product of the example pass; keeping x alive keeps its identity unique."""

    x: Tensor
    y_shape: torch.Size


def _record(
    model: nn.Module, parts: Mapping[str, Part], products: Mapping[str, Product], example: object
) -> dict[str, list[_Call]]:
    """Run the example through stand-ins that multiply here and take notes."""
    calls: dict[str, list[_Call]] = {}

    def recorder(name: str) -> Multiply:
        def multiply(x: Tensor) -> Tensor:
            y = _multiply(products[name], x)
            calls.setdefault(name, []).append(_Call(x, y.shape))
            return y

        return multiply

    with torch.no_grad():
        call_with(with_products(model, parts, {name: recorder(name) for name in products}).eval(), example)
    return calls


def _multiply(made: Product, x: Tensor) -> Tensor:
    ys = [product(made.kernel, weight.float(), x, made.groups) for weight in made.weights]
    return torch.cat(ys, dim=-1 if isinstance(made.kernel, Dense) else 1)


def errors(
    model: nn.Module, parts: Mapping[str, Part], example: object, others: Mapping[str, Multiply]
) -> dict[str, float]:
    """Return for each product that the example reaches how far another way to multiply is off.

    Args:
        model: any module; it is not changed.
        parts: its parts, from `survey`.
        example: what it is called with.
        others: the other way, by product. What goes into each is computed in float32.

    Returns:
        The length of the error over that of the product, over the whole example.
    """
    products = {name: made for part in parts.values() for name, made in part.products().items()}
    squares: dict[str, tuple[float, float]] = {}

    def measurer(name: str) -> Multiply:
        def multiply(x: Tensor) -> Tensor:
            y = _multiply(products[name], x)
            if name not in others:
                return y
            error, size = squares.get(name, (0.0, 0.0))
            off = (others[name](x) - y).double().square().sum()
            squares[name] = error + float(off), size + float(y.double().square().sum())
            return y

        return multiply

    with torch.no_grad():
        call_with(with_products(model, parts, {name: measurer(name) for name in products}).eval(), example)
    return {name: math.sqrt(error / size) if size else 0.0 for name, (error, size) in squares.items()}


def with_products(model: nn.Module, parts: Mapping[str, Part], multiply: Mapping[str, Multiply]) -> nn.Module:
    """Return a copy of a model, sharing its tensors, whose products are computed by others.

    Args:
        model: left as it is.
        parts: the modules that are replaced.
        multiply: what computes each product, by its name in the model.
    """
    replacements = {
        part.target.module: part.target.replace(
            {made.name: multiply[name] for name, made in part.products().items()}, unfold=part.unfold
        )
        for part in parts.values()
    }
    return substitute(model, replacements, tensors="frozen")


def call_with(model: nn.Module, example: object) -> Any:
    """Call a model with an example: a tuple is its arguments, a dictionary its keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def samples_in(example: object) -> int:
    """Return the number of samples in an example: the first length of its first tensor."""
    values: Sequence[object] = (
        list(example.values()) if isinstance(example, Mapping) else example if isinstance(example, tuple) else [example]
    )
    sizes = (value.shape[0] for value in values if isinstance(value, Tensor) and value.dim() > 0)
    return next(sizes, 1) or 1


def _layers(products: Mapping[str, Product], calls: Mapping[str, list[_Call]], batch: int) -> list[Layer]:
    numbers = itertools.count()
    inputs: dict[int, int] = {}
    layers = []
    for name, made in calls.items():
        dense = isinstance(products[name].kernel, Dense)
        number = inputs.setdefault(id(made[0].x), next(numbers))
        layers.append(
            _layer(name, products[name])._replace(
                input=number,
                positions=sum(_vectors(call.y_shape, batch, dense=dense) for call in made),
                input_positions=sum(_vectors(call.x.shape, batch, dense=dense) for call in made),
            )
        )
    return layers + [_layer(name, made) for name, made in products.items() if name not in calls]


def _vectors(shape: torch.Size, batch: int, *, dense: bool) -> int:
    return max(1, math.prod(shape[:-1]) // batch if dense else math.prod(shape[2:]))
