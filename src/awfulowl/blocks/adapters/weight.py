"""The place holder of a weight that lives on devices: it says what it is, and refuses to be used."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn, Self

import torch
from torch import Tensor, nn

from awfulowl.errors import ScatteredError

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
"""Types of weights that can be scattered: devices compute in float32, so these lose nothing."""

_PROPERTIES: Final = (
    "dtype",
    "grad",
    "grad_fn",
    "is_leaf",
    "is_mkldnn",
    "is_nested",
    "is_quantized",
    "is_sparse",
    "itemsize",
    "layout",
    "nbytes",
    "ndim",
    "requires_grad",
    "retains_grad",
    "shape",
)

_METHODS: Final = (
    "__dir__",
    "__len__",
    "_is_view",
    "dim",
    "element_size",
    "is_complex",
    "is_conj",
    "is_floating_point",
    "is_inference",
    "is_neg",
    "numel",
    "size",
    "storage_offset",
    "stride",
    "untyped_storage",
)
"""`torch.compile` asks half of these of every parameter that it meets; the storage is empty."""

_GRADIENT: Final = getattr(Tensor, "grad").__get__  # noqa: B009  the property itself, not what it holds

_ANSWERED: Final = frozenset(
    [getattr(Tensor, name).__get__ for name in _PROPERTIES]
    + [getattr(Tensor, name) for name in _METHODS]
    + [torch.is_complex, torch.is_floating_point, torch.numel]
)


class ScatteredWeight(nn.Parameter):
    """A parameter without numbers, in the place of one that was scattered.

    It answers shape, dtype, device (the owner's, where the kept tensors of its module are) and the like. Any
    other use raises, so that code which goes past the module cannot compute with it; PyTorch's fused encoder
    layers ask `torch.overrides.has_torch_function` and step aside by themselves.

    Raises:
        ScatteredError: on any use but a question about what it is, or for its gradient while that waits at devices.
    """

    gradient_waits: Callable[[], bool]
    """Says whether a gradient waits at devices for a step: None in its place would be taken for none."""
    _layer: str
    _parameter: str
    _device: torch.device

    def __new__(
        cls,
        shape: Iterable[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        layer: str,
        parameter: str,
        requires_grad: bool = False,
    ) -> Self:
        """Stand for `parameter` (its full name), which belongs to `layer`."""
        empty = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self = super().__new__(cls, empty, requires_grad)
        self._layer, self._parameter, self._device = layer, parameter, device
        self.gradient_waits = _never
        return self

    def moved(self, change: Callable[[Tensor], Tensor]) -> "ScatteredWeight":
        """Return the place holder after `change`, which moves or casts kept tensors.

        Raises:
            ScatteredError: the weight would have another precision than devices compute in.
        """
        probe = change(torch.empty(0, dtype=self.dtype, device=self.device))
        if probe.dtype not in DTYPES:
            raise ScatteredError(
                f"'{self._parameter}' cannot become {probe.dtype}: devices compute in torch.float32. "
                f"Keep '{self._layer}' at the owner (keep={[self._layer]})"
            )
        moved = ScatteredWeight(
            self.shape,
            dtype=probe.dtype,
            device=probe.device,
            layer=self._layer,
            parameter=self._parameter,
            requires_grad=self.requires_grad,
        )
        moved.gradient_waits = self.gradient_waits
        return moved

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer questions; refuse everything that would need the numbers."""
        if func == _GRADIENT and not torch.compiler.is_compiling():
            for weight in _scattered(args):
                weight.refuse_waiting_gradient()
        if func in _ANSWERED:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):  # a method of the property, which has the telling name
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        for weight in _scattered((*args, *(kwargs or {}).values())):
            raise weight.refusal(name)
        raise ScatteredError(f"{name} was given a weight that lives on devices")

    def refusal(self, use: str) -> ScatteredError:
        """Return the error for a use that needs the numbers."""
        return ScatteredError(
            f"'{self._parameter}' lives on devices and cannot be used here ({use}). Call '{self._layer}' itself, "
            f"keep it at the owner (keep={[self._layer]}), or gather the model first"
        )

    def refuse_waiting_gradient(self) -> None:
        """Stop who would take None for no gradient, while there is one elsewhere.

        Raises:
            ScatteredError: a gradient waits at devices.
        """
        if self.gradient_waits():
            raise ScatteredError(
                f"the gradient of '{self._parameter}' is at devices, where it waits for optimizer.step(): clip with "
                "optimizer.clip_grad_norm_, clear with optimizer.zero_grad(), and leave out a GradScaler, since "
                "devices compute in float32"
            )

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the kept tensors of its module are."""
        if torch.compiler.is_exporting():  # a strict export overlooks __torch_function__ and would fuse
            raise self.refusal("torch.export")
        return self._device

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """Whether the kept tensors of its module are in the owner's main memory."""
        return self._device.type == "cpu"

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether the kept tensors of its module are on one of the owner's CUDA devices."""
        return self._device.type == "cuda"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """Whether the kept tensors of its module are on the meta device."""
        return self._device.type == "meta"

    def detach(self) -> Self:
        """Return itself: there is no graph to leave. `Module.state_dict` detaches before a stand-in drops it."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Return itself if nothing changes, as when a model that is only served is frozen.

        Raises:
            ScatteredError: whether it is trained was settled when it was scattered.
        """
        if requires_grad != self.requires_grad:
            raise self.refusal(f"requires_grad_({requires_grad}): scatter with the train={requires_grad} you want")
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ScatteredWeight({self._parameter!r}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise self.refusal("deepcopy")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise self.refusal("pickle")


def _never() -> bool:
    return False


def _scattered(values: Iterable[Any]) -> Iterator[ScatteredWeight]:
    for value in values:
        if isinstance(value, ScatteredWeight):
            yield value
        elif isinstance(value, list | tuple):
            yield from _scattered(value)
