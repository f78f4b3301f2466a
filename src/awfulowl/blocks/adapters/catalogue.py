"""Every adapter, and what of a model can be scattered."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from awfulowl.blocks.adapters.attention import AttentionAdapter
from awfulowl.blocks.adapters.base import Adapter, Product
from awfulowl.blocks.adapters.convolution import ConvolutionAdapter
from awfulowl.blocks.adapters.hf_conv1d import HfConv1dAdapter
from awfulowl.blocks.adapters.linear import LinearAdapter
from awfulowl.blocks.adapters.stand_in import Multiply
from awfulowl.errors import InputError, ModelError


def catalogue(adapters: Iterable[Adapter]) -> Mapping[str, Adapter]:
    """Return adapters by kind.

    Raises:
        InputError: two have the same kind.
    """
    by_kind: dict[str, Adapter] = {}
    for adapter in adapters:
        if adapter.kind in by_kind:
            raise InputError(f"two adapters are called '{adapter.kind}'; so far there are {sorted(by_kind)}")
        by_kind[adapter.kind] = adapter
    return by_kind


ADAPTERS: Final = catalogue([LinearAdapter(), ConvolutionAdapter(), HfConv1dAdapter(), AttentionAdapter()])
"""A new kind of module is one file and one entry here; tests/contract/adapters runs every entry."""

_QUANTISED: Final = "it is quantised"

_REASONS: Final[tuple[tuple[tuple[type[nn.Module], ...], str], ...]] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolutions are not cut"),
    ((nn.Conv3d,), "convolutions over three dimensions are not cut"),
    ((nn.Bilinear,), "it multiplies two inputs with each other"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers run as one piece"),
    ((nn.Embedding, nn.EmbeddingBag), "its table is looked up, not multiplied"),
    ((_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), "normalisation scales each number by itself"),
    ((nn.PReLU,), "it scales each number by itself"),
    ((torch.jit.ScriptModule,), "it is compiled to TorchScript"),
)


class Target(NamedTuple):
    """One module that can be scattered."""

    name: str
    module: nn.Module
    adapter: Adapter

    def products(self, *, unfold: bool = False) -> tuple[Product, ...]:
        """Return its products, after a look at every number of its weights.

        Raises:
            ModelError: weights are not finite, or are not there.
        """
        for parameter in self.adapter.parameters(self.module):
            _check_readable(_joined(self.name, parameter), self.module.get_parameter(parameter))
        return self.adapter.products(self.module, unfold=unfold)

    def replace(self, multiply: Mapping[str, Multiply], *, unfold: bool = False, train: bool = False) -> nn.Module:
        """Return the module that takes its place; see `Adapter.replace`."""
        layer = self.name or type(self.module).__name__
        return self.adapter.replace(self.module, multiply, layer=layer, unfold=unfold, train=train)


class Found(NamedTuple):
    """What of a model can be scattered, and why the rest cannot; names are those of `named_modules`."""

    targets: tuple[Target, ...]
    """In the order of definition, each module once."""
    kept: Mapping[str, str]
    """Modules that have parameters of their own, or should have, and the reason in words."""
    tied: Mapping[str, tuple[str, ...]]
    """Parameters of targets that are also parameters elsewhere, and where: each place has a copy of its own."""


def adapter_of(module: nn.Module) -> Adapter | None:
    """Return the adapter of a module's kind, whether or not this one must be kept."""
    return next((adapter for adapter in ADAPTERS.values() if adapter.original(module) is not None), None)


def scatterable(model: nn.Module) -> Found:
    """Say for every module with weights whether it can be scattered, and if not, why.

    Parts of a module that is understood as a whole, such as the output projection of an attention, are no targets
    of their own.
    """
    targets: list[Target] = []
    kept: dict[str, str] = {}
    parts: dict[int, str | None] = {}
    for name, module in model.named_modules():
        if id(module) in parts:
            reason = parts[id(module)] if _has_parameters(module) else None
        else:
            adapter = adapter_of(module)
            reason = _why_other_kept(module) if adapter is None else adapter.why_kept(module)
            if adapter is not None or reason == _QUANTISED:
                part = None if reason is None else f"it is part of '{name}', which is kept"
                parts |= {id(inner): part for inner in module.modules()}
            if adapter is not None and reason is None:
                targets.append(Target(name, module, adapter))
        if reason is not None:
            kept[name] = reason
    return Found(tuple(targets), kept, _ties(model, targets))


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _why_other_kept(module: nn.Module) -> str | None:
    """Return why a module without an adapter is kept, or None if it has no weights."""
    if hasattr(module, "_packed_params"):
        return _QUANTISED
    if not _has_parameters(module):
        return None
    known = (reason for kinds, reason in _REASONS if isinstance(module, kinds))
    return next(known, f"{type(module).__name__} is of no kind that is cut ({', '.join(ADAPTERS)})")


def _ties(model: nn.Module, targets: Iterable[Target]) -> dict[str, tuple[str, ...]]:
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter, weight in module.named_parameters(recurse=False):
            places.setdefault(id(weight), []).append(_joined(name, parameter))
    tied = {}
    for target in targets:
        for parameter in target.adapter.parameters(target.module):
            here = _joined(target.name, parameter)
            others = [place for place in places[id(target.module.get_parameter(parameter))] if place != here]
            if others:
                tied[here] = tuple(others)
    return tied


def _joined(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def _check_readable(name: str, weight: Tensor) -> None:
    """Look at every number, without a copy of them."""
    if weight.is_meta:
        raise ModelError(f"'{name}' is on the meta device: it has a shape and no numbers. Load the model's weights")
    last = sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
    if weight.untyped_storage().nbytes() < (weight.storage_offset() + last + 1) * weight.element_size():
        raise ModelError(f"'{name}' has no memory behind it: its storage was freed. Load the model's weights")
    if all(torch.isfinite(extreme) for extreme in torch.aminmax(weight.detach())):
        return
    for index, row in enumerate(weight.detach()):
        if not torch.isfinite(row).all():
            position = [index, *(~torch.isfinite(row)).nonzero()[0].tolist()]
            raise ModelError(f"'{name}' is {row[tuple(position[1:])].item()} at {position}: all weights must be finite")
