"""Attention inside PyTorch's own modules: no fast path goes round the devices, and inputs are sent once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.surgery import substitute
from awfulowl.errors import InputError, ScatteredError
from tests.contract.adapters.local import Call, scatter_locally

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but"),
]

MODES = [torch.no_grad, torch.inference_mode]

# Measured over 4,000 inputs of two encoder layers, which are the deepest here: 9.6e-7 at most.
TOLERANCE = 1e-5


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=TOLERANCE)


def encoder(**options: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2).eval()


def padding(*lengths: int) -> Tensor:
    return torch.arange(5)[None] >= torch.tensor(lengths)[:, None]


def test_pytorch_would_fuse() -> None:
    """Otherwise the tests below show nothing."""
    model = encoder()
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(torch.randn(3, 5, 16), src_key_padding_mask=padding(5, 3, 1))
    names = {event.key for event in profile.key_averages()}
    assert {"aten::_transformer_encoder_layer_fwd", "aten::_nested_tensor_from_mask"} <= names


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_encoders_do_not_go_round_the_devices(mode: Callable[[], Any], norm_first: bool, masked: bool) -> None:
    model = encoder(norm_first=norm_first, activation="gelu")
    scattered, calls = scatter_locally(model)
    x = torch.randn(3, 5, 16)
    mask = padding(5, 3, 1) if masked else None
    with mode():
        fused = model(x, src_key_padding_mask=mask)
        answer = scattered(x, src_key_padding_mask=mask)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            plain = model(x, src_key_padding_mask=mask)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert close(answer, plain)
    # Only the fused path makes padded places zero: nobody may look at them.
    seen = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
    assert close(answer[seen], fused[seen])
    assert len(calls) == 2 * (4 + 2)


@pytest.mark.parametrize("mode", MODES)
def test_compiled_encoders_do_not_go_round_the_devices(mode: Callable[[], Any]) -> None:
    """The compiler asks the place holders before it breaks its graph."""
    model = encoder()
    scattered, calls = scatter_locally(model)
    compiled: Any = torch.compile(scattered, backend="eager")
    with mode():
        for batch in (1, 3):
            x = torch.randn(batch, 5, 16)
            assert close(compiled(x), model(x))
    assert len(calls) == 2 * 2 * (4 + 2)
    torch.compiler.reset()


def test_a_compiled_use_of_a_weight_is_refused() -> None:
    scattered, _ = scatter_locally(nn.Linear(4, 4))

    def use(x: Tensor) -> Tensor:
        return functional.linear(x, scattered.weight)

    compiled: Any = torch.compile(use, backend="eager")
    with pytest.raises(ScatteredError, match=r"used here \(linear\)"):
        compiled(torch.ones(2, 4))
    torch.compiler.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_encoders_are_not_exported(strict: bool) -> None:
    scattered, _ = scatter_locally(encoder())
    with torch.no_grad(), pytest.raises(ScatteredError, match="lives on devices"):
        torch.export.export(scattered, (torch.randn(3, 5, 16),), strict=strict)


def test_a_whole_transformer() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 4, 1, 1, 32).eval()
    scattered, calls = scatter_locally(model)
    source, target = torch.randn(5, 2, 16), torch.randn(3, 2, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    with torch.no_grad():
        expected = model(source, target, tgt_mask=mask, tgt_is_causal=True)
        assert close(scattered(source, target, tgt_mask=mask, tgt_is_causal=True), expected)
    assert len(calls) == (4 + 2) + (4 + 4 + 2)


def _inputs(calls: list[Call]) -> list[list[str]]:
    """Products by the object that goes in."""
    together: dict[int, list[str]] = {}
    for call in calls:
        together.setdefault(id(call.x), []).append(call.product)
    return list(together.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_input_is_sent_once(dtype: torch.dtype, batch_first: bool) -> None:
    scattered, calls = scatter_locally(nn.MultiheadAttention(8, 2, batch_first=batch_first).to(dtype))
    x, memory, other = (torch.randn(2, 3, 8, dtype=dtype) for _ in range(3))
    with torch.no_grad():
        scattered(x, x, x)
        assert _inputs(calls) == [["q_proj", "k_proj", "v_proj"], ["out_proj"]]
        calls.clear()
        scattered(x, memory, memory)
        assert _inputs(calls) == [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]
        calls.clear()
        scattered(x, memory, other)
        assert _inputs(calls) == [["q_proj"], ["k_proj"], ["v_proj"], ["out_proj"]]


def test_what_arrives_is_what_was_given() -> None:
    scattered, calls = scatter_locally(nn.Sequential(nn.Linear(8, 8), nn.Conv1d(3, 3, 2)))
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        scattered[0](x)
        scattered[1](x)
    assert all(call.x is x for call in calls)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8)])
@pytest.mark.parametrize("need_weights", [False, True])
def test_empty_sequences(shape: tuple[int, ...], need_weights: bool) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(shape)
    with torch.no_grad():
        answer, weights = scatter_locally(model).model(x, x, x, need_weights=need_weights)
    assert answer.shape == shape
    assert weights is None if not need_weights else weights.shape == (shape[0], shape[1], shape[1])


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_in_training_mode(need_weights: bool) -> None:
    model = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).train()
    scattered = scatter_locally(model, train=True).model
    x = torch.randn(2, 5, 8)
    torch.manual_seed(3)
    expected = model(x, x, x, need_weights=need_weights)
    torch.manual_seed(3)
    answer = scattered(x, x, x, need_weights=need_weights)
    assert close(answer[0], expected[0])
    assert not close(scattered(x, x, x)[0], answer[0])
    assert torch.equal(*(scattered.eval()(x, x, x)[0] for _ in range(2)))


def test_hooks_of_the_output_projection_stay_silent_as_in_pytorch() -> None:
    model = nn.MultiheadAttention(8, 2).eval()
    heard: list[str] = []
    model.out_proj.register_forward_hook(lambda *args: heard.append("out"))
    x = torch.randn(3, 2, 8)
    with torch.no_grad():
        scattered = scatter_locally(model).model
        scattered(x, x, x)
        assert heard == []
        assert isinstance(scattered.out_proj, nn.Linear)
        scattered.out_proj(x)
    assert heard == ["out"]


def test_its_projections_cannot_be_used() -> None:
    scattered = scatter_locally(nn.Sequential(nn.MultiheadAttention(8, 2))).model[0]
    with pytest.raises(ScatteredError, match=r"'0\.in_proj_weight'.*keep=\['0'\]"):
        functional.linear(torch.ones(8), scattered.in_proj_weight)
    with pytest.raises(ScatteredError, match=r"'0\.out_proj\.weight'.*keep=\['0'\]"):
        functional.linear(torch.ones(8), scattered.out_proj.weight)


def _call(shapes: tuple[tuple[int, ...], ...], **kwargs: Any) -> Callable[[nn.Module], object]:
    return lambda module: module(*(torch.ones(shape) for shape in shapes), **kwargs)


SAME = ((2, 3, 8),) * 3


@pytest.mark.parametrize(
    "misuse",
    [
        _call(((8,),) * 3),
        _call(((1, 2, 3, 8),) * 3),
        _call(((2, 3, 8), (2, 4, 8), (2, 3, 8))),
        _call(((2, 3, 8), (3, 3, 8), (3, 3, 8))),
        _call(((2, 3, 8), (3, 8), (3, 8))),
        _call(((2, 3, 7),) * 3),
        _call(SAME, attn_mask=torch.ones(3, 4)),
        _call(SAME, attn_mask=torch.ones(2, 3, 3)),
        _call(SAME, attn_mask=torch.ones(3, 3, dtype=torch.int64)),
        _call(SAME, key_padding_mask=torch.ones(3, 2)),
        _call(SAME, key_padding_mask=torch.ones(2, 3, dtype=torch.int64)),
        _call(SAME, is_causal=True),
        _call(SAME, is_causal=True, key_padding_mask=torch.ones(2, 3)),
    ],
)
def test_what_pytorch_refuses_is_refused(misuse: Callable[[nn.Module], object]) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        with pytest.raises((AssertionError, RuntimeError)):
            misuse(model.train())
        with pytest.raises(InputError, match="layer 'MultiheadAttention'"):
            misuse(scatter_locally(model).model)


def test_nested_tensors_are_refused_with_advice() -> None:
    """They come from a first layer that is kept: PyTorch fuses it, and packs padded sequences for all layers."""
    model = encoder()
    scattered, _ = scatter_locally(model.layers[1])
    mixed = substitute(model, {model.layers[1]: scattered}, tensors="frozen")
    with torch.no_grad():
        mixed(torch.randn(3, 5, 16))
        with pytest.raises(InputError, match="enable_nested_tensor=False"):
            mixed(torch.randn(3, 5, 16), src_key_padding_mask=padding(5, 3, 1))
