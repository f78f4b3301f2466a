"""A place holder answers what it is and refuses everything else, by the name of its layer."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.dlpack
from torch import nn
from torch.nn import functional

from awfulowl.blocks.adapters import ScatteredWeight
from awfulowl.errors import ScatteredError


def weight(**options: Any) -> ScatteredWeight:
    settings: dict[str, Any] = {"dtype": torch.float16, "device": torch.device("cpu"), "requires_grad": False}
    return ScatteredWeight((3, 4), layer="body.0", parameter="body.0.weight", **{**settings, **options})


QUESTIONS: list[tuple[Callable[[Any], object], object]] = [
    (lambda w: w.shape, torch.Size([3, 4])),
    (lambda w: w.size(), torch.Size([3, 4])),
    (lambda w: w.size(-1), 4),
    (lambda w: w.dim(), 2),
    (lambda w: w.ndim, 2),
    (lambda w: w.ndimension(), 2),
    (len, 3),
    (lambda w: w.numel(), 12),
    (lambda w: w.nelement(), 12),
    (torch.numel, 12),
    (lambda w: w.element_size(), 2),
    (lambda w: w.itemsize, 2),
    (lambda w: w.nbytes, 24),
    (lambda w: w.dtype, torch.float16),
    (lambda w: w.device, torch.device("cpu")),
    (lambda w: w.layout, torch.strided),
    (lambda w: w.is_cpu, True),
    (lambda w: w.is_cuda, False),
    (lambda w: w.is_meta, False),
    (lambda w: w.is_sparse, False),
    (lambda w: w.is_quantized, False),
    (lambda w: w.is_nested, False),
    (lambda w: w.is_leaf, True),
    (lambda w: w.is_floating_point(), True),
    (torch.is_floating_point, True),
    (lambda w: w.is_complex(), False),
    (lambda w: w.grad, None),
    (lambda w: w.grad_fn, None),
    (lambda w: w.requires_grad, False),
    (lambda w: w.requires_grad_(requires_grad=False) is w, True),
    (lambda w: w.detach() is w, True),
    (lambda w: isinstance(w, nn.Parameter), True),
    (torch.is_tensor, True),
    (lambda w: w in {w: 1}, True),
    (lambda w: "shape" in dir(w), True),
    (repr, "ScatteredWeight('body.0.weight', shape=(3, 4), dtype=torch.float16)"),
    (str, "ScatteredWeight('body.0.weight', shape=(3, 4), dtype=torch.float16)"),
    (lambda w: f"{w:.15}", "ScatteredWeight"),
]


@pytest.mark.parametrize(("ask", "answer"), QUESTIONS)
def test_it_says_what_it_is(ask: Callable[[Any], object], answer: object) -> None:
    assert ask(weight()) == answer


def _assign(name: str, value: object) -> Callable[[Any], object]:
    return lambda w: setattr(w, name, value)


def attend(w: Any) -> object:
    x = torch.ones(1, 1, 4)
    rest: dict[str, Any] = {"add_zero_attn": False, "dropout_p": 0.0, "out_proj_weight": w, "out_proj_bias": None}
    return functional.multi_head_attention_forward(x, x, x, 4, 1, w, None, None, None, **rest)


USES: list[Callable[[Any], object]] = [
    lambda w: functional.linear(torch.ones(2, 4).half(), w),
    lambda w: torch.ones(2, 4).half() @ w.T,
    lambda w: w.data,
    lambda w: w.t(),
    lambda w: w.T,
    lambda w: w.mT,
    lambda w: w.real,
    lambda w: w.clone(),
    lambda w: w.contiguous(),
    lambda w: w + 1,
    lambda w: 1 - w,
    lambda w: -w,
    lambda w: w.mul_(2),
    lambda w: w == w,
    bool,
    float,
    lambda w: w[0],
    list,
    lambda w: w.sum(),
    lambda w: torch.cat([w, w]),
    lambda w: torch.stack((w, w)),
    torch.zeros_like,
    lambda w: w.new_zeros(3),
    lambda w: w.to(torch.float32),
    lambda w: w.float(),
    lambda w: w.cpu(),
    lambda w: w.copy_(torch.zeros(3, 4)),
    lambda w: torch.zeros(3, 4).copy_(w),
    nn.init.normal_,
    lambda w: w.numpy(),
    np.asarray,
    lambda w: w.tolist(),
    lambda w: w.item(),
    lambda w: w.data_ptr(),
    lambda w: w.storage(),
    lambda w: w.share_memory_(),
    torch.utils.dlpack.from_dlpack,
    lambda w: w.register_hook(print),
    lambda w: w.backward(),
    lambda w: w.__cuda_array_interface__,
    lambda w: w.requires_grad_(),
    _assign("requires_grad", value=True),
    _assign("data", value=torch.zeros(3, 4)),
    _assign("grad", value=torch.zeros(3, 4)),
    attend,
    copy.copy,
    copy.deepcopy,
    pickle.dumps,
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_it_cannot_be_used(use: Callable[[Any], object], mode: Callable[[], Any]) -> None:
    with mode(), pytest.raises(ScatteredError, match=r"'body\.0\.weight' lives on devices.*keep=\['body\.0'\]"):
        use(weight())


@pytest.mark.parametrize(("use", "name"), [(lambda w: w.data, "data"), (lambda w: w.clone(), "clone")])
def test_the_error_names_the_use(use: Callable[[Any], object], name: str) -> None:
    with pytest.raises(ScatteredError, match=rf"used here \({name}\)"):
        use(weight())


def test_a_use_deep_inside_arguments_is_refused() -> None:
    with pytest.raises(ScatteredError, match="lives on devices"):
        ScatteredWeight.__torch_function__(torch.add, (ScatteredWeight,), ({"nested": weight()},))


def test_fused_kernels_can_see_it() -> None:
    assert torch.overrides.has_torch_function((weight(),))


def test_it_moves() -> None:
    moved = weight(requires_grad=True).moved(lambda t: t.to("meta", torch.bfloat16))
    assert (moved.dtype, moved.device.type, moved.is_meta, moved.is_cpu) == (torch.bfloat16, "meta", True, False)
    assert (moved.requires_grad, moved.shape) == (True, (3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64])
def test_it_does_not_promise_more_than_float32(dtype: torch.dtype) -> None:
    with pytest.raises(ScatteredError, match=r"devices compute in torch\.float32"):
        weight().moved(lambda t: t.to(dtype))


def test_a_gradient_that_waits_elsewhere_is_not_none() -> None:
    one = weight()
    assert one.grad is None
    one.gradient_waits = lambda: True
    for waiting in (one, one.moved(lambda t: t.to("meta", torch.bfloat16))):
        with pytest.raises(ScatteredError, match=r"gradient of 'body\.0\.weight' is at devices.*clip_grad_norm_"):
            getattr(waiting, "grad")  # noqa: B009  a lookup that does something
        assert (repr(waiting)[:15], waiting.shape, waiting.is_leaf) == ("ScatteredWeight", (3, 4), True)


def test_the_compiler_may_look_while_a_gradient_waits() -> None:
    """It looks at that of every parameter that it meets, and takes nothing from it."""
    one = weight()
    one.gradient_waits = lambda: True
    compiled = torch.compile(lambda x: x + one.numel(), backend="eager")
    assert float(compiled(torch.zeros(()))) == 12
    torch.compiler.reset()
