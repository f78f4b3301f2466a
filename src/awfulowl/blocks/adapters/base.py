"""The interface of adapters: what is common to all kinds of modules that can be scattered."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from awfulowl.blocks.adapters.stand_in import Multiply, Scattering, StandIn
from awfulowl.blocks.adapters.weight import DTYPES
from awfulowl.blocks.kernels import Kernel
from awfulowl.errors import InputError


class Product(NamedTuple):
    """One linear map inside a module."""

    name: str
    """Unique in the module: "" where there is one product only."""
    weights: tuple[Tensor, ...]
    """(out, in / groups, *size) each, stacked along their outputs; views of the module's parameters."""
    kernel: Kernel
    groups: int = 1


class Adapter(ABC):
    """How one kind of module is scattered."""

    kind: ClassVar[str]
    """Its name in the catalogue."""
    stand_in: ClassVar[type[StandIn]]
    """What takes the place of the module."""
    methods: ClassVar[tuple[str, ...]] = ("forward",)
    """Methods that the stand-in replaces: a subclass that overrides one computes something else."""

    @abstractmethod
    def original(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the type whose forward is understood, or None where the module is not of it."""

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        """Return the names of the parameters that are scattered."""
        del module
        return ("weight",)

    @abstractmethod
    def products(self, module: nn.Module, *, unfold: bool = False) -> tuple[Product, ...]:
        """Return the products of a module that is not kept.

        Args:
            module: of this adapter's kind.
            unfold: whether the owner unfolds convolutions, so that they become dense products. Grouped ones stay
                as they are.
        """

    @final
    def why_kept(self, module: nn.Module) -> str | None:
        """Return why a module of this kind cannot be scattered, in words, or None if it can be."""
        original = self.original(module)
        if isinstance(module, StandIn):
            return "it is scattered already"
        if parametrize.is_parametrized(module):
            return "its weights are parametrised: computed anew for every pass"
        if "forward" in vars(module):
            return "its forward was replaced"
        for method in self.methods:
            if getattr(type(module), method) is not getattr(original, method):
                return f"{type(module).__name__} overrides {method}"
        reasons = (_why_unfit(module, name) for name in self.parameters(module))
        return next((reason for reason in reasons if reason is not None), None)

    @final
    def replace(
        self,
        module: nn.Module,
        multiply: Mapping[str, Multiply],
        *,
        layer: str,
        unfold: bool = False,
        train: bool = False,
    ) -> nn.Module:
        """Return the module that takes the place of `module`, which stays as it is.

        Args:
            module: of this adapter's kind, and not kept.
            multiply: by the names of `products`.
            layer: the module's full name in its model, for errors.
            unfold: as for `products`.
            train: whether an input may require a gradient; `multiply` then has to pass it.

        Raises:
            InputError: `multiply` has other names than the products, or the module is to be kept.
        """
        if (reason := self.why_kept(module)) is not None:
            raise InputError(f"layer '{layer}' cannot be scattered: {reason}")
        names = {product.name for product in self.products(module)}
        if names != set(multiply):
            raise InputError(f"layer '{layer}' has the products {sorted(names)}, not {sorted(multiply)}")
        return self.stand_in.of(module, Scattering(layer, self.parameters(module), multiply, train, unfold))


def _why_unfit(module: nn.Module, name: str) -> str | None:
    owner, _, last = name.rpartition(".")
    weight: Tensor | None = dict(module.get_submodule(owner).named_parameters(recurse=False)).get(last)
    if weight is None:
        return f"its {name} is computed anew for every pass (by weight_norm, spectral_norm, pruning or the like)"
    if is_lazy(weight):
        return f"its {name} has no shape before the first pass: run the model once"
    if type(weight) is not nn.Parameter:
        return f"its {name} is a {type(weight).__name__}"
    if weight.layout != torch.strided:
        return f"its {name} is stored as {weight.layout}"
    if weight.dtype not in DTYPES:
        hint = "; model.float() makes it that" if weight.dtype == torch.float64 else ""
        return f"its {name} is {weight.dtype}: devices compute in torch.float32{hint}"
    if weight.numel() == 0:
        return f"its {name} is empty"
    return None
