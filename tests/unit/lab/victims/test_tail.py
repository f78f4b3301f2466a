"""Models cut behind a layer."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import ModelError
from awfulowl.lab.victims.tail import Entered, Tail, _Memory
from tests.sites import around, examples

IMAGES = examples((2, 6, 6)).inputs


@pytest.mark.parametrize("layer", ["first", "inner", "hidden", "head"])
def test_what_enters_and_what_follows_make_the_model(layer: str) -> None:
    model = around()
    tail = Tail(model, layer)
    entered = tail.enter(IMAGES)
    before = entered.inputs.clone()
    with torch.no_grad():
        outputs = model.get_submodule(layer)(entered.inputs)
        assert torch.allclose(tail(outputs, entered.aside), model(IMAGES), atol=1e-5)
    assert torch.equal(entered.inputs, before)


def test_a_shortcut_goes_around() -> None:
    entered = Tail(around(), "inner").enter(IMAGES)
    assert entered.inputs.shape == (40, 6, 6, 6)
    assert [part.shape for part in entered.aside] == [(40, 6, 6, 6)]
    assert not Tail(around(), "hidden").enter(IMAGES).aside


def test_outputs_are_not_overwritten_by_activations_in_place() -> None:
    model = around()
    tail = Tail(model, "hidden")
    outputs = torch.randn(3, 20)
    before = outputs.clone()
    tail(outputs)
    assert torch.equal(outputs, before)
    assert model.relu.inplace


def test_operations_are_those_of_the_layers_on_each_side() -> None:
    tail = Tail(around(), "inner")
    assert tail.enter_flops(IMAGES[:1]) == 2 * 36 * 6 * 2 * 9
    entered = tail.enter(IMAGES[:1])
    assert tail.flops(torch.zeros(1, 6, 6, 6), entered.aside) == 2 * (24 * 20 + 20 * 5)


def test_activations_and_a_linear_layer_are_split_off() -> None:
    model = around()
    tail = Tail(model, "hidden")
    split = tail.split()
    assert split is not None
    assert split.linear.out_features == 5
    outputs = torch.randn(4, 20)
    before = outputs.clone()
    with torch.no_grad():
        assert torch.allclose(split.rest(split.linear(split.activation(outputs))), tail(outputs), atol=1e-6)
    assert torch.equal(outputs, before)


@pytest.mark.parametrize("layer", ["first", "inner", "head"])
def test_other_tails_are_whole(layer: str) -> None:
    assert Tail(around(), layer).split() is None


class Twice(nn.Module):
    """The linear layer is used twice, so its outputs alone do not tell."""

    def __init__(self, *, beyond: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.next = nn.Linear(6, 6)
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.hidden(x))
        y: Tensor = self.next(h)
        return y + (x.sum() if self.beyond else h)


def test_a_skip_over_the_linear_layer_is_no_chain() -> None:
    assert Tail(Twice(beyond=False), "hidden").split() is None
    assert Tail(Twice(beyond=True), "hidden").split() is None


def test_something_that_is_not_one_entry_per_example_is_refused() -> None:
    with pytest.raises(ModelError, match="not one entry per example"):
        Tail(Twice(beyond=True), "hidden").enter(torch.zeros(5, 4))


def test_influence_is_the_norm_of_the_next_columns() -> None:
    model = around()
    found = Tail(model, "hidden").influence(20)
    assert found is not None
    assert torch.allclose(found, model.head.weight.detach().norm(dim=0))


def test_influence_goes_through_norms_pools_and_shortcuts() -> None:
    model = around()
    found = Tail(model, "inner").influence(6)
    assert found is not None
    variance = model.norm2.running_var
    assert variance is not None
    scale = model.norm2.weight / torch.sqrt(variance + model.norm2.eps)
    expected = model.hidden.weight.reshape(20, 6, 4).square().sum(dim=(0, 2)).sqrt() * scale
    assert torch.allclose(found, expected.detach(), rtol=1e-5)


def test_the_last_layer_has_no_influence() -> None:
    assert Tail(around(), "head").influence(5) is None


def test_dropout_goes_on_and_off_and_norms_stay() -> None:
    model = around()
    tail = Tail(model, "inner")
    entered = tail.enter(IMAGES)
    outputs = torch.randn(40, 6, 6, 6)
    tail.train(dropout=True)
    assert not torch.equal(tail(outputs, entered.aside), tail(outputs, entered.aside))
    assert not model.norm2.training
    tail.train(dropout=False)
    assert torch.equal(tail(outputs, entered.aside), tail(outputs, entered.aside))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if y.sum() > 0 else -y


def test_models_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be traced"):
        Tail(Branching(), "layer")
    with pytest.raises(ModelError, match="no layer 'other'"):
        Tail(around(), "other")
    shared = nn.Linear(3, 3)
    with pytest.raises(ModelError, match="is called 2 times"):
        Tail(nn.Sequential(shared, shared), "0")


def remembered(most_bytes: int) -> tuple[_Memory, Callable[[nn.Module, Tensor], Tensor], list[int]]:
    """Return a memory, what asks it, and what it did not know."""
    memory, runs = _Memory(most_bytes), []

    def ask(head: nn.Module, x: Tensor) -> Tensor:
        def run() -> Entered:
            runs.append(len(x))
            return Entered(head(x).detach(), ())

        return memory.recall(head, x, run).inputs

    return memory, ask, runs


def test_what_entered_a_layer_is_remembered_by_content() -> None:
    _, ask, runs = remembered(1 << 20)
    head, x = nn.Linear(3, 2), torch.randn(5, 3)
    first = ask(head, x)
    assert torch.equal(ask(copy.deepcopy(head), x.clone()), first)
    assert runs == [5]


def test_whatever_changes_in_place_is_run_again() -> None:
    _, ask, runs = remembered(1 << 20)
    head, x = nn.Linear(3, 2), torch.randn(5, 3)
    ask(head, x)
    with torch.no_grad():
        head.bias.add_(1)
        assert torch.equal(ask(head, x), head(x))
        x.add_(1)
        assert torch.equal(ask(head, x), head(x))
    assert torch.equal(ask(nn.Sequential(head), x), head(x))
    assert runs == [5] * 4


def test_the_oldest_is_forgotten() -> None:
    memory, ask, runs = remembered(2 * 5 * 2 * 4)
    head, inputs = nn.Linear(3, 2), [torch.randn(5, 3) for _ in range(3)]
    for x in (*inputs[:2], inputs[0], inputs[2], inputs[0], inputs[1]):
        ask(head, x)
    assert runs == [5] * 4
    assert len(memory._known) == 2
    memory.most_bytes = 0
    assert ask(head, torch.randn(7, 3)).shape == (7, 2)
    assert not memory._known


class Bent(nn.Module):
    """Two layers with a function between them that is no module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.before, self.layer = function, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(self.function(self.before(x)))
        return answer


def test_the_same_weights_with_other_functions_are_other_networks() -> None:
    models, x = [Bent(torch.relu), Bent(torch.tanh)], torch.randn(6, 3)
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        assert torch.equal(Tail(model, "layer").enter(x).inputs, model.function(model.before(x)))


def test_what_modules_do_not_print_counts_too() -> None:
    """Whether an average counts the padding is not printed, and a buffer that is not saved is in no state_dict."""
    _, ask, runs = remembered(1 << 20)
    x = torch.rand(2, 1, 4, 4)
    for counted in (True, False):
        pool = nn.AvgPool2d(2, padding=1, count_include_pad=counted)
        assert torch.equal(ask(pool, x), pool(x))
    for value in (1.0, 2.0):
        scaled = Scaled(value)
        assert torch.equal(ask(scaled, x), scaled(x))
    assert runs == [2] * 4


class Scaled(nn.Module):
    """Multiplies by a buffer that is not saved."""

    factor: Tensor

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
