"""What every adapter keeps: the answer of the module it replaces, everything but its weights, and its place."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from awfulowl.blocks.adapters import ADAPTERS, ScatteredWeight, StandIn, adapter_of, scatterable
from awfulowl.errors import InputError, ScatteredError
from tests.contract.adapters.cases import CASES, Case, Example
from tests.contract.adapters.local import Scattered, scatter_locally

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(some, max_examples=8)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated"),
]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def scatter(case: Case, example: Example, **options: Any) -> Scattered:
    return scatter_locally(example.module, unfold=case.unfold, **options)


def outputs(answer: Any) -> tuple[Tensor, ...]:
    return tuple(part for part in answer if part is not None) if isinstance(answer, tuple) else (answer,)


def exactly(example: Example) -> Tensor:
    """The first output, computed in float64."""
    kwargs = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in example.kwargs.items()
    }
    return outputs(copy.deepcopy(example.module).double()(*(x.double() for x in alike(example.args)), **kwargs))[0]


def alike(args: tuple[Tensor, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Cast, and leave the same what was the same."""
    cast = {id(x): x.to(dtype) for x in args}
    return [cast[id(x)] for x in args]


def test_every_adapter_has_a_case() -> None:
    assert {case.kind for case in CASES.values()} == set(ADAPTERS)


@each_case
@given(data=st.data())
@some
def test_scattered_equals_local(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    with torch.no_grad():
        local = outputs(example.module(*example.args, **example.kwargs))
        scattered, calls = scatter(case, example)
        answer = outputs(scattered(*example.args, **example.kwargs))
        bound = case.bound(example.module, example.args, torch.float32)
        assert answer[0].is_contiguous()
        assert [(y.shape, y.dtype) for y in answer] == [(y.shape, y.dtype) for y in local]
        assert ((answer[0].double() - exactly(example)).abs() <= bound).all()
        # Both are as far from the truth as that; weights of attention are less than what they are made of.
        for mine, other in zip(answer, local, strict=True):
            assert torch.isclose(mine, other, rtol=0.0, atol=2 * float(bound.max() if bound.numel() else 0)).all()
    assert len(calls) == case.products


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(data=st.data())
@few
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    kwargs = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in example.kwargs.items()
    }
    example = Example(example.module.to(dtype), tuple(alike(example.args, dtype)), kwargs)
    with torch.no_grad():
        answer = outputs(scatter(case, example).model(*example.args, **kwargs))
        bound = case.bound(example.module, example.args, dtype)
        assert {y.dtype for y in answer} == {dtype}
        assert ((answer[0].double() - exactly(example)).abs() <= bound).all()


@each_case
@given(data=st.data())
@few
def test_gradients_pass_in_training_only(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    leaves = {id(x): x.requires_grad_() for x in example.args}
    args = tuple(leaves[id(x)] for x in example.args)
    kwargs = example.kwargs
    with pytest.raises(ScatteredError, match="train=True"):
        scatter(case, example).model(*args, **kwargs)
    scattered = scatter(case, example, train=True).model
    wanted = [*leaves.values(), *scattered.parameters()]
    wanted = [leaf for leaf in wanted if not isinstance(leaf, ScatteredWeight)]
    y = outputs(scattered(*args, **kwargs))[0]
    local = torch.autograd.grad(outputs(example.module(*args, **kwargs))[0].sum(), wanted, allow_unused=True)
    pairs: list[tuple[Any, Any]] = list(
        zip(torch.autograd.grad(y.sum(), wanted, allow_unused=True), local, strict=True)
    )
    assert [mine is None for mine, _ in pairs] == [other is None for _, other in pairs]
    for mine, other in pairs:
        # Measured over 2,000 examples of each case: 1.2e-7 of the sum at most.
        assert mine is None or torch.allclose(mine, other, rtol=0.0, atol=1e-5 * (1 + float(other.abs().sum())))


@each_case
@given(data=st.data())
@few
def test_the_weights_are_gone_and_the_rest_is_shared(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    module = example.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    stand_in = scatter(case, example).model
    adapter = adapter_of(module)
    assert adapter is not None
    scattered = set(adapter.parameters(module))
    for name, parameter in stand_in.named_parameters():
        original = module.get_parameter(name)
        assert (parameter.shape, parameter.dtype, parameter.device) == (original.shape, original.dtype, original.device)
        assert isinstance(parameter, ScatteredWeight) == (name in scattered)
        assert parameter.requires_grad is False
        assert name in scattered or parameter.data_ptr() == original.data_ptr()
    assert isinstance(stand_in, type(module))
    assert isinstance(stand_in, StandIn)
    assert stand_in.training == module.training
    assert set(stand_in.state_dict()) == set(before) - scattered
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert type(module).__name__ in repr(stand_in)


@each_case
@given(data=st.data())
@few
def test_products_are_views(case: Case, data: st.DataObject) -> None:
    module = data.draw(case.examples).module
    adapter = adapter_of(module)
    assert adapter is not None
    memory = {module.get_parameter(name).untyped_storage().data_ptr() for name in adapter.parameters(module)}
    products = adapter.products(module, unfold=case.unfold)
    assert len({made.name for made in products}) == len(products) == case.products
    for made in products:
        assert {weight.untyped_storage().data_ptr() for weight in made.weights} <= memory
        assert not any(weight.requires_grad for weight in made.weights)


@each_case
@given(data=st.data())
@few
def test_state_dicts_hold_what_is_kept(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    stand_in = scatter(case, example).model
    kept = stand_in.state_dict()
    stand_in.load_state_dict({name: value + 1 for name, value in kept.items()}, strict=True)
    stand_in.load_state_dict(kept, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        stand_in.load_state_dict(example.module.state_dict(), strict=True)
    foreign = stand_in.load_state_dict(example.module.state_dict(), strict=False)
    assert set(foreign.unexpected_keys) <= set(example.module.state_dict()) - set(kept)
    torch.save(stand_in.state_dict(keep_vars=True), io.BytesIO())
    assert list(dict(stand_in.named_parameters())) == list(dict(example.module.named_parameters()))


@each_case
@given(data=st.data())
@few
def test_hooks_move_along(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    heard: list[str] = []
    example.module.register_forward_pre_hook(lambda module, args: heard.append(type(module).__name__))
    example.module.register_forward_hook(lambda module, args, output: heard.append("after"))
    example.module.register_state_dict_post_hook(lambda *args: heard.append("state"))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scattered = scatter(case, example).model
        scattered(*example.args, **example.kwargs)
        scattered.state_dict()
    assert heard == [f"Scattered{type(example.module).__name__}", "after", "state"]


@each_case
@given(data=st.data())
@few
def test_kept_parts_move(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    stand_in = scatter(case, example).model
    stand_in.to(torch.bfloat16)
    assert {parameter.dtype for parameter in stand_in.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in example.module.parameters()} == {torch.float32}
    with torch.no_grad():
        kwargs = {
            name: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in example.kwargs.items()
        }
        (y, *_) = outputs(stand_in(*alike(example.args, torch.bfloat16), **kwargs))
    assert y.dtype == torch.bfloat16
    stand_in.float().cpu().requires_grad_(requires_grad=False).zero_grad()
    assert {parameter.dtype for parameter in stand_in.parameters()} == {torch.float32}
    with pytest.raises(ScatteredError, match=r"cannot become torch\.float64"):
        stand_in.double()
    assert {parameter.device.type for parameter in stand_in.to("meta").parameters()} == {"meta"}


@each_case
@given(data=st.data())
@few
def test_copies_and_exports_are_refused(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    model = nn.Sequential(scatter(case, example).model)
    args = example.args[:1] if case.products == 1 else example.args
    tries: list[Callable[[], object]] = [
        lambda: copy.deepcopy(model),
        lambda: copy.copy(model[0]),
        lambda: pickle.dumps(model),
        lambda: torch.save(model, io.BytesIO()),
        lambda: torch.jit.script(model),
        lambda: torch.jit.trace(model[0], args),  # type: ignore[no-untyped-call]
        lambda: torch.export.export(model[0], args),
    ]
    for attempt in tries:
        with pytest.raises(ScatteredError, match="lives on devices"), torch.no_grad():
            attempt()
    assert dict(scatterable(model).kept)["0"] == "it is scattered already"


@each_case
@given(data=st.data())
@settings(few, max_examples=2)
def test_compiled_is_right(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    scattered, calls = scatter(case, example)
    compiled: Any = torch.compile(scattered, backend="eager")
    with torch.no_grad():
        expected = outputs(scattered(*example.args, **example.kwargs))
        for _ in range(2):
            answer = outputs(compiled(*example.args, **example.kwargs))
            assert all(torch.equal(a, b) for a, b in zip(answer, expected, strict=True))
    assert len(calls) == 3 * case.products
    torch.compiler.reset()


@each_case
@given(data=st.data())
@few
def test_a_replaced_weight_is_noticed(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    stand_in = scatter(case, example).model
    name = next(name for name, weight in stand_in.named_parameters() if isinstance(weight, ScatteredWeight))
    ours = {name: torch.zeros_like(example.module.get_parameter(name))}
    with torch.no_grad(), pytest.raises(ScatteredError, match="scatter again"):
        torch.func.functional_call(stand_in, ours, example.args, example.kwargs)
    setattr(stand_in, name, nn.Parameter(ours[name]))
    with torch.no_grad(), pytest.raises(ScatteredError, match="scatter again"):
        stand_in(*example.args, **example.kwargs)


@each_case
@given(data=st.data())
@few
def test_inputs_that_pytorch_refuses_are_refused(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    scattered, calls = scatter(case, example)
    x, *others = example.args
    wrong = [x.double(), x.long(), x.to("meta"), x.to_sparse(), torch.nested.nested_tensor([x], layout=torch.jagged)]
    for bad in wrong:
        with torch.no_grad(), pytest.raises(InputError, match=r"takes|go together"):
            scattered(bad, *others, **example.kwargs)
    assert calls == []


def halved(argument: object) -> object:
    """Return floats as autocast would make them; anything else as it is."""
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.to(torch.bfloat16)
    return argument


@each_case
@given(data=st.data())
@few
def test_inference_mode_and_autocast(case: Case, data: st.DataObject) -> None:
    example = data.draw(case.examples)
    scattered = scatter(case, example).model
    with torch.inference_mode():
        plain = outputs(scattered(*example.args, **example.kwargs))[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            local = outputs(example.module(*example.args, **example.kwargs))[0]
            mine = outputs(scattered(*example.args, **example.kwargs))[0]
            again = outputs(scattered(*map(halved, example.args), **example.kwargs))[0]
    assert (mine.shape, mine.dtype) == (again.shape, again.dtype) == (local.shape, local.dtype)
    # Half precision is at least as exact here as where PyTorch computes in it throughout.
    bound = case.bound(example.module, example.args, torch.bfloat16)
    assert ((mine.double() - plain.double()).abs() <= 2 * bound).all()
