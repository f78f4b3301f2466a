"""The twin: the very numbers that devices compute, computed here, for everything that can be scattered."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.arithmetic.local import LocalProduct
from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.arithmetic.products import BACKENDS, Backend
from awfulowl.blocks.adapters.base import Product
from awfulowl.blocks.kernels import Dense, product
from awfulowl.errors import InputError, PlanError
from awfulowl.placement.plan import Plan
from awfulowl.placement.survey import parts_of, with_products
from awfulowl.placement.twin import twin
from tests.answers import require_equal
from tests.contract.adapters.cases import CASES, Case
from tests.missing import need

few = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

each_arithmetic = pytest.mark.parametrize("arithmetic", ["int8", "int16"])


def planned(model: nn.Module, arithmetic: str, example: object = None) -> Plan:
    return owl.plan(model, example, devices=2, arithmetic=arithmetic)


def rounded(x: Tensor, numbers: Integers) -> tuple[Tensor, Tensor]:
    """Integers of 64 bits and the step of each vector, as the documentation says it."""
    largest = x.float().reshape(len(x), -1).abs().max(1).values
    step = torch.maximum(largest / numbers.largest, torch.tensor(2.0**-126))
    return (x.float() / step.view(-1, *[1] * (x.dim() - 1))).round().long(), step


def by_definition(made: Product, numbers: Integers) -> Callable[[Tensor], Tensor]:
    """Products of integers of 64 bits, none of which is fast."""
    weight = torch.cat([weight.detach() for weight in made.weights])

    def multiply(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]) if isinstance(made.kernel, Dense) else x
        if flat.numel() == 0:
            return product(made.kernel, weight.float(), x, made.groups)
        (w, weight_steps), (q, input_steps) = rounded(weight, numbers), rounded(flat, numbers)
        y = product(made.kernel, w, q, made.groups).float()
        space = [1] * (y.dim() - 2)
        y = y * input_steps.view(-1, 1, *space) * weight_steps.view(1, -1, *space)
        return y.view(*x.shape[:-1], -1) if isinstance(made.kernel, Dense) else y

    return multiply


def defined(model: nn.Module, plan: Plan) -> Any:
    """The twin, with products by definition."""
    parts = parts_of(model, plan)
    numbers = {member.product: INTEGERS[panel.arithmetic] for panel in plan.panels for member in panel.members}
    made = {name: one for part in parts.values() for name, one in part.products().items()}
    return with_products(model, parts, {name: by_definition(one, numbers[name]) for name, one in made.items()})


# What it computes


@each_arithmetic
def test_a_linear_layer_is_rounded_multiplied_and_scaled_back(arithmetic: str) -> None:
    torch.manual_seed(0)
    model, x, numbers = nn.Linear(33, 9), torch.randn(2, 5, 33), INTEGERS[arithmetic]
    (w, weight_steps), (q, input_steps) = rounded(model.weight.detach(), numbers), rounded(x.view(10, 33), numbers)
    assert int(w.abs().max()) == int(q.abs().max()) == numbers.largest
    expected = (q @ w.T).float() * input_steps[:, None] * weight_steps + model.bias.detach()
    with torch.no_grad():
        answer = planned(model, arithmetic).twin(model)(x)
    assert torch.equal(answer, expected.view(2, 5, 9))


@each_arithmetic
@pytest.mark.parametrize(
    "model",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(8, 6, (3, 2), stride=2, dilation=(1, 2)),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
    ],
    ids=["native", "strided", "grouped", "depthwise"],
)
def test_a_convolution_is_rounded_sample_by_sample(model: nn.Conv2d, arithmetic: str) -> None:
    numbers = INTEGERS[arithmetic]
    x = torch.randn(3, model.in_channels, 7, 7, generator=torch.Generator().manual_seed(0))
    (w, weight_steps), (q, input_steps) = rounded(model.weight.detach(), numbers), rounded(x, numbers)
    y = nn.functional.conv2d(q, w, None, model.stride, model.padding, model.dilation, model.groups).float()
    expected = y * input_steps.view(-1, 1, 1, 1) * weight_steps.view(1, -1, 1, 1)
    if model.bias is not None:
        expected += model.bias.detach().view(1, -1, 1, 1)
    with torch.no_grad():
        assert torch.equal(planned(model, arithmetic).twin(model)(x), expected)


@each_arithmetic
def test_a_convolution_of_three_channels_is_unfolded_so_that_each_patch_has_a_step(arithmetic: str) -> None:
    model, numbers = nn.Conv2d(3, 5, 3, padding=1, bias=False), INTEGERS[arithmetic]
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(2 * 36, 27)
    (w, weight_steps), (q, input_steps) = rounded(model.weight.detach().flatten(1), numbers), rounded(patches, numbers)
    y = (q @ w.T).float() * input_steps[:, None] * weight_steps
    plan = planned(model, arithmetic)
    assert isinstance(plan.panels[0].grid.kernel, Dense)
    with torch.no_grad():
        assert torch.equal(plan.twin(model)(x), y.view(2, 36, 5).transpose(1, 2).reshape(2, 5, 6, 6))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@each_arithmetic
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(data=st.data())
@few
def test_every_adapter_computes_what_is_defined(case: Case, arithmetic: str, data: st.DataObject) -> None:
    module, args, kwargs = data.draw(case.examples)
    plan = planned(module, arithmetic)
    with torch.no_grad():
        require_equal(plan.twin(module)(*args, **kwargs), defined(module, plan)(*args, **kwargs))


def test_a_one_dimensional_convolution() -> None:
    model, x = nn.Conv1d(6, 4, 3, padding=2), torch.randn(3, 6, 9)
    plan = planned(model, "int8")
    with torch.no_grad():
        require_equal(plan.twin(model)(x), defined(model, plan)(x))


@pytest.mark.parametrize("width", [1, 2, 3, 130])
def test_layers_of_few_inputs(width: int) -> None:
    """A single input is a product without a sum, which not every library takes for one."""
    torch.manual_seed(0)
    for model, x in (
        (nn.Linear(width, 9), torch.randn(5, width)),
        (nn.Conv2d(width, 9, 1), torch.randn(2, width, 3, 3)),
        (nn.Conv1d(width, 9, 1), torch.randn(2, width, 3)),
    ):
        plan = planned(model, "int8")
        with torch.no_grad():
            require_equal(plan.twin(model)(x), defined(model, plan)(x))


@pytest.fixture
def no_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the fused path, which knows no integers")

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", refuse)
    monkeypatch.setattr(torch, "_native_multi_head_attention", refuse)


@pytest.mark.usefixtures("no_fused_path")
@each_arithmetic
def test_an_encoder_layer_is_not_fused(arithmetic: str) -> None:
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval(), torch.randn(3, 5, 16)
    plan = planned(model, arithmetic)
    with torch.no_grad():
        with pytest.raises(AssertionError, match="fused path"):
            model(x)
        require_equal(plan.twin(model)(x), defined(model, plan)(x))


@pytest.mark.usefixtures("no_fused_path")
def test_every_product_of_an_encoder_layer_is_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    multiply = LocalProduct.__call__

    def count(self: LocalProduct, x: Tensor) -> Tensor:
        calls.append(x.shape[-1])
        return multiply(self, x)

    monkeypatch.setattr(LocalProduct, "__call__", count)
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    with torch.no_grad():
        planned(model, "int8").twin(model)(torch.randn(3, 5, 16))
    assert sorted(calls) == [16, 16, 16, 16, 16, 24]


def test_the_convolution_of_transformers() -> None:
    pytorch_utils = need("transformers.pytorch_utils")
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(pytorch_utils.Conv1D(12, 16), nn.GELU(), pytorch_utils.Conv1D(4, 12)),
        torch.randn(3, 5, 16),
    )
    plan = planned(model, "int8", x)
    assert [panel.grid.shape for panel in plan.panels] == [(12, 16), (4, 12)]
    with torch.no_grad():
        require_equal(plan.twin(model)(x), defined(model, plan)(x))
        assert not torch.equal(plan.twin(model)(x), model(x))


def test_each_layer_has_the_integers_of_the_plan() -> None:
    torch.manual_seed(0)
    first, second, x = nn.Linear(16, 16), nn.Linear(16, 8), torch.randn(10, 16)
    model = nn.Sequential(first, second)
    with torch.no_grad():
        second.weight[:, 3] = 200.0
        first.weight[3] = first.bias[3] = 0.0
    plan = planned(model, "auto", x)
    assert [panel.arithmetic for panel in plan.panels] == ["int8", "int16"]
    with torch.no_grad():
        require_equal(plan.twin(model)(x), defined(model, plan)(x))


def test_what_is_kept_stays_in_floats() -> None:
    torch.manual_seed(0)
    first, second, x = nn.Linear(16, 16), nn.Linear(16, 8), torch.randn(10, 16)
    model = nn.Sequential(first, second)
    plan = owl.plan(model, devices=2, arithmetic="int8", keep=("0",))
    with torch.no_grad():
        expected = by_definition(Product("", (second.weight,), Dense()), INTEGERS["int8"])(first(x))
        assert torch.equal(plan.twin(model)(x), expected + second.bias)


@pytest.mark.parametrize("sharing", ["inputs:2", "replicated"])
def test_sharing_changes_no_bit(sharing: str) -> None:
    model, x = nn.Linear(16, 8), torch.randn(3, 16)
    parties = {"d1": "a", "d2": "b", "d3": "c"}
    shared = owl.plan(model, devices=parties, arithmetic="int8", sharing=sharing)
    with torch.no_grad():
        require_equal(shared.twin(model)(x), planned(model, "int8").twin(model)(x))


# How exact it is


def test_sixteen_bits_are_closer_to_floats_than_eight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)).eval()
    x = torch.randn(20, 4, 6, 6)
    with torch.no_grad():
        true = copy.deepcopy(model).double()(x.double())
        off8, off16 = (float((planned(model, name).twin(model)(x) - true).norm() / true.norm()) for name in INTEGERS)
    # The steps of int16 are 257 times smaller.
    assert 1e-3 < off8 < 0.05
    assert off16 < off8 / 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_arithmetic
def test_weights_of_half_precision_are_rounded_from_what_they_are(dtype: torch.dtype, arithmetic: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    plan = planned(model, arithmetic)
    x = torch.randn(5, 32, dtype=dtype)
    with torch.no_grad():
        answer = plan.twin(model)(x)
        assert answer.dtype is dtype
        require_equal(answer, defined(model, plan)(x))
        true = copy.deepcopy(model).double()(x.double())
    assert float((answer.double() - true).norm() / true.norm()) < 0.03


# The same bits everywhere


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 70),
        nn.GELU(),
        nn.Linear(70, 1),
        nn.Linear(1, 9),
    ).eval()
    return model, torch.randn(9, 3, 9, 9)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_arithmetic
def test_any_backend_and_number_of_threads_gives_the_same_bits(
    arithmetic: str, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network()
    plan = planned(model, arithmetic)
    inputs: dict[str, Tensor] = {}

    def products_of(backend: Backend, count: int) -> dict[str, Tensor]:
        """Every product of a pass; what goes in is the same for all, since floats between them may differ in bits."""
        monkeypatch.setattr("awfulowl.arithmetic.local.fastest", lambda _="cpu": backend)
        threads(count)
        found = {}
        for name, part in parts_of(model, plan).items():
            (made,) = part.products().values()
            local = LocalProduct(made.weights, made.kernel, made.groups, INTEGERS[arithmetic])
            found[name] = local(inputs[name])
        return found

    def recorder(name: str, made: Product) -> Callable[[Tensor], Tensor]:
        def multiply(x: Tensor) -> Tensor:
            inputs[name] = x
            return by_definition(made, INTEGERS[arithmetic])(x)

        return multiply

    parts = parts_of(model, plan)
    made = {name: one for part in parts.values() for name, one in part.products().items()}
    with torch.no_grad():
        with_products(model, parts, {name: recorder(name, one) for name, one in made.items()})(x)
        expected = {name: by_definition(one, INTEGERS[arithmetic])(inputs[name]) for name, one in made.items()}
        assert len(expected) == 6
        for backend in BACKENDS:
            for count in (1, 2):
                found = products_of(backend, count)
                assert found.keys() == expected.keys()
                assert all(torch.equal(y, expected[name]) for name, y in found.items())


@pytest.mark.parametrize("backend", BACKENDS, ids=[backend.name for backend in BACKENDS])
def test_the_twin_is_the_same_with_any_backend(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network()
    plan = planned(model, "int8")
    monkeypatch.setattr("awfulowl.arithmetic.local.fastest", lambda _="cpu": backend)
    with torch.no_grad():
        require_equal(plan.twin(model)(x), defined(model, plan)(x))


# What it leaves alone, and what it refuses


def test_the_model_is_untouched() -> None:
    model, x = network()
    model.requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with torch.no_grad():
        answer = model(x)
        mirrored = planned(model, "int8").twin(model)
        mirrored(x)
        assert torch.equal(model(x), answer)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert mirrored is not model
    mirrored.train()
    assert not model.training


def test_a_plan_of_floats_has_no_twin() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"^0 is multiplied in float32.*no twin.*arithmetic='int8' or 'int16'"):
        planned(model, "float32").twin(model)
    plan = planned(model, "int8")
    first, second = plan.panels
    mixed = msgspec.structs.replace(plan, panels=(first, msgspec.structs.replace(second, arithmetic="float32")))
    with pytest.raises(InputError, match=r"^1 is multiplied in float32"):
        twin(model, mixed)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)),
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4, bias=False)),
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).double(),
        nn.Linear(8, 8),
    ],
    ids=["shape", "names", "bias", "type", "layers"],
)
def test_another_model_is_refused(other: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(PlanError, match="made for another model"):
        planned(model, "int8").twin(other)


def test_weights_that_were_trained_on_are_another_twin_of_the_same_plan() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4), torch.randn(3, 8)
    plan = planned(model, "int8")
    with torch.no_grad():
        before = plan.twin(model)(x)
        model.weight += 1
        after = plan.twin(model)(x)
        assert not torch.equal(after, before)
        require_equal(after, defined(model, plan)(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    """By the name of the layer that they enter."""
    model, x = nn.Sequential(nn.Identity(), nn.Linear(8, 4)), torch.randn(3, 8)
    x[1, 2] = value
    for module, name in ((model, "1"), (model[1], "the model")):
        with torch.no_grad(), pytest.raises(InputError, match=rf"^{name}: the inputs are not finite"):
            planned(module, "int8").twin(module)(x)


def test_no_inputs_have_no_outputs() -> None:
    model = nn.Linear(8, 4)
    with torch.no_grad():
        answer = planned(model, "int8").twin(model)(torch.randn(0, 5, 8))
    assert (answer.shape, answer.dtype) == ((0, 5, 4), torch.float32)
