"""From a model to a plan: the promised `awfulowl.plan`."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from torch import nn

from awfulowl.placement.ledger import Device
from awfulowl.placement.naming import HasDevices, name_devices
from awfulowl.placement.options import Options, parse_arithmetic
from awfulowl.placement.plan import Plan, model_digest
from awfulowl.placement.planner import make_plan
from awfulowl.placement.precision import choose
from awfulowl.placement.survey import survey
from awfulowl.randomness import SYSTEM, Entropy


def plan_model(
    model: nn.Module,
    example: object,
    devices: Sequence[Device],
    options: Options,
    entropy: Entropy = SYSTEM,
) -> Plan:
    """Survey a model and make a plan with every option; see `plan`."""
    found = choose(model, survey(model, example), example, options)
    digest = model_digest(model.named_parameters(remove_duplicate=False))
    made = make_plan(found.layers, devices, options, entropy, model=digest, kept=found.kept)
    return msgspec.structs.replace(made, notes=(*made.notes, *found.notes))


def plan(
    model: nn.Module,
    example: object = None,
    *,
    devices: int | Sequence[str | Device] | Mapping[str, str] | HasDevices,
    block: Literal["auto"] | int | tuple[int, int] = "auto",
    replicas: int | None = None,
    keep: Sequence[str] = (),
    share: float | None = None,
    domain_share: float | None = None,
    arithmetic: str = "float32",
    sharing: str | None = None,
) -> Plan:
    """Decide which device gets which blocks of a model. The plan is the owner's secret.

    Args:
        model: any module; it is not changed.
        example: what it is called with (a tensor, a tuple of arguments, a dictionary of keyword arguments). Without
            one, layers are taken as neighbours in the order of definition, and none share a request.
        devices: how many (d1, d2, ...), names, a mapping of names to domains, or a fleet.
        block: rows and columns of a block; "auto" is the largest of 256, 128, 64, 32, 16 that gives the largest
            layer 64 blocks or more.
        replicas: devices that hold each block; by default 2, or 1 on fewer than 4 devices or with a sharing.
        keep: modules that stay at the owner, by path.
        share: largest share of a layer's input slices that one device may ever see.
        domain_share: the same for a domain.
        arithmetic: "float32", or exact integers: "int8" (fast), "int16" (near lossless), or "auto", for each layer
            int8 where its error on the example is below 1 %, else int16; "auto:0.002" sets another budget.
        sharing: None, or how exact products are shared: "inputs:2" (to "inputs:8") splits inputs among domains of
            which each holds the weights; "replicated" splits inputs and weights among three.

    Raises:
        ModelError: nothing can be scattered, weights are unreadable, or a layer does not fit the integers asked for.
        RuleError: the rules cannot be met.
        InputError: an option is out of range.
    """
    kind, budget = parse_arithmetic(str(arithmetic))
    options = Options(
        block=block,
        replicas=replicas,
        keep=tuple(keep),
        share=share,
        domain_share=domain_share,
        arithmetic=kind,
        error_budget=budget,
        sharing=None if sharing is None else str(sharing),
    )
    return plan_model(model, example, name_devices(devices), options)
