"""Everything with weights is a target or is kept for a reason in words; weights that cannot be read are named."""

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from awfulowl.blocks.adapters import ADAPTERS, adapter_of, scatterable
from awfulowl.blocks.adapters.catalogue import catalogue
from awfulowl.blocks.adapters.linear import LinearAdapter
from awfulowl.errors import InputError, ModelError
from tests.contract.adapters.local import scatter_locally


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2.0 * super().forward(input)


class Padded(nn.Conv2d):
    def _conv_forward(self, input: Tensor, *others: Any) -> Tensor:  # noqa: A002
        return torch.neg(super()._conv_forward(input, *others))


class Named(nn.Linear):
    """Computes what its base computes, and says more about it."""

    purpose = "head"


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)


class Tensorlike(nn.Parameter):
    """Stands for the tensor types of quantisers and sharders."""


def changed(module: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(module)
    return module


def replaced_forward(module: nn.Module) -> None:
    module.forward = partial(type(module).forward, module)


def other_weight(make: Callable[[Tensor], Tensor]) -> Callable[[nn.Linear], None]:
    def change(module: nn.Linear) -> None:
        module.weight = nn.Parameter(make(module.weight.detach()), requires_grad=False)

    return change


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 2)  # type: ignore[no-untyped-call]


def tensorlike(module: nn.Linear) -> None:
    module.weight = Tensorlike(module.weight.detach())


linear, attention = partial(nn.Linear, 4, 4), partial(nn.MultiheadAttention, 4, 2)

KEPT: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: changed(linear(), parametrizations.weight_norm), "parametrised"),
    (lambda: changed(linear(), parametrizations.spectral_norm), "parametrised"),
    (lambda: changed(linear(), lambda m: parametrize.register_parametrization(m, "bias", nn.ReLU())), "parametrised"),
    (lambda: changed(linear(), nn.utils.weight_norm), "computed anew"),
    (lambda: changed(linear(), nn.utils.spectral_norm), "computed anew"),
    (lambda: changed(nn.Conv1d(2, 2, 2), nn.utils.weight_norm), "computed anew"),
    (lambda: changed(linear(), pruned), "computed anew"),
    (lambda: nn.LazyLinear(3), "run the model once"),
    (lambda: nn.LazyConv2d(3, 2), "run the model once"),
    (lambda: Doubled(3, 3), "Doubled overrides forward"),
    (lambda: Padded(3, 3, 2), "Padded overrides _conv_forward"),
    (lambda: changed(linear(), replaced_forward), "forward was replaced"),
    (lambda: changed(linear(), other_weight(lambda w: w.to_sparse())), "sparse_coo"),
    (lambda: linear(dtype=torch.complex64), "complex64"),
    (lambda: linear(dtype=torch.float64), r"float64: devices compute in torch\.float32; model\.float\(\) makes"),
    (lambda: changed(linear(), other_weight(lambda w: w.to(torch.float8_e4m3fn))), "float8_e4m3fn"),
    (lambda: changed(linear(), other_weight(lambda w: w.to(torch.int8))), "int8"),
    (lambda: changed(linear(), tensorlike), "Tensorlike"),
    (lambda: changed(linear(), other_weight(lambda w: w[:0])), "empty"),
    (lambda: nn.ConvTranspose1d(2, 2, 2), "transposed"),
    (lambda: nn.ConvTranspose2d(2, 2, 2), "transposed"),
    (lambda: nn.Conv3d(2, 2, 2), "three dimensions"),
    (lambda: nn.Bilinear(2, 2, 2), "multiplies two inputs"),
    (lambda: nn.LSTM(2, 2), "recurrent"),
    (lambda: nn.GRUCell(2, 2), "recurrent"),
    (lambda: nn.Embedding(2, 2), "looked up"),
    (lambda: nn.EmbeddingBag(2, 2), "looked up"),
    (lambda: nn.BatchNorm2d(2), "by itself"),
    (lambda: nn.InstanceNorm1d(2, affine=True), "by itself"),
    (lambda: nn.LayerNorm(2), "by itself"),
    (lambda: nn.GroupNorm(1, 2), "by itself"),
    (lambda: nn.RMSNorm(2), "by itself"),
    (nn.PReLU, "by itself"),
    (lambda: attention(dtype=torch.float64), "in_proj_weight is torch.float64"),
    (lambda: changed(attention(), lambda m: nn.utils.weight_norm(m.out_proj)), r"out_proj\.weight is computed anew"),
    (lambda: nn.ParameterList([torch.ones(2)]), r"ParameterList is of no kind that is cut \(linear, convolution"),
]


@pytest.mark.parametrize(("make", "reason"), KEPT)
def test_what_is_kept_has_a_reason(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(nn.ReLU(), make())
    found = scatterable(model)
    assert found.targets == ()
    assert re.search(reason, found.kept["1"])
    listed = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert listed <= set(found.kept)
    assert all(re.match("it is part of '1', which is kept", found.kept[name]) for name in set(found.kept) - {"1"})


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_quantised_and_compiled_modules_are_kept() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(3, 4)  # type: ignore[no-untyped-call]
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4)))
    found = scatterable(nn.Sequential(quantised, scripted, nn.Linear(4, 4)))
    assert found.kept == {"0": "it is quantised", "1.0": "it is compiled to TorchScript"}
    assert [target.name for target in found.targets] == ["2"]


def test_targets_in_the_order_of_definition() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(Named(4, 4), nn.Dropout(), attention(), shared, nn.ModuleDict({"again": shared}), Bare())
    found = scatterable(model)
    kinds = [(target.name, target.adapter.kind, target.module) for target in found.targets]
    assert kinds == [
        ("0", "linear", model[0]),
        ("2", "attention", model[2]),
        ("3", "linear", shared),
        ("5.inner", "linear", model[5].inner),
    ]
    assert set(found.kept) == {"5"}
    assert found.tied == {}


def test_the_root_itself() -> None:
    model = nn.Linear(3, 2)
    (target,) = scatterable(model).targets
    assert (target.name, target.module) == ("", model)
    scattered, _ = scatter_locally(model)
    with pytest.raises(InputError, match="layer 'Linear'"), torch.no_grad():
        scattered(torch.ones(4))


def test_lazy_modules_are_targets_after_a_pass() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(2, 1))
    with torch.no_grad():
        model(torch.ones(2, 5, 4))
    assert [target.adapter.kind for target in scatterable(model).targets] == ["linear", "convolution"]


def test_the_kept_child_of_a_scattered_parent_and_the_other_way_round() -> None:
    class Headed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.child = nn.LayerNorm(3)

    assert [target.name for target in scatterable(nn.Sequential(Headed())).targets] == ["0"]
    model = nn.Sequential(nn.LayerNorm(3), Bare())
    found = scatterable(model)
    assert [target.name for target in found.targets] == ["1.inner"]
    assert set(found.kept) == {"0", "1"}


def test_ties_are_named() -> None:
    model: Any = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5), "twin": nn.Linear(3, 5)})
    model["head"].weight = model["twin"].weight = model["embedding"].weight
    found = scatterable(model)
    assert [target.name for target in found.targets] == ["head", "twin"]
    assert found.tied == {
        "head.weight": ("embedding.weight", "twin.weight"),
        "twin.weight": ("embedding.weight", "head.weight"),
    }
    scattered, calls = scatter_locally(model)
    ids, x = torch.tensor([1, 2]), torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(scattered["embedding"](ids), model["embedding"](ids))
        assert torch.equal(scattered["head"](x), model["head"](x))
    assert [call.layer for call in calls] == ["head"]
    assert set(scattered.state_dict()) == {"embedding.weight", "head.bias", "twin.bias"}


def freed(weight: Tensor) -> None:
    weight.untyped_storage().resize_(0)


def holed(value: float) -> Callable[[Tensor], None]:
    def change(weight: Tensor) -> None:
        weight[(1,) * weight.dim()] = value

    return change


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "parameter", "position"),
    [
        (lambda: nn.Linear(3, 4), "weight", r"\[1, 1\]"),
        (lambda: nn.Conv2d(2, 3, 2), "weight", r"\[1, 1, 1, 1\]"),
        (attention, "in_proj_weight", r"\[1, 1\]"),
        (attention, "out_proj.weight", r"\[1, 1\]"),
    ],
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (holed(float("nan")), "is nan at "),
        (holed(float("inf")), "is inf at "),
        (holed(float("-inf")), "is -inf at "),
        (freed, "its storage was freed"),
        (None, "meta device"),
    ],
)
def test_unreadable_weights_are_named(
    make: Callable[[], nn.Module],
    parameter: str,
    position: str,
    change: Callable[[Tensor], None] | None,
    reason: str,
    dtype: torch.dtype,
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), make()).to(dtype)
    if change is None:
        model[1].to("meta")
        parameter = next(iter(dict(model[1].named_parameters())))
    else:
        change(model[1].get_parameter(parameter).detach())
    _, target = scatterable(model).targets
    where = position if reason.endswith("at ") else ""
    with pytest.raises(ModelError, match=rf"'1\.{re.escape(parameter)}'.*{reason}{where}"):
        target.products()


def test_views_of_a_larger_storage_are_readable() -> None:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(6, 5)[1:5, 2:])
    (target,) = scatterable(model).targets
    assert torch.equal(target.products()[0].weights[0], model.weight)


def test_the_catalogue_refuses_duplicates() -> None:
    with pytest.raises(InputError, match="two adapters are called 'linear'"):
        catalogue([*ADAPTERS.values(), LinearAdapter()])


def test_no_module_has_two_adapters() -> None:
    for module in (nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), attention(), nn.ReLU(), nn.Embedding(2, 2)):
        understood = [adapter for adapter in ADAPTERS.values() if adapter.original(module) is not None]
        assert understood == ([] if adapter_of(module) is None else [adapter_of(module)])


def test_multiplies_have_the_names_of_the_products() -> None:
    (target,) = scatterable(nn.Linear(2, 2)).targets
    with pytest.raises(InputError, match=r"has the products \[''\], not \['weight'\]"):
        target.replace({"weight": torch.clone})


def test_what_is_kept_cannot_be_replaced() -> None:
    with pytest.raises(InputError, match="'here' cannot be scattered: Doubled overrides forward"):
        ADAPTERS["linear"].replace(Doubled(2, 2), {"": torch.clone}, layer="here")
