"""From a model under training to a checkpoint, and back."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from awfulowl.errors import CheckpointError, InputError
from awfulowl.owner import checkpoint
from awfulowl.owner.checkpoint import Checkpoint, Facts
from awfulowl.owner.freezing import Frozen, fetch_frozen
from awfulowl.owner.gather import state_dict
from awfulowl.owner.optimizer import FleetOptimizer
from awfulowl.owner.states import ADAPTATION_PARTS, DESCENT_PARTS, PARTS
from awfulowl.owner.training import TrainedDeployment
from awfulowl.placement.plan import Plan
from awfulowl.placement.survey import Part


class Moment(NamedTuple):
    """All of a training at one step: what devices froze, and copies of what the owner holds."""

    frozen: Frozen
    facts: Facts
    kept: dict[str, Tensor]
    training: dict[str, Tensor]


def check_extra(extra: Mapping[str, Any]) -> None:
    """See whether JSON gives back what it is given.

    Raises:
        InputError: it does not: keys that are no strings, infinity, sets.
    """
    try:
        back = msgspec.json.decode(msgspec.json.encode(dict(extra)))
        changed = _changed(_listed(msgspec.to_builtins(dict(extra))), back, "extra")
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InputError(f"extra cannot be written as JSON: {error}") from error
    if changed is not None:
        raise InputError(f"{changed} would come back from JSON as something else (keys that are no strings? infinity?)")


def _changed(value: Any, back: Any, path: str) -> str | None:
    """Return the path of the first thing in a value that is not what came back."""
    if isinstance(value, dict) and isinstance(back, dict) and value.keys() == back.keys():
        found = (_changed(value[key], back[key], f"{path}[{key!r}]") for key in value)
        return next((one for one in found if one is not None), None)
    return None if value == back else path


def _listed(value: Any) -> Any:
    """Return a value with lists in place of tuples, as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _listed(own) for key, own in value.items()}
    return [_listed(own) for own in value] if isinstance(value, list | tuple) else value


def moment(
    scattered: nn.Module, optimizer: FleetOptimizer, plan: Plan, frozen: Frozen, extra: Mapping[str, Any]
) -> Moment:
    """Copy what the owner holds of a training; the next step may come as soon as this returns."""
    products = [tuple(member.product for member in panel.members) for panel in plan.panels]
    facts = Facts(
        step=optimizer.steps,
        model=plan.model,
        has_momentum=tuple(
            name for names, begun in zip(products, frozen.has_momentum, strict=True) if begun for name in names
        ),
        adapted={name: count for names, count in zip(products, frozen.adapted, strict=True) for name in names if count},
        drift={
            name: drift if math.isfinite(drift) else None
            for names, drift in zip(products, frozen.drift, strict=True)
            for name in names
        },
        groups=optimizer.settings(),
        random=torch.get_rng_state().numpy().tobytes(),
        extra=dict(extra),
        sha256={},
    )
    kept = {name: tensor.detach().clone() for name, tensor in scattered.state_dict().items()}
    return Moment(frozen, facts, kept, optimizer.kept_tensors())


async def save(
    deployment: TrainedDeployment, parts: Iterable[Part], now: Moment, directory: Path, timeout_s: float
) -> Path:
    """Fetch what devices froze, and write the checkpoint.

    Raises:
        UnavailableError: a device that froze blocks is gone, or lied.
        CheckpointError: it cannot be written.
    """
    states = await fetch_frozen(deployment, now.frozen, timeout_s)
    parts = list(parts)

    def put() -> Path:
        model = state_dict(deployment.panels, [state[0] for state in states], now.kept, parts)
        training = dict(now.training)
        for panel, state in zip(deployment.panels, states, strict=True):
            for member in panel.members:
                for name, part in zip(PARTS, state, strict=False):
                    training[f"{name}/{member.product}"] = part[member.rows.start : member.rows.stop]
        return checkpoint.write_checkpoint(directory, now.facts, model, training)

    return await deployment.engine.compute(put)


def states(found: Checkpoint, plan: Plan) -> dict[str, list[Tensor]]:
    """Return the states of all products of a plan.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    if found.facts.model != plan.model:
        raise CheckpointError("the checkpoint is of another model: names, shapes or types of parameters differ")
    states = {}
    for panel in plan.panels:
        for member in panel.members:
            shape = (member.rows.size, *panel.grid.shape[1:])
            own = [found.training.get(f"{name}/{member.product}") for name in PARTS]
            tensors = [tensor for tensor in own if tensor is not None and tuple(tensor.shape) == shape]
            adaptive = own[-1] is not None or found.facts.adapted.get(member.product)
            wanted = ADAPTATION_PARTS if adaptive else DESCENT_PARTS
            if len(tensors) != wanted or any(tensor.dtype is not torch.float32 for tensor in tensors):
                raise CheckpointError(
                    f"the checkpoint holds no state of {member.product or 'the model'} in this model's shape"
                )
            states[member.product] = tensors
    return states


def restore(found: Checkpoint, scattered: nn.Module) -> None:
    """Load what is kept at the owner.

    Raises:
        CheckpointError: it does not fit the model.
    """
    kept = {name: found.model[name] for name in scattered.state_dict() if name in found.model}
    try:
        missing, unexpected = scattered.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit this model: {error}") from error
    lost = [name for name in missing if name in scattered.state_dict()]
    if lost or unexpected:
        raise CheckpointError(f"the checkpoint does not hold {', '.join([*lost, *unexpected][:4])}")


def resume(found: Checkpoint, deployment: TrainedDeployment) -> None:
    """Let panels go on where they were: whether a momentum has begun, Adam, and what devices may have strayed."""
    begun, adapted = set(found.facts.has_momentum), found.facts.adapted
    drift = {name: math.inf if known is None else known for name, known in found.facts.drift.items()}
    for number, (panel, history) in enumerate(zip(deployment.panels, deployment.histories, strict=True)):
        history.has_momentum = any(member.product in begun for member in panel.members)
        history.adapted = max(adapted.get(member.product, 0) for member in panel.members)
        history.adaptive = deployment.state(number).parts == ADAPTATION_PARTS
        deployment.strayed(number, max(drift.get(member.product, math.inf) for member in panel.members))
