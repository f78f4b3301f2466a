"""One case for each way in which a module can be scattered: random modules, inputs, and how far off they may be.

Tolerances are the usual bounds of floating point sums, for whatever order they are added in: a product of inner
length n is off by at most g(n) |W| |x|, g(n) = n u / (1 - n u), where u is the unit roundoff (Higham, *Accuracy
and Stability of Numerical Algorithms*, 2nd edition, section 3.1). A bias and a cast cost one rounding each.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

Bound = Callable[[nn.Module, Sequence[Tensor], torch.dtype], Tensor]


class Example(NamedTuple):
    """A module and what it is called with."""

    module: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]


class Case(NamedTuple):
    """A kind of module, in one of the ways in which it is scattered."""

    kind: str
    examples: st.SearchStrategy[Example]
    bound: Bound
    """How far the first output may be from the exact one, number by number, in a type of weights."""
    products: int = 1
    """Products in one pass."""
    unfold: bool = False


class Conv1D(nn.Module):
    """What transformers calls `Conv1D`; found by name, so this one will do."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


Conv1D.__module__ = "transformers.pytorch_utils"


def gamma(length: int, roundoff: float) -> float:
    """Return the bound on the relative error of a sum of products."""
    return length * roundoff / (1 - length * roundoff)


def _magnitude(module: nn.Module, args: Sequence[Tensor]) -> Tensor:
    """Return |W| |x| + |b|."""
    module = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
        magnitude: Tensor = module(*(x.double().abs() for x in args))
    return magnitude


def linear_bound(module: nn.Module, args: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Products and bias in float32, one cast."""
    weight = module.get_parameter("weight")
    length = weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()
    cast = ROUNDOFF[dtype] if dtype != torch.float32 else 0.0
    return (gamma(length + 1, ROUNDOFF[torch.float32]) * (1 + cast) + cast) * _magnitude(module, args)


def attention_bound(module: nn.Module, args: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Four products with a softmax between, every step in `dtype`, to first order.

    With M the largest |W| |x| + |b| of a projection and e = g(E + 2) M its error: scores are off by
    s = sqrt(D) (2 M e + g(D + 4) M^2), weights by 2 s + g(S + 8) relatively, what is attended to by M times that and
    e + g(S) M, and the output by that times the row sums of its |W| and by its own g(E + 2).
    """
    attention = copy.deepcopy(module).double()
    assert isinstance(attention, nn.MultiheadAttention)
    u, embedding, head = ROUNDOFF[dtype], attention.embed_dim, attention.head_dim
    length = args[1].numel() // args[1].shape[-1] + 2
    inputs = max((float(x.abs().sum(-1).max()) for x in args if x.numel()), default=0.0)
    largest = max(float(parameter.detach().abs().max()) for parameter in attention.parameters())
    most = largest * (inputs + 1)
    widest = max(embedding, attention.kdim, attention.vdim)
    off = gamma(widest + 2, u) * most
    scores = math.sqrt(head) * (2 * most * off + gamma(head + 4, u) * most**2)
    context = most * (2 * scores + gamma(length + 8, u)) + off + gamma(length, u) * most
    rows = float(attention.out_proj.weight.detach().abs().sum(1).max())
    return torch.tensor(rows * context + gamma(embedding + 2, u) * (rows * most + largest), dtype=torch.float64)


sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31)


@st.composite
def linears(draw: st.DrawFn) -> Example:
    torch.manual_seed(draw(seeds))
    module = nn.Linear(draw(sizes), draw(sizes), bias=draw(st.booleans()))
    leading = draw(st.lists(st.integers(0, 4), max_size=3))
    return Example(module, (torch.randn(*leading, module.in_features),), {})


@st.composite
def hf_conv1ds(draw: st.DrawFn) -> Example:
    torch.manual_seed(draw(seeds))
    module = Conv1D(draw(sizes), draw(sizes))
    leading = draw(st.lists(st.integers(1, 4), max_size=3))
    return Example(module, (torch.randn(*leading, module.nx),), {})


@st.composite
def convolutions(draw: st.DrawFn, *, grouped: bool) -> Example:
    torch.manual_seed(draw(seeds))
    space = draw(st.sampled_from([1, 2]))
    each = st.lists(st.integers(1, 3), min_size=space, max_size=space).map(tuple)
    kernel, dilation = draw(each), draw(each)
    padding = draw(st.one_of(st.just("same"), st.just("valid"), each.map(lambda pads: tuple(pad - 1 for pad in pads))))
    # No more is padded than there is, as padding by reflection wants it.
    extent = [1 + spread * (taps - 1) + draw(st.integers(0, 4)) for spread, taps in zip(dilation, kernel, strict=True)]
    extent = [max(size, 3) for size in extent]
    groups = draw(st.integers(2, 4)) if grouped else 1
    convolution: Any = [nn.Conv1d, nn.Conv2d][space - 1]
    module = convolution(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=(1,) * space if padding == "same" else draw(each),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)])) if module.padding_mode == "zeros" else (2,)
    return Example(module, (torch.randn(*batch, module.in_channels, *extent),), {})


@st.composite
def attentions(draw: st.DrawFn) -> Example:
    torch.manual_seed(draw(seeds))
    heads, head = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    apart = draw(st.booleans())
    module = nn.MultiheadAttention(
        heads * head,
        heads,
        bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()),
        add_zero_attn=draw(st.booleans()),
        kdim=draw(sizes) if apart else None,
        vdim=draw(sizes) if apart else None,
        batch_first=draw(st.booleans()),
    ).eval()
    batch, queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batched = draw(st.booleans())

    def sequence(length: int, features: int) -> Tensor:
        shape = (batch, length) if module.batch_first else (length, batch)
        return torch.randn(*(shape if batched else (length,)), features)

    query = sequence(queries, module.embed_dim)
    args = (query, sequence(keys, module.kdim), sequence(keys, module.vdim))
    alike = draw(st.sampled_from(["none", "key is value", "all"])) if not apart else "none"
    if alike == "all":
        args, keys = (query, query, query), queries
    elif alike == "key is value":
        args = (query, args[1], args[1])
    kwargs: dict[str, Any] = {"need_weights": draw(st.booleans()), "average_attn_weights": draw(st.booleans())}
    as_bool = draw(st.booleans())
    shape = draw(st.sampled_from([None, (queries, keys), ((batch if batched else 1) * heads, queries, keys)]))
    if shape is not None:
        kwargs["attn_mask"] = _mask(shape, as_bool=as_bool)
        kwargs["is_causal"] = False
    if draw(st.booleans()):
        kwargs["key_padding_mask"] = _mask((batch, keys) if batched else (keys,), as_bool=as_bool)
    elif queries == keys and draw(st.booleans()):
        kwargs["attn_mask"] = nn.Transformer.generate_square_subsequent_mask(keys)
        kwargs["is_causal"] = True
    return Example(module, args, kwargs)


def _mask(shape: tuple[int, ...], *, as_bool: bool) -> Tensor:
    """Return a mask that leaves the first key of every row."""
    if not as_bool:
        return torch.randn(shape)
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


_grouped, _ungrouped = convolutions(grouped=True), convolutions(grouped=False)

CASES = {
    "linear": Case("linear", linears(), linear_bound),
    "hf_conv1d": Case("hf_conv1d", hf_conv1ds(), linear_bound),
    "native convolution": Case("convolution", _ungrouped, linear_bound),
    "unfolded convolution": Case("convolution", _ungrouped, linear_bound, unfold=True),
    "grouped convolution": Case("convolution", _grouped, linear_bound),
    "grouped convolution, not unfolded": Case("convolution", _grouped, linear_bound, unfold=True),
    "attention": Case("attention", attentions(), attention_bound, products=4),
}
