"""`nn.Conv1d` and `nn.Conv2d`: native at the device, or unfolded at the owner.

Native: the device gets channels and convolves, fast, and knows that it does. Unfolded: the owner lays every patch
out as one row (Chellapilla, Puri & Simard 2006), so the device multiplies as for a linear layer and learns nothing
of kernel size or stride; each input travels as often as patches hold it. Grouped convolutions are always native.
Padding other than with zeros on both sides alike is done by the owner.
"""

from typing import ClassVar, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.adapters.base import Adapter, Product
from awfulowl.blocks.adapters.stand_in import StandIn
from awfulowl.blocks.kernels import Convolution, Dense, output_shape


class _Padding(NamedTuple):
    """What the owner pads, as `functional.pad` wants it (last dimension first), and what the kernel does."""

    owner: tuple[int, ...]
    kernel: tuple[int, ...]


def _padding(module: nn.Conv1d | nn.Conv2d) -> _Padding:
    if module.padding == "valid":
        sides = [(0, 0)] * len(module.kernel_size)
    elif module.padding == "same":
        # An odd sum is padded once more at the end, as PyTorch does.
        sums = [spread * (taps - 1) for spread, taps in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in sums]
    else:
        sides = [(int(pad), int(pad)) for pad in module.padding]
    kernel = [0 if module.padding_mode != "zeros" else before for before, _ in sides]
    owner = [(before - pad, after - pad) for (before, after), pad in zip(sides, kernel, strict=True)]
    return _Padding(tuple(amount for pair in reversed(owner) for amount in pair), tuple(kernel))


def _kernel(module: nn.Conv1d | nn.Conv2d) -> Convolution:
    return Convolution(tuple(module.stride), _padding(module).kernel, tuple(module.dilation))


class ScatteredConvolution(StandIn):
    """A convolution whose product is computed elsewhere."""

    bias: Tensor | None

    def answer(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Conv2d, for keyword calls
        """Map (batch, in, *space) to (batch, out, *space'), with or without a batch."""
        module = cast("nn.Conv1d | nn.Conv2d", self)
        space = len(module.kernel_size)
        x = self._to_send(input, module.in_channels, -1 - space)
        batched = input.dim() > space + 1
        x = x if batched else x[None]
        padding = _padding(module)
        if any(padding.owner):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = functional.pad(x, padding.owner, mode)
        unfolded = self._scattering.unfold and module.groups == 1
        y = self._unfolded(module, x) if unfolded else self._product("", x)
        return self._finish(y if batched else y[0], input, self.bias, space)

    def _unfolded(self, module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
        kernel, size = _kernel(module), tuple(module.kernel_size)
        shape = output_shape(kernel, module.out_channels, size, x.shape)
        flat = (1,) * (2 - len(size))  # a line is a plane one pixel high
        patches = functional.unfold(
            x.reshape(*x.shape[:2], *flat, *x.shape[2:]),
            (*flat, *size),
            dilation=(*flat, *kernel.dilation),
            padding=(*[0] * len(flat), *kernel.padding),
            stride=(*flat, *kernel.stride),
        )
        return self._product("", patches.mT).mT.reshape(shape)


class ConvolutionAdapter(Adapter):
    """`nn.Conv1d` and `nn.Conv2d`, and subclasses that compute the same."""

    kind: ClassVar[str] = "convolution"
    stand_in: ClassVar[type[StandIn]] = ScatteredConvolution
    methods: ClassVar[tuple[str, ...]] = ("forward", "_conv_forward")

    def original(self, module: nn.Module) -> type[nn.Module] | None:
        """Return `nn.Conv1d` or `nn.Conv2d`."""
        return next((kind for kind in (nn.Conv1d, nn.Conv2d) if isinstance(module, kind)), None)

    def products(self, module: nn.Module, *, unfold: bool = False) -> tuple[Product, ...]:
        """Return the weight as it is, or flattened to (out, in * taps) for unfolded inputs.

        Flattening copies weights that are not laid out in order, such as channels_last ones.
        """
        convolution = cast("nn.Conv1d | nn.Conv2d", module)
        weight = convolution.weight.detach()
        if unfold and convolution.groups == 1:
            return (Product("", (weight.flatten(1),), Dense()),)
        return (Product("", (weight,), _kernel(convolution), convolution.groups),)
