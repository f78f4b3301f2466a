"""Which integers a layer is multiplied in, and what they cost: bounds are proved, errors are measured."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from torch import nn

from awfulowl.arithmetic.local import LocalProduct
from awfulowl.arithmetic.numbers import FLOAT32, INTEGERS, Integers
from awfulowl.errors import InputError, ModelError
from awfulowl.placement.cutting import Layer
from awfulowl.placement.options import AUTO, Options
from awfulowl.placement.planner import below
from awfulowl.placement.survey import Survey, errors
from awfulowl.verification.exact import secret_bits

_NARROWEST_FIRST: Final = ("int8", "int16")

_MOST_NAMED: Final = 8
"""Layers in one note."""


def why_unfit(layer: Layer, numbers: Integers) -> str | None:
    """Return why a layer does not fit integers, whatever its weights and inputs are, or None if it does.

    The sum of n products of numbers up to `largest` is at most n largest²: that has to be below half of the ring, and
    a check of all outputs has to be exact in 64 bits.
    """
    terms = math.prod(layer.shape[1:])
    if terms > numbers.most_terms:
        return (
            f"{layer.title} adds up {terms} products in each output, and {numbers.name} holds "
            f"{numbers.most_terms} at most"
        )
    try:
        secret_bits(layer.shape[0], numbers, terms * numbers.largest**2)
    except ModelError as error:
        return f"{layer.title}: {error}"
    return None


def choose(model: nn.Module, found: Survey, example: object, options: Options) -> Survey:
    """Return the survey with the arithmetic of every layer, and its error on the example.

    Raises:
        ModelError: a layer does not fit the integers that are asked for, or none.
        InputError: `auto` without an example, or what enters a layer is not finite.
    """
    if options.arithmetic == FLOAT32:
        return found
    if options.arithmetic == AUTO and example is None:
        raise InputError("arithmetic 'auto' measures errors on an example: give one, or choose 'int8' or 'int16'")
    names = _NARROWEST_FIRST if options.arithmetic == AUTO else (options.arithmetic,)
    measured = {name: _measure(model, found, example, INTEGERS[name]) for name in names}
    layers = tuple(_chosen(layer, names, measured, options) for layer in found.layers)
    return found._replace(layers=layers, notes=(*found.notes, *_above_budget(layers, options)))


def _above_budget(layers: Iterable[Layer], options: Options) -> Iterator[str]:
    """Say which layers `auto` found no integers for that are within the budget."""
    above = [
        f"{layer.title} ({layer.arithmetic}, error {layer.error:.2g})"
        for layer in layers
        if layer.error is not None and layer.error > options.error_budget
    ]
    if above and options.arithmetic == AUTO:
        more = [f"{len(above) - _MOST_NAMED} more"] if len(above) > _MOST_NAMED else []
        named = ", ".join([*above[:_MOST_NAMED], *more])
        yield f"no integers are within the error budget of {options.error_budget:g} for {named}"


def _chosen(
    layer: Layer, names: tuple[str, ...], measured: Mapping[str, Mapping[str, float]], options: Options
) -> Layer:
    """Return a layer in the first integers that fit and are within the budget; the last ones whatever they cost."""
    if any(below(layer.product, path) for path in options.keep):
        return layer
    fits = [name for name in names if why_unfit(layer, INTEGERS[name]) is None]
    if not fits:
        ways = ["choose arithmetic='int16'"] if why_unfit(layer, INTEGERS["int16"]) is None else []
        ways += [f"keep it at the owner (keep=('{layer.product}',))"] if layer.product else []
        reason = f"{why_unfit(layer, INTEGERS[names[-1]])}"
        raise ModelError(f"{reason}: {', or '.join(ways)}" if ways else reason)
    good = (name for name in fits if measured[name].get(layer.product, math.inf) <= options.error_budget)
    name = next(good, fits[-1])
    return layer._replace(arithmetic=name, error=measured[name].get(layer.product))


def _measure(model: nn.Module, found: Survey, example: object, numbers: Integers) -> Mapping[str, float]:
    if example is None:
        return {}
    products = {name: made for part in found.parts.values() for name, made in part.products().items()}
    unfit = {layer.product for layer in found.layers if why_unfit(layer, numbers) is not None}
    local = {
        name: LocalProduct(made.weights, made.kernel, made.groups, numbers, name)
        for name, made in products.items()
        if name not in unfit
    }
    return errors(model, found.parts, example, local)
