"""Which integers a layer gets: bounds by name, errors against sums in float64, and what the options refuse."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import awfulowl as owl
from awfulowl.arithmetic.numbers import INTEGERS
from awfulowl.errors import InputError, ModelError
from awfulowl.placement.cutting import Layer
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.precision import choose, why_unfit
from awfulowl.placement.survey import survey

INT8, INT16 = INTEGERS.values()


def planned(model: nn.Module, example: object = None, **options: Any) -> Plan:
    return owl.plan(model, example, devices=2, **options)


def chosen_for(plan: Plan) -> dict[str, str]:
    return {panel.name: panel.arithmetic for panel in plan.panels}


def errors(plan: Plan) -> dict[str, float | None]:
    return {panel.name: panel.error for panel in plan.panels}


# Bounds


@pytest.mark.parametrize(
    ("shape", "fit"),
    [
        ((1, 133_144), (True, True)),
        ((1, 133_145), (False, True)),
        ((5, 14_793, 3, 3), (True, True)),
        ((5, 14_794, 3, 3), (False, True)),
        ((2**22, 1), (True, True)),
        ((2**22 + 1, 1), (False, True)),
        ((2**20, 2**12), (True, True)),
        ((2**20, 2**13), (True, False)),
        ((2**24, 2**13), (False, False)),
    ],
)
def test_layers_that_may_not_fit_are_told_from_their_shape(shape: tuple[int, ...], fit: tuple[bool, bool]) -> None:
    layer = Layer("block/q", shape)
    reasons = [why_unfit(layer, numbers) for numbers in (INT8, INT16)]
    assert tuple(reason is None for reason in reasons) == fit
    assert all(reason is None or "block/q" in reason for reason in reasons)


def test_a_bound_that_is_named_is_the_sum_of_the_largest_products() -> None:
    assert 133_144 * 127**2 < 2**31 <= 133_145 * 127**2
    reason = why_unfit(Layer("", (1, 133_145)), INT8)
    assert reason == "the model adds up 133145 products in each output, and int8 holds 133144 at most"


def test_a_layer_that_does_not_fit_is_refused_by_name_with_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(133_145, 1), nn.Linear(1, 2))
    with pytest.raises(
        ModelError, match=r"^0 adds up 133145 .*int8 holds 133144.*: choose arithmetic='int16', or keep.*keep=\('0',\)"
    ):
        planned(model, arithmetic="int8")
    assert chosen_for(planned(model, arithmetic="int16")) == {"0": "int16", "1": "int16"}
    assert chosen_for(planned(model, arithmetic="int8", keep=("0",))) == {"1": "int8"}
    assert chosen_for(planned(nn.Linear(133_144, 1), arithmetic="int8")) == {"": "int8"}


def test_a_layer_that_does_not_fit_int8_is_int16_automatically() -> None:
    model = nn.Sequential(nn.Linear(133_145, 1), nn.Linear(1, 2))
    plan = planned(model, torch.ones(1, 133_145), arithmetic="auto")
    assert chosen_for(plan) == {"0": "int16", "1": "int8"}


@pytest.mark.parametrize("arithmetic", ["int16", "auto"])
def test_nobody_is_sent_to_int16_who_is_there(arithmetic: str) -> None:
    """The shape is only said to be so large: of weights that size none are made."""
    for model, hint in (
        (nn.Sequential(nn.Linear(4, 3)), r": keep it at the owner \(keep=\('0',\)\)$"),
        (nn.Linear(4, 3), "$"),
    ):
        found = survey(model, torch.ones(1, 4))
        found = found._replace(layers=tuple(layer._replace(shape=(2**24, 2**13)) for layer in found.layers))
        with pytest.raises(ModelError, match=rf"too many to be checked in int16{hint}"):
            choose(model, found, torch.ones(1, 4), Options(arithmetic=arithmetic))


# Errors


def expected_errors(model: nn.Sequential, x: Tensor, largest: int) -> dict[str, float]:
    """What rounding costs each layer, by its definition, in float64: |Q(W) Q(x) - W x| / |W x|."""
    found = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight.detach().double()

            def apply(x: Tensor, weight: Tensor, layer: nn.Module = layer) -> Tensor:
                if isinstance(layer, nn.Conv2d):
                    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
                return functional.linear(x, weight)

            # One step for each row of weights; for each sample of a convolution, and each vector of a dense layer.
            kept = 1 if isinstance(layer, nn.Conv2d) else x.dim() - 1
            rounded = apply(snapped(x.double(), largest, kept), snapped(weight, largest, 1))
            true = apply(x.double(), weight)
            found[name] = float((rounded - true).norm() / true.norm())
        x = layer(x).detach()
    return found


def snapped(x: Tensor, largest: int, kept: int) -> Tensor:
    """Multiples of a 127th (or so) of the largest number, for each of the first dimensions."""
    step = x.flatten(kept).abs().amax(-1) / largest
    step = step.view(*step.shape, *[1] * (x.dim() - kept)).clamp_min(1e-300)
    return (x / step).round() * step


@pytest.fixture
def network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.Flatten(2),
        nn.Linear(9, 20),
        nn.Tanh(),
        nn.Linear(20, 6),
    )
    return model, torch.randn(5, 4, 8, 8)


@pytest.mark.parametrize(("arithmetic", "most"), [("int8", 0.02), ("int16", 1e-4)])
def test_errors_are_those_of_rounding(network: tuple[nn.Sequential, Tensor], arithmetic: str, most: float) -> None:
    model, x = network
    measured = errors(planned(model, x, arithmetic=arithmetic))
    expected = expected_errors(model, x, INTEGERS[arithmetic].largest)
    assert measured.keys() == expected.keys() == {"0", "2", "4", "6"}
    for name, error in expected.items():
        # What is measured is in float32, which rounds too.
        assert measured[name] == pytest.approx(error, rel=0.002, abs=3e-7)
        assert 0 < error < most


def test_errors_of_a_layer_that_is_called_twice_are_over_both() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.layer(x)
            return self.layer(first)  # type: ignore[no-any-return]

    model, x = Twice(), torch.randn(6, 12)
    (error,) = errors(planned(model, x, arithmetic="int8")).values()
    squares, sizes = 0.0, 0.0
    with torch.no_grad():
        weight = model.layer.weight.double()
        for given in (x.double(), model.layer(x).double()):
            true = given @ weight.T
            squares += float((snapped(given, 127, 1) @ snapped(weight, 127, 1).T - true).square().sum())
            sizes += float(true.square().sum())
    assert error == pytest.approx((squares / sizes) ** 0.5, rel=1e-3)


def test_errors_are_measured_on_any_form_of_example(network: tuple[nn.Sequential, Tensor]) -> None:
    model, x = network
    by_position = errors(planned(model, (x,), arithmetic="int8"))
    assert (
        by_position
        == errors(planned(model, {"input": x}, arithmetic="int8"))
        == errors(planned(model, x, arithmetic="int8"))
    )


def test_without_an_example_nothing_is_measured(network: tuple[nn.Sequential, Tensor]) -> None:
    plan = planned(network[0], arithmetic="int8")
    assert set(errors(plan).values()) == {None}
    assert set(chosen_for(plan).values()) == {"int8"}


def test_floats_are_not_measured(network: tuple[nn.Sequential, Tensor]) -> None:
    plan = planned(*network)
    assert set(errors(plan).values()) == {None}
    assert set(chosen_for(plan).values()) == {"float32"}
    assert plan.arithmetic == "float32"


def test_a_layer_of_zeros_costs_nothing() -> None:
    model = nn.Linear(8, 4)
    nn.init.zeros_(model.weight)
    assert errors(planned(model, torch.randn(2, 8), arithmetic="int8")) == {"": 0.0}


# Automatically


def with_outliers() -> tuple[nn.Sequential, Tensor]:
    """In each row of the second layer one weight is so large that the others are nothing in steps of int8.

    It meets an input that is always 0, so that the product is made of the others.
    """
    torch.manual_seed(1)
    first, second = nn.Linear(16, 16), nn.Linear(16, 8)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Linear(8, 4))
    with torch.no_grad():
        first.bias[3] = -1e4
        second.weight[:, 3] = 200.0
    return model, torch.randn(10, 16)


def test_the_narrowest_integers_within_the_budget_are_chosen() -> None:
    model, x = with_outliers()
    plan = planned(model, x, arithmetic="auto")
    wide, narrow = (expected_errors(model, x, largest) for largest in (INT16.largest, INT8.largest))
    assert narrow["2"] > 0.5
    assert max(narrow["0"], narrow["3"]) < 0.01 < narrow["2"]
    assert chosen_for(plan) == {"0": "int8", "2": "int16", "3": "int8"}
    assert plan.arithmetic == "auto"
    expected: Mapping[str, float] = {"0": narrow["0"], "2": wide["2"], "3": narrow["3"]}
    assert errors(plan) == pytest.approx(expected, rel=0.01)


def test_the_budget_is_what_is_asked_for() -> None:
    model, x = with_outliers()
    narrow = expected_errors(model, x, INT8.largest)
    found = survey(model, x)
    for budget in (min(narrow.values()) / 2, (narrow["0"] + narrow["3"]) / 2, 0.9, 2.0):
        chosen = choose(model, found, x, Options(arithmetic="auto", error_budget=budget))
        wanted = {name: "int8" if error <= budget else "int16" for name, error in narrow.items()}
        assert {layer.product: layer.arithmetic for layer in chosen.layers} == wanted


def test_a_budget_that_nothing_meets_gives_the_widest() -> None:
    model, x = with_outliers()
    chosen = choose(model, survey(model, x), x, Options(arithmetic="auto", error_budget=1e-12))
    assert {layer.arithmetic for layer in chosen.layers} == {"int16"}


def test_layers_above_the_budget_are_named_in_one_note() -> None:
    model, x = with_outliers()
    wide = expected_errors(model, x, INT16.largest)
    found = survey(model, x)
    between = sum(sorted(wide.values())[:2]) / 2
    above = [name for name, error in wide.items() if error > between]
    assert len(above) == 2
    for budget, names in ((0.5, []), (between, above), (1e-12, list(wide))):
        chosen = choose(model, found, x, Options(arithmetic="auto", error_budget=budget))
        named = ", ".join(f"{name} (int16, error {wide[name]:.2g})" for name in names)
        wanted = [f"no integers are within the error budget of {budget:g} for {named}"] if names else []
        assert [*chosen.notes] == [*found.notes, *wanted]
    plan = planned(nn.Linear(16, 4), x, arithmetic="auto:1e-9")
    assert any("of 1e-09 for the model (int16, error " in note for note in plan.notes)


def test_what_was_asked_for_or_cannot_be_measured_has_no_note() -> None:
    model, x = with_outliers()
    asked = choose(model, survey(model, x), x, Options(arithmetic="int8", error_budget=1e-12))
    kept = choose(model, survey(model, x), x, Options(arithmetic="auto", error_budget=1e-12, keep=("0", "2", "3")))
    assert [*asked.notes, *kept.notes] == []


def test_many_layers_above_the_budget_are_counted() -> None:
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(11)])
    plan = planned(model, torch.randn(4, 6), arithmetic="auto:1e-9")
    (note,) = (note for note in plan.notes if "budget" in note)
    assert note.count("int16") == 8
    assert note.endswith(", 3 more")


@pytest.mark.parametrize("arithmetic", ["int8", "int16", "auto"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_example_that_is_not_finite_is_refused_by_the_layer_that_it_enters(arithmetic: str, value: float) -> None:
    model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(3, 8)
    with pytest.raises(InputError, match=r"^2: the inputs are not finite, and integers have no infinity and no NaN$"):
        planned(nn.Sequential(model[0], Poison(value), model[2]), x, arithmetic=arithmetic)
    x[1, 3] = value
    for module, name in ((model, "0"), (model[0], "the model")):
        with pytest.raises(InputError, match=rf"^{name}: the inputs are not finite"):
            planned(module, x, arithmetic=arithmetic)


class Poison(nn.Module):
    """Puts a number where another was."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x.index_fill(1, torch.tensor([2]), self.value)


def test_automatic_choice_needs_an_example() -> None:
    with pytest.raises(
        InputError, match=r"'auto' measures errors on an example: give one, or choose 'int8' or 'int16'"
    ):
        planned(nn.Linear(8, 4), arithmetic="auto")


def test_what_the_example_does_not_reach_gets_the_widest() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    plan = planned(Half(), torch.randn(4, 8), arithmetic="auto")
    assert chosen_for(plan) == {"used": "int8", "idle": "int16"}
    assert errors(plan)["idle"] is None


def test_what_is_kept_stays_in_floats() -> None:
    model, x = with_outliers()
    plan = planned(model, x, arithmetic="auto", keep=("2",))
    assert chosen_for(plan) == {"0": "int8", "3": "int8"}
    assert ("2", "kept by request") in plan.kept


def test_choosing_changes_neither_the_model_nor_the_survey() -> None:
    model, x = with_outliers()
    found, before = survey(model, x), {name: value.clone() for name, value in model.state_dict().items()}
    layers = found.layers
    choose(model, found, x, Options(arithmetic="auto"))
    assert found.layers == layers
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert choose(model, found, None, Options()) is found


# Options


@pytest.mark.parametrize("budget", [0.0, -0.01, float("nan"), float("inf")])
def test_a_budget_is_a_number_above_0(budget: float) -> None:
    with pytest.raises(InputError, match="error budget"):
        Options(arithmetic="auto", error_budget=budget)


@pytest.mark.parametrize("arithmetic", ["int4", "INT8", "", "float16", "Auto"])
def test_there_is_no_other_arithmetic(arithmetic: str) -> None:
    with pytest.raises(InputError, match=rf"arithmetic '{arithmetic}' is none of float32, int8, int16"):
        Options(arithmetic=arithmetic)


@pytest.mark.parametrize("sharing", ["inputs:2", "inputs:8", "replicated"])
def test_floats_are_not_shared(sharing: str) -> None:
    with pytest.raises(InputError, match=rf"sharing '{sharing}' needs exact integers.*would show what they hide"):
        Options(sharing=sharing)
    assert Options(sharing=sharing, arithmetic="auto").sharing == sharing


def test_there_is_no_other_sharing() -> None:
    with pytest.raises(InputError, match="'triplicated' is none of"):
        Options(sharing="triplicated", arithmetic="int8")


def test_the_budget_of_auto_can_be_said_in_one_word() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 8), torch.randn(9, 64)
    assert chosen_for(planned(model, x, arithmetic="auto:0.5")) == {"": "int8"}
    assert chosen_for(planned(model, x, arithmetic="auto:1e-9")) == {"": "int16"}
    assert planned(model, x, arithmetic="auto:0.5").arithmetic == "auto"


@pytest.mark.parametrize("text", ["auto:x", "auto:-1", "auto:nan", "int8:0.1", "automatic"])
def test_budgets_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        planned(nn.Linear(4, 4), torch.ones(1, 4), arithmetic=text)


@pytest.mark.parametrize(
    "options", [{"arithmetic": torch.int8}, {"arithmetic": None}, {"arithmetic": "int8", "sharing": 3}]
)
def test_options_of_other_types_are_refused_as_other_words_are(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is none of"):
        planned(nn.Linear(4, 4), **options)


def test_names_may_say_their_domain() -> None:
    plan = owl.plan(nn.Linear(8, 4), devices=["d1@a", "d2@b"], arithmetic="int8", sharing="inputs:2")
    assert [(device.name, device.domain) for device in plan.devices] == [("d1", "a"), ("d2", "b")]
