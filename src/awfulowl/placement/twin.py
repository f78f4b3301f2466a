"""The twin of a scattered model: the same integers, computed here."""

from torch import nn

from awfulowl.arithmetic.local import LocalProduct
from awfulowl.arithmetic.numbers import Integers, integers
from awfulowl.blocks.adapters.base import Product
from awfulowl.errors import InputError, PlanError
from awfulowl.placement.plan import Plan, model_digest
from awfulowl.placement.survey import parts_of, with_products


def twin(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a local module that computes what devices compute under an exact plan; see `Plan.twin`."""
    numbers = {member.product: integers(panel.arithmetic) for panel in plan.panels for member in panel.members}
    floats = [name for name, found in numbers.items() if found is None]
    if floats:
        raise InputError(
            f"{floats[0]} is multiplied in float32, where every machine rounds in its own order: there is no twin. "
            "Make the plan with arithmetic='int8' or 'int16'"
        )
    if plan.model != model_digest(model.named_parameters(remove_duplicate=False)):
        raise PlanError("this plan was made for another model: names, shapes or types of parameters differ")
    parts = parts_of(model, plan)
    products = {name: made for part in parts.values() for name, made in part.products().items()}
    exact = {name: found for name, found in numbers.items() if found is not None}
    return with_products(model, parts, {name: _local(name, made, exact[name]) for name, made in products.items()})


def _local(name: str, made: Product, numbers: Integers) -> LocalProduct:
    return LocalProduct(made.weights, made.kernel, made.groups, numbers, name)
