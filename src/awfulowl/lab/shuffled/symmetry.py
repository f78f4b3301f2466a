"""Which hidden units of a network may change places without changing what it computes.

Units that are added to each other (residual connections) must move together; what enters the network and what
leaves it stays. Both are read from a trace of the model (torch.fx). Where an operation is not known here its units
are taken to be fixed, so that a symmetry that is found is one, and one that is missed is only missed.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from awfulowl.errors import ModelError


class Axis(NamedTuple):
    """One dimension of a tensor: the units of a permutation in order, each `repeats` entries in a run."""

    permutation: int
    repeats: int = 1


Axes = tuple[Axis | None, ...]


class Symmetry(NamedTuple):
    """The sizes of all free permutations, and for each tensor of the state which dimensions they act on.

    Permutations are numbered in the order in which the network computes their units.
    """

    sizes: tuple[int, ...]
    axes: Mapping[str, Axes]


class _Value(NamedTuple):
    """Units that flow through the network: their group, and how they lie.

    `maps`: along dimension 1, pixels behind. `flat`: along the last dimension. `spread`: so too, each in as many
    entries as it had pixels.
    """

    group: int
    lies: Literal["maps", "flat", "spread"]


_ELEMENTWISE: Final = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Hardtanh),
    *(nn.Identity, nn.Dropout),
)
_POOLS: Final = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d)
_ELEMENTWISE_CALLS: Final[frozenset[object]] = frozenset(
    {
        *(torch.relu, functional.relu, functional.gelu, functional.silu, torch.tanh, torch.sigmoid, functional.dropout),
        *("relu", "relu_", "tanh", "sigmoid", "contiguous"),
    }
)
_POOL_CALLS: Final[frozenset[object]] = frozenset(
    {functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.max_pool2d}
)
_SUMS: Final[frozenset[object]] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_FLATTENING: Final[frozenset[object]] = frozenset({"flatten", torch.flatten})
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)


def find_symmetry(model: nn.Module) -> Symmetry:
    """Return the permutations of hidden units under which a network computes the same.

    Source: Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2022, section 3.2, where they are written by hand.

    Raises:
        ModelError: torch.fx cannot trace the model.
    """
    try:
        graph = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ModelError(f"the model cannot be traced, so its symmetries are not known: {error}") from error
    finder = _Finder(model, dict(graph.named_modules()))
    for node in graph.graph.nodes:
        finder.visit(node)
    return finder.found({name: tensor.dim() for name, tensor in model.state_dict().items()})


class _Finder:
    """Groups of units that move together, found along a trace."""

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._fixed: set[int] = set()
        self._values: dict[fx.Node, _Value | None] = {}
        self._touched: dict[str, list[tuple[int, int] | None]] = {}
        self._outputs: dict[str, int] = {}
        first: dict[int, str] = {}
        # Tied parameters have several names and one value: they move together.
        self._same = {
            name: first.setdefault(id(one), name) for name, one in model.named_parameters(remove_duplicate=False)
        }

    def visit(self, node: fx.Node) -> None:
        """Take one step along the trace."""
        if node.op == "call_module":
            value = self._module(node, str(node.target))
        elif node.op in {"call_function", "call_method"}:
            value = self._call(node)
        else:
            # Inputs, constants and outputs: nothing that meets them may move.
            self._fix(node)
            value = None
        self._values[node] = value

    def found(self, dimensions: Mapping[str, int]) -> Symmetry:
        """Return what was found, for all tensors of the state."""
        fixed = {self._root(group) for group in self._fixed}
        roots: dict[int, int] = {}
        for group in range(len(self._parents)):
            root = self._root(group)
            if root not in fixed and self._sizes[root] > 1:
                roots.setdefault(root, len(roots))
        axes: dict[str, Axes] = {}
        for name, count in dimensions.items():
            touched = self._touched.get(self._same.get(name, name), [])
            known = [self._axis(one, roots) for one in touched[:count]]
            axes[name] = (*known, *[None] * (count - len(known)))
        return Symmetry(tuple(self._sizes[root] for root in roots), axes)

    def _axis(self, touched: tuple[int, int] | None, roots: Mapping[int, int]) -> Axis | None:
        if touched is None or self._root(touched[0]) not in roots:
            return None
        return Axis(roots[self._root(touched[0])], touched[1])

    def _module(self, node: fx.Node, name: str) -> _Value | None:
        module, value = self._modules[name], self._value(node)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return self._product(node, name, module, value)
        if value is not None:
            if isinstance(module, (*_NORMS, nn.LayerNorm)):
                return self._norm(node, name, module, value)
            if isinstance(module, _ELEMENTWISE) or (isinstance(module, _POOLS) and value.lies == "maps"):
                return value
            if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
                return _flattened(value)
        self._fix(node)
        return None

    def _product(self, node: fx.Node, name: str, module: nn.Linear | nn.Conv2d, value: _Value | None) -> _Value:
        outputs, inputs = module.weight.shape[:2]
        dense = isinstance(module, nn.Linear)
        plain = isinstance(module, nn.Linear) or module.groups == 1
        entering = None
        if value is not None and plain and dense == (value.lies != "maps"):
            repeats, rest = divmod(inputs, self._size(value))
            if rest == 0 and (repeats == 1 or value.lies == "spread"):
                entering = value.group, repeats
        if entering is None:
            self._fix(node)
        if name not in self._outputs:
            self._outputs[name] = self._group(outputs)
        leaving = self._outputs[name]
        if not plain:
            self._fixed.add(leaving)
        self._touch(f"{name}.weight", [(leaving, 1), entering])
        self._touch(f"{name}.bias", [(leaving, 1)])
        return _Value(leaving, "flat" if dense else "maps")

    def _norm(self, node: fx.Node, name: str, module: nn.Module, value: _Value) -> _Value | None:
        if isinstance(module, nn.LayerNorm):
            counted = module.normalized_shape[0]
            fits = len(module.normalized_shape) == 1 and value.lies != "maps"
        else:
            counted = int(getattr(module, "num_features", 0))
            fits = (value.lies == "maps") == isinstance(module, nn.BatchNorm2d)
        repeats, rest = divmod(counted, self._size(value))
        if not fits or rest or not repeats or (repeats > 1 and value.lies != "spread"):
            self._fix(node)
            return None
        for part in ("weight", "bias", "running_mean", "running_var"):
            self._touch(f"{name}.{part}", [(value.group, repeats)])
        return value

    def _call(self, node: fx.Node) -> _Value | None:
        values = [self._values[one] for one in node.all_input_nodes]
        value = values[0] if values else None
        if node.target in _SUMS and value is not None:
            return self._sum(node, values)
        if len(values) == 1 and value is not None:
            if node.target in _ELEMENTWISE_CALLS:
                return value
            if node.target in _POOL_CALLS and value.lies == "maps":
                return value
            if node.target in _FLATTENING and (node.args[1:] == (1,) or node.kwargs == {"start_dim": 1}):
                return _flattened(value)
            if value.lies == "maps" and _averages(node):
                return _Value(value.group, "flat")
        self._fix(node)
        return None

    def _sum(self, node: fx.Node, values: list[_Value | None]) -> _Value | None:
        known = [value for value in values if value is not None]
        alike = {(self._size(value), value.lies) for value in known}
        if len(known) < len(values) or len(alike) > 1:
            self._fix(node)
            return None
        for value in known[1:]:
            self._join(known[0].group, value.group)
        return known[0]

    def _touch(self, name: str, axes: list[tuple[int, int] | None]) -> None:
        """Note which groups a tensor's dimensions belong to; a tensor that is used twice belongs to both."""
        name = self._same.get(name, name)
        for before, now in zip(self._touched.get(name, []), axes, strict=False):
            if before is not None and now is not None and before[1] == now[1]:
                self._join(before[0], now[0])
            else:
                self._fixed.update(one[0] for one in (before, now) if one is not None)
        self._touched.setdefault(name, axes)

    def _value(self, node: fx.Node) -> _Value | None:
        first = node.args[0] if node.args else None
        return self._values.get(first) if isinstance(first, fx.Node) else None

    def _fix(self, node: fx.Node) -> None:
        used: Iterable[_Value | None] = (self._values.get(one) for one in node.all_input_nodes)
        self._fixed.update(value.group for value in used if value is not None)

    def _group(self, size: int) -> int:
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        return self._parents[-1]

    def _size(self, value: _Value) -> int:
        return self._sizes[value.group]

    def _root(self, group: int) -> int:
        while self._parents[group] != group:
            group = self._parents[group]
        return group

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parents[max(one, other)] = min(one, other)


def _flattened(value: _Value) -> _Value:
    return _Value(value.group, "spread" if value.lies == "maps" else value.lies)


def _averages(node: fx.Node) -> bool:
    """Say whether a call averages maps over their pixels and drops these dimensions."""
    if node.target not in {"mean", torch.mean} or len(node.args) > 2 or not node.kwargs.keys() <= {"dim"}:
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(dims, (tuple, list)) and tuple(dims) in {(2, 3), (-2, -1)}
