"""What takes the place of a scattered module: the same module, but its products are computed elsewhere."""

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from awfulowl.blocks.adapters.weight import ScatteredWeight
from awfulowl.errors import InputError, ScatteredError

Multiply = Callable[[Tensor], Tensor]
"""A product with scattered weights: float32 in main memory to float32 in main memory, empty batches included.

`Dense`: (..., in) to (..., out). `Convolution`: (batch, in, *space) to (batch, out, *space'). One input that goes
to several products goes to each as the same object. What is returned belongs to the caller: the bias is added in
place, and so may be what the model does next.
"""


@dataclass(frozen=True, slots=True)
class Scattering:
    """How a module was scattered."""

    layer: str
    """Its full name in the model, for errors."""
    parameters: tuple[str, ...]
    """Its own parameters that live on devices."""
    multiply: Mapping[str, Multiply]
    """By the names of its products."""
    train: bool
    """Whether gradients may pass."""
    unfold: bool
    """Whether a convolution is unfolded at the owner."""
    inside: str = ""
    """Where the module lies inside its layer, for parts of a layer."""


class StandIn(nn.Module):
    """The base of modules whose products are computed elsewhere; `of` mixes it into the module's own type.

    Biases, hooks, flags and everything else are the original's. `state_dict` holds kept tensors only, and `.to`
    moves them. Copies, pickles, traces and exports are refused; `torch.compile` breaks its graph here.
    """

    _scattering: Scattering

    @classmethod
    def of(cls, module: nn.Module, scattering: Scattering) -> Self:
        """Return the stand-in of `module`, which is left as it is and shares its kept tensors.

        No constructor runs, so nothing is allocated or initialised.
        """
        stand_in: Self = object.__new__(_mixed(cls, type(module)))  # type: ignore[arg-type] # classes can be hashed
        state = vars(stand_in)
        # Its tables (parameters, children, hooks) are copied, so that a change here is no change there.
        state |= {
            name: value.copy() if isinstance(value, dict | set) else value for name, value in vars(module).items()
        }
        state["_scattering"] = scattering
        for name in scattering.parameters:
            weight = module.get_parameter(name)
            stand_in._parameters[name] = ScatteredWeight(
                weight.shape,
                dtype=weight.dtype,
                device=weight.device,
                layer=scattering.layer,
                parameter=".".join(filter(None, (scattering.layer, scattering.inside, name))),
                requires_grad=scattering.train and weight.requires_grad,
            )
        return stand_in

    def adopt(self, memo: dict[int, Any]) -> None:
        """Exchange what is still the original model's (hooks, children, attributes) for its deep copy.

        Called by `surgery.substitute` with the memo of `copy.deepcopy`.
        """
        shared = [self._scattering, *(self._parameters[name] for name in self._scattering.parameters)]
        memo |= {id(value): value for value in shared}
        vars(self).update(copy.deepcopy(vars(self).copy(), memo))

    @abstractmethod
    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the original's `forward` does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the original's `forward` does.

        Raises:
            ScatteredError: it is traced or exported, its weight was replaced, or its input requires a gradient and
                the model was not scattered for training.
            InputError: the input has the wrong type or shape.
        """
        traced = torch.jit.is_tracing() or _is_recorded()  # type: ignore[attr-defined,no-untyped-call]
        if traced or torch.compiler.is_exporting():
            self._refuse("exported or traced")
        if torch.compiler.is_compiling():
            from awfulowl.blocks.adapters import uncompiled  # noqa: PLC0415 - see there

            return uncompiled.answer(self, *args, **kwargs)
        return self.answer(*args, **kwargs)

    def _check_dense(self, *inputs: Tensor) -> None:
        if any(x.is_nested or x.layout != torch.strided or x.is_meta for x in inputs):
            raise InputError(
                f"layer '{self._scattering.layer}' takes dense tensors with numbers. "
                "Encoders make nested ones unless they are given enable_nested_tensor=False"
            )

    def _to_send(self, x: Tensor, features: int, dim: int = -1) -> Tensor:
        """Return x as float32 in main memory: the same object where it is that already."""
        scattering = self._scattering
        where = f"layer '{scattering.layer}'"
        weights = [self._parameters.get(name) for name in scattering.parameters]
        held = [weight for weight in weights if isinstance(weight, ScatteredWeight)]
        if len(held) < len(weights):
            raise ScatteredError(f"a weight of {where} was replaced, but devices hold the old one: scatter again")
        self._check_dense(x)
        if x.requires_grad and torch.is_grad_enabled() and not scattering.train:
            raise ScatteredError(f"the input of {where} requires a gradient: scatter with train=True, or detach it")
        if _has_tangent(x):
            raise ScatteredError(
                f"no derivative goes forward through {where}, which lives on devices: detach it before"
            )
        if x.dim() < -dim or x.shape[dim] != features:
            raise InputError(f"{where} takes {features} inputs in dimension {dim}, not shape {tuple(x.shape)}")
        if _autocast_dtype(x) is None and x.dtype != held[0].dtype:
            raise InputError(f"{where} takes {held[0].dtype}, not {x.dtype}")
        return x.to("cpu", torch.float32)

    def _product(self, name: str, x: Tensor) -> Tensor:
        # Autocast would halve the precision of what the fleet does with x.
        mode: AbstractContextManager[object] = nullcontext()
        if torch.is_autocast_enabled("cpu"):
            mode = torch.autocast("cpu", enabled=False)
        with mode:
            return self._scattering.multiply[name](x)

    def _finish(self, y: Tensor, x: Tensor, bias: Tensor | None, space: int = 0) -> Tensor:
        """Add the bias and go back to where the input x is, in the type that PyTorch would answer in.

        The answer is contiguous, since models that call `view` rely on it.
        """
        y = y.to(x.device)
        if bias is not None:
            bias = bias.to(x.device, torch.float32).reshape(-1, *[1] * space)
            in_place = y.is_contiguous() and not (y.requires_grad or bias.requires_grad)
            y = y.add_(bias) if in_place else y + bias
        y = y.contiguous()
        return y.to(_autocast_dtype(x) or x.dtype)

    @contextmanager
    def _kept_only(self) -> Iterator[None]:
        everything = self._parameters
        self._parameters = {
            name: weight for name, weight in everything.items() if not isinstance(weight, ScatteredWeight)
        }
        try:
            yield
        finally:
            self._parameters = {name: self._parameters.get(name, weight) for name, weight in everything.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = {
            name: weight.moved(fn) for name, weight in self._parameters.items() if isinstance(weight, ScatteredWeight)
        }
        with self._kept_only():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._parameters.update(moved)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._scattering.parameters:
            del destination[prefix + name]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._kept_only():
            super()._load_from_state_dict(*args, **kwargs)

    def _refuse(self, what: str) -> NoReturn:
        raise ScatteredError(
            f"layer '{self._scattering.layer}' lives on devices and cannot be {what}. "
            "Save state_dict(), which holds what is kept, or gather the model first"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse("copied")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._refuse("copied or pickled")

    def __prepare_scriptable__(self) -> NoReturn:
        self._refuse("scripted")


def _is_recorded() -> bool:
    """Say whether operations become a graph (`make_fx`), in which an answer of the fleet would be a constant."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None  # noqa: SLF001  no public name


def _has_tangent(x: Tensor) -> bool:
    """Say whether x is differentiated in forward mode, which asks for no gradient, and goes on under `no_grad`."""
    if forward_ad._current_level < 0:  # noqa: SLF001  the only word that there is on whether it is used at all
        return False
    found: Tensor | None = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return found is not None


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the type that PyTorch would cast x to, and answer in; None where it casts nothing."""
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else None


@functools.cache
def _mixed(stand_in: type[StandIn], original: type[nn.Module]) -> type[Any]:
    return type(f"Scattered{original.__name__}", (stand_in, original), {"__module__": stand_in.__module__})
