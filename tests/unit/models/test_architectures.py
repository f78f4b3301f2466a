"""The reference models: their shapes, their weights, what depends on what."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.models.convnet import ConvNet
from awfulowl.models.mlp import Mlp
from awfulowl.models.seeding import seeded
from awfulowl.models.transformer import Attention, Transformer, TransformerConfig
from awfulowl.models.vgg import Vgg16

SMALL = TransformerConfig(vocabulary=11, context=7, width=12, depth=2, heads=3)


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def dense(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.fixture(scope="module")
def vgg() -> Vgg16:
    with seeded(0):
        return Vgg16().eval()


def test_vgg16_has_the_papers_geometry(vgg: Vgg16) -> None:
    assert dense(vgg) == [(4096, 25088), (4096, 4096), (100, 4096)]
    rows, columns = (length // 256 for length in dense(vgg)[0])
    assert (rows, columns) == (16, 98)


def test_vgg16_has_the_published_number_of_weights(vgg: Vgg16) -> None:
    """138,357,544 with 1,000 classes (configuration D); the last layer has 4,097 for each class."""
    assert weights(vgg) == 138_357_544 - 900 * 4097
    assert weights(vgg.features) == 14_714_688


def test_vgg16_convolutions(vgg: Vgg16) -> None:
    convolutions = [module for module in vgg.modules() if isinstance(module, nn.Conv2d)]
    assert [module.out_channels for module in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert {(module.kernel_size, module.stride, module.padding) for module in convolutions} == {
        ((3, 3), (1, 1), (1, 1))
    }


def test_vgg16_answers(vgg: Vgg16) -> None:
    with torch.inference_mode():
        logits = vgg(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 100)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max(), "the signal survives 16 layers"


def test_the_small_network_halves_its_pictures_three_times() -> None:
    with seeded(0):
        model = ConvNet(7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.features(torch.zeros(2, 3, 32, 32)).shape[2:] == (4, 4)
    assert dense(model) == [(7, model.head.in_features)]
    with pytest.raises(InputError, match="one class or more"):
        ConvNet(0)


def test_vgg16_copies_each_pooled_value_49_times(vgg: Vgg16) -> None:
    with torch.inference_mode():
        pooled = vgg.avgpool(vgg.features(torch.randn(1, 3, 32, 32)))
    assert pooled.shape == (1, 512, 7, 7)
    assert torch.equal(pooled, pooled[..., :1, :1].expand_as(pooled))


def test_vgg16_classes() -> None:
    with torch.device("meta"):
        assert dense(Vgg16(10))[-1] == (10, 4096)
    with pytest.raises(InputError, match="one class or more"):
        Vgg16(0)


def test_mlp() -> None:
    model = Mlp([5, 4, 3])
    x = torch.randn(2, 5)
    first, _, last = model.layers
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    assert torch.equal(model(x), last(functional.relu(first(x))))
    assert weights(model) == 5 * 4 + 4 + 4 * 3 + 3


def test_mlp_of_one_layer_has_no_activation() -> None:
    assert [type(layer) for layer in Mlp([3, 2]).layers] == [nn.Linear]


@pytest.mark.parametrize("widths", [[], [3], [3, 0], [3, -1, 2]])
def test_mlp_of_bad_widths(widths: list[int]) -> None:
    with pytest.raises(InputError, match="two widths or more"):
        Mlp(widths)


def test_transformer_of_the_benchmark() -> None:
    model = Transformer(TransformerConfig()).eval()
    assert len(model.layers) == 6
    assert dense(model.layers[0]) == [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
    with torch.inference_mode():
        assert model(torch.zeros(2, 128, dtype=torch.int64)).shape == (2, 128, 256)


def test_attention_is_that_of_pytorch() -> None:
    """Oracle: `nn.MultiheadAttention` with the same weights."""
    ours, theirs = Attention(SMALL), nn.MultiheadAttention(SMALL.width, SMALL.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
        x = torch.randn(3, 5, SMALL.width)
        torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_token_sees_only_what_is_before_it(causal: bool) -> None:
    config = TransformerConfig(vocabulary=11, context=7, width=12, depth=2, heads=3, causal=causal)
    with seeded(3):
        model = Transformer(config).eval()
    text = torch.arange(7).unsqueeze(0)
    changed = text.clone()
    changed[0, 4] = 10
    with torch.inference_mode():
        moved = (model(text) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == ([False] * 4 + [True] * 3 if causal else [True] * 7)


def test_a_transformer_learns_what_comes_next() -> None:
    with seeded(1):
        model = Transformer(TransformerConfig(vocabulary=5, context=8, width=16, depth=1, heads=2, causal=True))
    text = torch.arange(9).remainder(5).unsqueeze(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert loss.item() < 0.1 * math.log(5), "far below the entropy of a guess"


@pytest.mark.parametrize("shape", [(7,), (1, 8), (1, 2, 3)])
def test_a_transformer_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at most 7 tokens"):
        Transformer(SMALL)(torch.zeros(shape, dtype=torch.int64))


def test_shorter_texts_and_empty_batches() -> None:
    model = Transformer(SMALL)
    assert model(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 11)
    assert model(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 11)


@pytest.mark.parametrize("sizes", [{"width": 10, "heads": 3}, {"depth": 0}, {"vocabulary": 0}, {"heads": 0}])
def test_bad_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1, and heads must divide"):
        TransformerConfig(**sizes)  # type: ignore[arg-type]


def test_seeded_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    with seeded(1):
        first = torch.rand(3)
    with seeded(1):
        again = torch.rand(3)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
