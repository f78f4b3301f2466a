"""A model cut behind one layer: what enters the layer, and everything after it as a function of what leaves it.

Attacks on one layer try thousands of weights for it. What comes before never changes, so it is computed once.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from awfulowl.errors import ModelError
from awfulowl.lab.victims.data import digest
from awfulowl.limits import MIB

_BATCH: Final = 250

_ELEMENTWISE: Final = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Identity,
    nn.Dropout,
)
_ELEMENTWISE_FUNCTIONS: Final = frozenset(
    {
        torch.relu,
        torch.tanh,
        torch.sigmoid,
        functional.relu,
        functional.gelu,
        functional.silu,
        functional.relu6,
        functional.leaky_relu,
        functional.dropout,
    }
)
_ELEMENTWISE_METHODS: Final = frozenset({"relu", "tanh", "sigmoid", "contiguous"})


class Entered(NamedTuple):
    """What reaches a layer, and what its successors take from elsewhere; one entry per example."""

    inputs: Tensor
    """(n, inputs, *space)."""
    aside: tuple[Tensor, ...]
    """(n, ...) each: what goes around the layer, as in a residual network."""


class _Memory:
    """What entered layers lately. It goes by what networks and examples are, bit for bit: nothing can be out of date.

    Attacks on one victim, and whoever grades them, run the same layers on the same images a hundred times.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._known: OrderedDict[str, Entered] = OrderedDict()

    def recall(self, head: nn.Module, examples: Tensor, run: Callable[[], Entered]) -> Entered:
        """Return what is known of a traced network and examples, or run it; forget the oldest beyond `most_bytes`."""
        key = _described(head) + digest([tensor.detach() for tensor in (*head.parameters(), *head.buffers(), examples)])
        if key not in self._known:
            self._known[key] = run()
        self._known.move_to_end(key)
        found = self._known[key]
        while self._known and sum(map(_nbytes, self._known.values())) > self.most_bytes:
            self._known.popitem(last=False)
        return found


def _described(head: nn.Module) -> str:
    """Return all of a traced network but its tensors: modules and code, which are printed, and what modules do not."""
    settings = [
        (
            name,
            type(module).__qualname__,
            sorted((key, repr(value)) for key, value in vars(module).items() if key[0] != "_"),
        )
        for name, module in head.named_modules()
    ]
    return f"{head}{settings}"


def _nbytes(entered: Entered) -> int:
    return sum(part.nbytes for part in (entered.inputs, *entered.aside))


_MEMORY: Final = _Memory(512 * MIB)


class Split(NamedTuple):
    """A tail in two: activations and one linear layer, and the rest. Pieces of an output can go through alone."""

    activation: nn.Module
    """Works on each number alone."""
    linear: nn.Linear
    rest: nn.Module


class Tail:
    """Everything after a layer, in eval mode, with its parameters frozen.

    Args:
        model: is traced by `torch.fx`, so its forward does not branch on values; it is shared, not copied.
        layer: the name of a module that is called once in a pass.

    Raises:
        ModelError: there is no such layer, the model cannot be traced, or the layer is called otherwise than once.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        if layer not in dict(model.named_modules()):
            raise ModelError(f"the model has no layer '{layer}'")
        self._traced: Final = _trace(model.eval(), layer)
        calls = [node for node in self._traced.graph.nodes if node.op == "call_module" and node.target == layer]
        if len(calls) != 1 or len(calls[0].args) != 1:
            raise ModelError(f"layer '{layer}' is called {len(calls)} times in a pass; attacks take layers called once")
        self._node: Final[fx.Node] = calls[0]
        self._after: Final = _dependents(self._node)
        self._aside: Final = [
            node
            for node in self._traced.graph.nodes
            if node not in {*self._after, self._node}
            and node.op != "get_attr"
            and any(user in self._after for user in node.users)
        ]
        self._head: Final = self._make_head()
        self._tail: Final = self._part([self._node, *self._aside], self._after, None)

    def __call__(self, outputs: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """Return what the model returns when the layer returns (n, outputs, *space)."""
        answer: Tensor = self._tail(outputs, *aside)
        return answer

    def train(self, *, dropout: bool) -> None:
        """Switch dropout after the layer on or off; norms keep the statistics that they have."""
        for module in self._tail.modules():
            if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d):
                module.train(dropout)

    def enter(self, examples: Tensor) -> Entered:
        """Run what comes before the layer, once; what came of it lately is remembered, and must not be changed.

        Raises:
            ModelError: what goes around the layer is not one entry per example.
        """
        return _MEMORY.recall(self._head, examples, lambda: self._run_head(examples))

    @torch.no_grad()
    def _run_head(self, examples: Tensor) -> Entered:
        kept: dict[str, list[Tensor]] = {}
        for batch in torch.split(examples, _BATCH):
            for node, value in zip([self._node, *self._aside], self._head(batch), strict=True):
                if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(batch):
                    raise ModelError(f"'{node.name}' is used around the layer and is not one entry per example")
                kept.setdefault(node.name, []).append(value)
        whole = [torch.cat(parts) for parts in kept.values()]
        return Entered(whole[0], tuple(whole[1:]))

    def enter_flops(self, example: Tensor) -> float:
        """Return the operations of `enter` for one example of shape (1, ...)."""
        return _counted(self._head, (example,))

    def flops(self, outputs: Tensor, aside: tuple[Tensor, ...] = ()) -> float:
        """Return the operations of one call for one example: outputs (1, ...) and aside (1, ...) each."""
        return _counted(self._tail, (outputs, *aside))

    def split(self) -> Split | None:
        """Return the tail in two, or None where it is no chain of activations and a linear layer that goes on alone."""
        chain, node = [], self._node
        while True:
            if len(node.users) != 1:
                return None
            node = next(iter(node.users))
            module = self._traced.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, nn.Linear):
                break
            if not _elementwise(node, module):
                return None
            chain.append(node)
        beyond = self._after - set(chain) - {node}
        if any(other in beyond for other in (user for aside in self._aside for user in aside.users)):
            return None
        activation = self._part([self._node], set(chain), chain[-1] if chain else self._node)
        return Split(activation, module, self._part([node], beyond, None))

    def influence(self, outputs: int) -> Tensor | None:
        """Return how strongly the next layers with weights take in each output of the layer.

        Norms of the columns of linear layers and of the input channels of convolutions that the output reaches
        through anything without weights; batch norms on the way scale it. No data are needed.

        Args:
            outputs: of the layer.

        Returns:
            float32 (outputs,), or None where no layer with weights follows.
        """
        total, found = torch.zeros(outputs), False
        waiting: list[tuple[fx.Node, Tensor]] = [(user, torch.ones(outputs)) for user in self._node.users]
        seen: set[fx.Node] = set()
        while waiting:
            node, scale = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            module = self._traced.get_submodule(str(node.target)) if node.op == "call_module" else None
            squares = _input_squares(module, outputs)
            if squares is not None:
                total += squares * scale.square()
                found = True
                continue
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.num_features == outputs:
                scale = scale * _norm_scale(module)
            waiting += [(user, scale) for user in node.users]
        return total.sqrt() if found else None

    def _make_head(self) -> fx.GraphModule:
        before = {node for node in self._traced.graph.nodes if node not in self._after and node is not self._node}
        return self._part([], before, (self._node.args[0], *self._aside))

    def _part(self, inputs: list[fx.Node], nodes: set[fx.Node], result: Any) -> fx.GraphModule:
        """Return some nodes of the graph as a module with inputs in place of others; `result` None: the model's own."""
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in inputs}
        for node in self._traced.graph.nodes:
            if node in made or (node not in nodes and node.op != "get_attr"):
                continue
            if node.op == "output" and result is not None:
                continue
            made[node] = graph.node_copy(node, lambda old: made[old])
        if result is not None:
            graph.output(fx.map_arg(result, lambda old: made[old]))
        part = fx.GraphModule(self._traced, graph)
        for name, module in [*part.named_modules()]:
            if getattr(module, "inplace", False):
                # What goes in is kept, and would be overwritten.
                own = copy.copy(module)
                vars(own)["inplace"] = False
                part.set_submodule(name, own)
        graph.eliminate_dead_code()
        part.recompile()
        return part.eval()


def _trace(model: nn.Module, layer: str) -> fx.GraphModule:
    class Tracer(fx.Tracer):
        """Leaves the layer whole whatever its type."""

        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name == layer or super().is_leaf_module(m, module_qualified_name)

    try:
        return fx.GraphModule(model, Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError) as error:
        raise ModelError(f"the model cannot be traced, so it cannot be cut behind '{layer}': {error}") from error


def _dependents(start: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return isinstance(module, _ELEMENTWISE)
    if node.kwargs.get("inplace"):
        return False
    if node.op == "call_function":
        return node.target in _ELEMENTWISE_FUNCTIONS
    return node.op == "call_method" and node.target in _ELEMENTWISE_METHODS


def _input_squares(module: nn.Module | None, outputs: int) -> Tensor | None:
    """Return the sum of the squares of the weights that take in each of so many channels, or None without weights."""
    if isinstance(module, nn.Linear) and module.in_features % outputs == 0:
        return module.weight.detach().float().square().sum(dim=0).reshape(outputs, -1).sum(dim=1)
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.in_channels == outputs and module.groups == 1:
        return module.weight.detach().float().square().transpose(0, 1).flatten(1).sum(dim=1)
    return None


def _norm_scale(module: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    variance = module.running_var if module.running_var is not None else torch.ones(module.num_features)
    gain = module.weight.detach() if module.affine else torch.ones(module.num_features)
    return gain / (variance + module.eps).sqrt()


def _counted(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return float(counter.get_total_flops())


def mapped(entered: Entered, chosen: Tensor | slice) -> Entered:
    """Return some of the examples."""
    return Entered(entered.inputs[chosen], tuple(part[chosen] for part in entered.aside))
