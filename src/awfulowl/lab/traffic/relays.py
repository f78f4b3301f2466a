"""What lies between a scattered layer and the next one: what devices of the next one see of the outputs of the first.

Where that is a batch norm, a ReLU and a flattening, outputs are seen as they are, scaled and rectified; behind a
pooling only what it leaves of them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from awfulowl.errors import ModelError

Map = Callable[[Tensor], Tensor]


class Relay(NamedTuple):
    """The way of a layer's outputs.

    `next` is the layer that they enter, None where they are the answers; `norm` the batch norm on the way; `rectified`
    whether negative outputs are lost; `pool` what is left of maps, None where all is.
    """

    next: str | None
    norm: str | None = None
    rectified: bool = False
    pool: Map | None = None


_RELU_CALLS: Final[frozenset[object]] = frozenset({torch.relu, functional.relu, "relu", "relu_"})
_POOLS: Final = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_POOL_CALLS: Final[frozenset[object]] = frozenset(
    {functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.max_pool2d}
)
_IDLE: Final = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
_IDLE_CALLS: Final[frozenset[object]] = frozenset({torch.flatten, "flatten", functional.dropout, "contiguous"})


def find_relays(model: nn.Module, layers: Collection[str]) -> Mapping[str, Relay]:
    """Return the relay of every layer whose outputs go, through known operations, to one other layer or to the answers.

    Raises:
        ModelError: torch.fx cannot trace the model.
    """
    try:
        graph = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ModelError(f"the model cannot be traced, so it is not known where outputs go: {error}") from error
    modules = dict(graph.named_modules())
    found = {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and str(node.target) in layers:
            relay = _follow(node, modules, layers)
            if relay is not None:
                found[str(node.target)] = relay
    return found


def _follow(node: fx.Node, modules: Mapping[str, nn.Module], layers: Collection[str]) -> Relay | None:
    relay = Relay(None)
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "output":
            return relay if node.args[0] is not None else None
        if node.op == "call_module" and str(node.target) in layers:
            return relay._replace(next=str(node.target))
        if len(node.all_input_nodes) != 1:
            return None
        further = _step(relay, node, modules)
        if further is None:
            return None
        relay = further
    return None


def _step(relay: Relay, node: fx.Node, modules: Mapping[str, nn.Module]) -> Relay | None:
    """Return the relay with one more operation, or None where it is not known."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    plain = not relay.rectified and relay.pool is None
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and plain and relay.norm is None:
        return relay._replace(norm=str(node.target))
    if isinstance(module, nn.ReLU) or (module is None and node.target in _RELU_CALLS):
        return relay._replace(rectified=True)
    if isinstance(module, _IDLE) or (module is None and node.target in _IDLE_CALLS):
        return relay
    if relay.pool is None and isinstance(module, _POOLS):
        return relay._replace(pool=module)
    if relay.pool is None and module is None and node.target in _POOL_CALLS:
        return relay._replace(pool=_bound(node))
    return None


def _bound(node: fx.Node) -> Map:
    """Return a call with all its arguments but the first."""
    call: Any = node.target
    rest, named = node.args[1:], dict(node.kwargs)

    def pool(x: Tensor) -> Tensor:
        pooled: Tensor = call(x, *rest, **named)
        return pooled

    return pool


def outputs_seen(relay: Relay, outputs: int, entered: Tensor, seen: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return a layer's outputs (n, outputs, *space) as they enter the next layer, and which (outputs,) were seen.

    Args:
        relay: of the layer.
        outputs: how many it has.
        entered: what entered the next layer: (n, inputs, *space), flattened or not; or answers (n, outputs).
        seen: which of the inputs (inputs,) were.

    Returns:
        None where the two do not fit. A map counts as seen where all its pixels were.
    """
    if entered.shape[1] == outputs:
        return entered, seen
    pixels, rest = divmod(entered.shape[1], outputs)
    if rest or entered.dim() != 2 or relay.next is None:
        return None
    return entered.reshape(len(entered), outputs, pixels), seen.reshape(outputs, pixels).all(dim=1)
