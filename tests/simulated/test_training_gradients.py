"""The gradients of every adapter: of inputs, as PyTorch has them, and of weights, as one step shows.

Tolerances are the usual bounds of floating point sums, as in `tests.contract.adapters.cases`: a sum of n products is
off by at most g(n) times the sum of their absolute values, g(n) = n u / (1 - n u), in whatever order it is made
(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition, section 3.1).
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from awfulowl.blocks.adapters import ScatteredWeight, scatterable
from awfulowl.blocks.kernels import Dense
from awfulowl.placement.options import Options
from awfulowl.placement.request import plan_model
from tests.contract.adapters.cases import CASES, ROUNDOFF, Example, convolutions, gamma
from tests.simulated.memory_fleet import ACCELERATORS, MemoryFleet, still_fleet
from tests.simulated.training import SMALL

some = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

ATTENTION_ROUNDING = 1e-5
"""Of the largest gradient: measured over 600 examples, at most 6e-7."""

REFLECTED = 9
"""Places at which a padded input of two dimensions holds the same number, at most."""


class Called(nn.Module):
    """A module that is called with some arguments that are always the same."""

    def __init__(self, module: nn.Module, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.arguments = arguments

    def forward(self, *args: Tensor) -> Tensor:
        answer: Tensor | tuple[Tensor, ...] = self.module(*args, **self.arguments)
        return answer[0] if isinstance(answer, tuple) else answer


class Gradients(NamedTuple):
    """Of the inputs, in their order, and of the parameters that are here, by name."""

    inputs: list[Tensor]
    parameters: dict[str, Tensor]
    terms: int
    """Numbers in the output."""


@pytest.fixture(scope="module", params=ACCELERATORS)
def fleet(request: pytest.FixtureRequest) -> Iterator[MemoryFleet]:
    with still_fleet(2, accelerator=request.param) as opened:
        yield opened


def along(model: nn.Module, args: list[Tensor], weigh: Any) -> Gradients:
    """Differentiate a weighed sum of the outputs; the same tensor stays the same."""
    leaves = {id(x): x.detach().clone().requires_grad_() for x in args}
    y = model(*(leaves[id(x)] for x in args))
    (y * weigh(y)).sum().backward()
    kept = {name: one for name, one in model.named_parameters() if not isinstance(one, ScatteredWeight)}
    found = {name: one.grad for name, one in kept.items() if one.grad is not None}
    empty = torch.zeros(())
    return Gradients([leaf.grad if leaf.grad is not None else empty for leaf in leaves.values()], found, y.numel())


def alike(args: tuple[Tensor, ...], change: Any) -> list[Tensor]:
    changed = {id(x): change(x) for x in args}
    return [changed[id(x)] for x in args]


class Weights:
    """Random weights of an output, the same in every precision."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, y: Tensor) -> Tensor:
        drawn = torch.randn(y.shape, generator=torch.Generator().manual_seed(self._seed))
        return drawn.to(y.dtype)


class Compared(NamedTuple):
    """What the fleet made of an example, and the truth."""

    ours: Gradients
    after: dict[str, Tensor]
    truth: Gradients
    exact: nn.Module


def one_step(fleet: MemoryFleet, example: Example, seed: int, options: Options = SMALL) -> Compared:
    """Differentiate on the fleet and in float64, and take a step of lr 1 on the fleet."""
    model = Called(example.module, example.kwargs)
    exact = copy.deepcopy(model).double()
    exact.arguments = {name: _double(value) for name, value in example.kwargs.items()}
    truth = along(exact, alike(example.args, Tensor.double), Weights(seed))
    scattered = fleet.scatter(model, plan_model(model, example.args, fleet.devices, options), train=True)
    optimizer = fleet.optimizer(scattered, lr=1.0)
    ours = along(scattered, list(example.args), Weights(seed))
    optimizer.step()
    after = fleet.gather(scattered)
    fleet.release(scattered)
    return Compared(ours, after, truth, exact)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def magnitudes(example: Example, seed: int) -> Gradients:
    """The same gradients of absolute values: what rounding is relative to."""
    model = copy.deepcopy(example.module).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    return along(Called(model, {}), alike(example.args, lambda x: x.double().abs()), lambda y: Weights(seed)(y).abs())


def widened(example: Example) -> Example:
    """A convolution of three more inputs, so that it is not unfolded at the owner."""
    old: Any = example.module
    (x,) = example.args
    module = type(old)(
        old.in_channels + 3,
        old.out_channels,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        dilation=old.dilation,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    dim = x.dim() - 1 - len(old.kernel_size)
    return Example(module, (torch.cat([x, x[(slice(None),) * dim + (slice(1),)].repeat_interleave(3, dim)], dim),), {})


LINEAR = {
    "linear": CASES["linear"].examples,
    "hf_conv1d": CASES["hf_conv1d"].examples,
    "native convolution": convolutions(grouped=False).map(widened),
    "unfolded convolution": convolutions(grouped=False),
    "grouped convolution": convolutions(grouped=True),
}


@pytest.mark.parametrize("kind", LINEAR)
@given(data=st.data())
@some
def test_linear_maps(fleet: MemoryFleet, kind: str, data: st.DataObject) -> None:
    example = data.draw(LINEAR[kind])
    (target,) = scatterable(example.module).targets
    (made,) = target.products()
    assert kind != "native convolution" or not isinstance(made.kernel, Dense)
    seed = data.draw(st.integers(0, 1000))
    ours, after, truth, exact = one_step(fleet, example, seed)
    sizes = magnitudes(example, seed)
    weight = made.weights[0]
    products = weight.shape[0] * prod(weight.shape[2:]) * REFLECTED
    unit = ROUNDOFF[torch.float32]
    for mine, other, size in zip(ours.inputs, truth.inputs, sizes.inputs, strict=True):
        assert mine.shape == other.shape
        assert ((mine.double() - other).abs() <= gamma(products + 1, unit) * size).all()
    for name, before in exact.state_dict().items():
        gradient, size = truth.parameters[name], sizes.parameters[name]
        allowed = gamma(truth.terms + 3, unit) * (before.abs() + size)
        assert ((after[name].double() - (before - gradient)).abs() <= allowed).all()


@given(data=st.data())
@some
def test_attention(fleet: MemoryFleet, data: st.DataObject) -> None:
    """Self and cross, packed and apart, with masks, biases and added keys."""
    example = data.draw(CASES["attention"].examples)
    ours, after, truth, exact = one_step(fleet, example, data.draw(st.integers(0, 1000)))
    found = [*zip(ours.inputs, truth.inputs, strict=True)]
    found += [
        (after[name], before - truth.parameters.get(name, torch.zeros(())))
        for name, before in exact.state_dict().items()
    ]
    largest = max(float(one.abs().max()) for one in (*truth.inputs, *truth.parameters.values()) if one.numel())
    for mine, other in found:
        assert mine.shape == other.shape
        assert ((mine.double() - other).abs() <= ATTENTION_ROUNDING * (1 + largest)).all()


class Chain(nn.Module):
    """Linear layers after each other; square ones are called several times, and their inputs may be added."""

    def __init__(self, layers: list[nn.Linear], times: list[int], skip: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.calls = [layer for layer, count in zip(layers, times, strict=True) for _ in range(count)]
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.calls:
            y = layer(x)
            x = x + y if self.skip and x.shape == y.shape else y
        return x

    @property
    def roundings(self) -> int:
        """So many at most on the way to the output and back to the input: see `test_chains`."""
        return sum(layer.in_features + layer.out_features + 4 for layer in self.calls)


class Mixed(NamedTuple):
    """A chain, an input, and the layers that are kept."""

    chain: Chain
    x: Tensor
    keep: tuple[str, ...]


@st.composite
def chains(draw: st.DrawFn) -> Mixed:
    """Scattered and kept layers, each trained, frozen, or frozen but for its bias; some of them shared."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    widths = draw(st.lists(st.sampled_from([1, 3, 4, 4, 7]), min_size=2, max_size=4))
    layers = [nn.Linear(*sides, bias=draw(st.booleans())) for sides in zip(widths, [*widths[1:], 4], strict=True)]
    times = [draw(st.integers(1, 3)) if one.in_features == one.out_features else 1 for one in layers]
    for one in layers:
        match draw(st.sampled_from(["trained", "trained", "frozen", "but for its bias"])):
            case "frozen":
                one.requires_grad_(requires_grad=False)
            case "but for its bias":
                one.weight.requires_grad_(False)  # noqa: FBT003
    chain = Chain(layers, times, draw(st.booleans()))
    kept = draw(st.lists(st.booleans(), min_size=len(layers), max_size=len(layers)))
    assume(any(one.requires_grad for one in chain.parameters()) and not all(kept))
    keep = tuple(f"module.layers.{number}" for number, stays in enumerate(kept) if stays)
    return Mixed(chain, torch.randn(draw(st.integers(1, 5)), widths[0]), keep)


@given(mixed=chains(), seed=st.integers(0, 1000))
@some
def test_chains(fleet: MemoryFleet, mixed: Mixed, seed: int) -> None:
    """Frozen, shared, kept and scattered layers in one model.

    Without activations every output and every gradient is a sum of products of weights and inputs, one for each path.
    A sum of n takes each term through n roundings at most, so that no term meets more than those of all calls there
    and back, of the sum over samples and calls, and of the step.
    """
    chain, x, keep = mixed
    example = Example(chain, (x,), {})
    ours, after, truth, exact = one_step(fleet, example, seed, replace(SMALL, keep=keep))
    sizes = magnitudes(example, seed)
    allowed = gamma(chain.roundings + len(x) * len(chain.calls) + 3, ROUNDOFF[torch.float32])
    (mine,), (other,), (size,) = ours.inputs, truth.inputs, sizes.inputs
    assert ((mine.double() - other).abs() <= allowed * size).all()
    for name, before in exact.state_dict().items():
        if name in truth.parameters:
            moved = before - truth.parameters[name]
            assert ((after[name].double() - moved).abs() <= allowed * (before.abs() + sizes.parameters[name])).all()
        else:
            assert torch.equal(after[name].double(), before)


class Gated(nn.Module):
    """Layers without a bias, whose answers are changed in place; two of them have one input, and one panel."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(*sizes, bias=False) for sizes in ((6, 5), (6, 5), (5, 6)))

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.silu(self.gate(x), inplace=True)
        answer: Tensor = self.down(gate * self.up(x).mul_(2))
        return answer.relu_()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("learns", [False, True])
def test_answers_may_be_changed_in_place(batch: int, learns: bool) -> None:
    """Where an answer is a view, PyTorch lets nothing change it that gradients have to pass."""
    torch.manual_seed(batch)
    model, x = Gated(), torch.randn(batch, 6, requires_grad=learns)
    plain = copy.deepcopy(model).double()
    with still_fleet(3) as fleet:
        plan = plan_model(model, x.detach(), devices=fleet.devices, options=SMALL)
        assert [len(panel.members) for panel in plan.panels] == [2, 1]
        scattered = fleet.scatter(model, plan, train=True)
        optimizer = fleet.optimizer(scattered, lr=0.1)
        theirs = torch.optim.SGD(plain.parameters(), lr=0.1)
        for _ in range(3):
            ours, wanted = x.detach().requires_grad_(learns), x.detach().double().requires_grad_(learns)
            y, expected = scattered(ours), plain(wanted)
            torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
            (y * y).sum().backward()
            (expected * expected).sum().backward()
            if learns:
                assert ours.grad is not None
                assert wanted.grad is not None
                torch.testing.assert_close(ours.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)
            optimizer.step()
            optimizer.zero_grad()
            theirs.step()
            theirs.zero_grad()
        for name, value in fleet.gather(scattered).items():
            torch.testing.assert_close(value.double(), plain.state_dict()[name], rtol=1e-4, atol=1e-5)
