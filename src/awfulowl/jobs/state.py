"""Everything that a step depends on: parameters, buffers, the optimiser's state, and the number of the step.

Random numbers are no part of it: `loop` seeds every generator anew before each step, from the job's seed and the step.
A state is named by its digest and stored as safetensors.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from awfulowl.errors import ModelError, ProofError
from awfulowl.limits import MIB

MODEL: Final = "model."
OPTIMIZER: Final = "optimizer."
MOST_HEADER_BYTES: Final = 16 * MIB
"""Names and shapes in a stored state."""

_CONTEXT: Final = "awfulowl state"

_QUICK: Final = frozenset({torch.float32, torch.float64, torch.int64})
"""Types whose bytes NumPy finds sooner than PyTorch; it does not know all of them."""

Shape = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of one tensor."""
Form = tuple[Shape, ...]
"""What a state consists of, sorted by name."""


class State(NamedTuple):
    """A training before its step `step`; tensors by name."""

    step: int
    tensors: Mapping[str, Tensor]

    def copy(self) -> "State":
        """Return a state that later steps do not change."""
        return State(self.step, {name: tensor.detach().clone() for name, tensor in self.tensors.items()})

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Layout:
    """Where the tensors of a model and its optimiser are.

    Raises:
        ModelError: the optimiser moves a parameter that the model does not have, or the model is on another device.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer: Final = optimizer
        names = {parameter: name for name, parameter in model.named_parameters()}
        moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not moved or any(parameter not in names for parameter in moved):
            raise ModelError("the optimiser must move parameters of the model, one or more, and nothing else")
        if any(parameter.device.type != "cpu" for parameter in names):
            raise ModelError("a job's model must be on the CPU: there a step can be run again exactly")
        self._moved: Final = [(names[parameter], parameter) for parameter in moved]
        self._places: Final = list(_places(model))
        known = {id(parameter) for parameter in moved}
        self.still: Final = frozenset(MODEL + name for name, own, key in self._places if id(own[key]) not in known)
        """What of the model the optimiser does not move, by its names in states: buffers, frozen parameters."""

    def capture(self, step: int) -> State:
        """Return the state as it is now; its tensors are the model's own.

        Raises:
            ModelError: the optimiser keeps something that is neither tensor nor number.
        """
        found = {MODEL + name: own[key].detach() for name, own, key in self._places if own[key] is not None}
        for name, parameter in self._moved:
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if value is not None:
                    found[f"{OPTIMIZER}{name}.{key}"] = _tensor(value, key)
        return State(step, dict(sorted(found.items())))

    def restore(self, state: State) -> None:
        """Put a state back.

        Raises:
            ProofError: it is of another model or another optimiser.
        """
        names = {MODEL + name for name, own, key in self._places if own[key] is not None}
        kept = {name for name in state.tensors if name.startswith(MODEL)}
        if names != kept:
            raise ProofError(f"a state of another model: {len(names ^ kept)} tensors of {len(names)} differ")
        with torch.no_grad():
            for name, own, key in self._places:
                if own[key] is not None:
                    _copy(own[key], state.tensors[MODEL + name], name)
        self._restore_optimizer(state)

    def _restore_optimizer(self, state: State) -> None:
        left = {name for name in state.tensors if name.startswith(OPTIMIZER)}
        self._optimizer.state.clear()
        for name, parameter in self._moved:
            prefix = f"{OPTIMIZER}{name}."
            # Names of parameters may be prefixes of others; keys of optimisers have no dots.
            own = {one for one in left if one.startswith(prefix) and "." not in one[len(prefix) :]}
            for one in sorted(own):
                self._optimizer.state[parameter][one[len(prefix) :]] = state.tensors[one].clone()
            left -= own
        if left:
            raise ProofError(f"a state of another optimiser: it keeps {min(left)!r}")


def form(state: State) -> Form:
    """Return what a state consists of."""
    return tuple((name, str(one.dtype), tuple(one.shape)) for name, one in state.tensors.items())


def digest(state: State) -> bytes:
    """Return BLAKE3 of a state's canonical bytes: number of the step, names, types, shapes, then all numbers."""
    hashed = blake3(_header(form(state)), derive_key_context=_CONTEXT)
    hashed.update(state.step.to_bytes(8, "little"))
    for tensor in state.tensors.values():
        hashed.update(raw(tensor))
    return hashed.digest()


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, without a copy where it is contiguous."""
    if tensor.dtype in _QUICK and tensor.numel() and tensor.is_contiguous():
        return tensor.detach().numpy().data.cast("B")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def encode(state: State) -> bytes:
    """Return a state as safetensors."""
    return save({name: tensor.detach().contiguous() for name, tensor in state.tensors.items()})


def decode(content: bytes, step: int, where: str) -> State:
    """Read a state from safetensors; what it holds is checked by its digest.

    Raises:
        ProofError: it is no such file.
    """
    try:
        return State(step, dict(sorted(load(content).items())))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ProofError(f"{where} holds no state: {error}") from error


@lru_cache(maxsize=64)
def _header(of: Form) -> bytes:
    return msgspec.msgpack.encode(of)


def _places(model: nn.Module) -> Any:
    """Yield name, dictionary and key of each parameter and buffer once, those that are not saved by PyTorch too."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for own in (module._parameters, module._buffers):  # noqa: SLF001 - buffers may be replaced, so no references
            for key, tensor in own.items():
                if tensor is None or id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield (f"{prefix}.{key}" if prefix else key), own, key


def _tensor(value: object, key: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    raise ModelError(f"the optimiser keeps {key!r} as {type(value).__name__}; its state may hold tensors only")


def _copy(into: Tensor, value: Tensor, name: str) -> None:
    if into.shape != value.shape or into.dtype != value.dtype:
        raise ProofError(f"a state of another model: {name} is {value.dtype} {tuple(value.shape)}")
    into.copy_(value)
