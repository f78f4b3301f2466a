"""A state is all that a step depends on; its digest changes with every bit of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import ModelError, ProofError
from awfulowl.jobs.loop import Trainer, repeatable, run
from awfulowl.jobs.state import Layout, State, decode, digest, encode, form
from tests.unit.jobs.small import small_work


def trained(steps: int = 3, **training: Any) -> State:
    with repeatable(1):
        trainer = Trainer(small_work(**training))
        run(trainer, steps)
        return trainer.state().copy()


def with_tensor(state: State, name: str, change: Callable[[Tensor], Tensor]) -> State:
    return State(state.step, {**state.tensors, name: change(state.tensors[name])})


@pytest.mark.parametrize(
    "training", [{}, {"optimizer": "adam", "momentum": 0.0}, {"optimizer": "adamw", "momentum": 0.0}]
)
def test_everything_that_a_step_depends_on_is_in_it(training: dict[str, Any]) -> None:
    names = set(trained(**training).tensors)
    assert {"model.0.weight", "model.1.running_mean", "model.1.num_batches_tracked"} <= names
    kinds = {name.rpartition(".")[2] for name in names if name.startswith("optimizer.")}
    assert kinds == ({"exp_avg", "exp_avg_sq", "step"} if training else {"momentum_buffer"})


def test_the_digest_is_of_every_tensor() -> None:
    state = trained()
    seen = {digest(state)}
    for name in state.tensors:
        seen.add(digest(with_tensor(state, name, lambda one: one.clone().add_(1))))
    assert len(seen) == len(state.tensors) + 1


def test_the_digest_is_of_step_type_shape_and_name() -> None:
    numbers = torch.arange(6, dtype=torch.int32)
    states = [
        State(0, {"model.a": numbers}),
        State(1, {"model.a": numbers}),
        State(0, {"model.b": numbers}),
        State(0, {"model.a": numbers.reshape(2, 3)}),
        State(0, {"model.a": numbers.reshape(3, 2)}),
        State(0, {"model.a": numbers.view(torch.float32)}),
        State(0, {"model.a": numbers[:3], "model.b": numbers[3:]}),
    ]
    assert len({digest(one) for one in states}) == len(states)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_every_type_has_a_digest(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (3,), (2, 3)):
        zeros, ones = (State(0, {"model.a": maker(shape, dtype=dtype)}) for maker in (torch.zeros, torch.ones))
        assert (digest(zeros) == digest(ones)) is (0 in shape)
        assert digest(decode(encode(ones), 0, "there")) == digest(ones)


def test_the_digest_does_not_depend_on_how_memory_lies() -> None:
    numbers = torch.arange(12.0).reshape(3, 4)
    lying = numbers.t().contiguous().t()
    assert digest(State(0, {"model.a": numbers})) == digest(State(0, {"model.a": lying}))


def test_one_bit_is_enough() -> None:
    state = trained()

    def flipped(tensor: Tensor) -> Tensor:
        bits = tensor.clone().view(torch.int32)
        bits[0, 0] ^= 1
        return bits.view(torch.float32)

    assert digest(with_tensor(state, "model.0.weight", flipped)) != digest(state)


def test_a_state_comes_back_from_its_bytes() -> None:
    state = trained()
    found = decode(encode(state), state.step, "there")
    assert form(found) == form(state)
    assert digest(found) == digest(state)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, encode(State(0, {"model.a": torch.ones(3)}))[:-1]])
def test_bytes_that_are_no_state(content: bytes) -> None:
    with pytest.raises(ProofError, match="holds no state"):
        decode(content, 0, "there")


@pytest.mark.parametrize("training", [{}, {"optimizer": "adam", "momentum": 0.0, "weight_decay": 0.1}])
def test_training_goes_on_from_a_state_to_the_bit(training: dict[str, Any]) -> None:
    with repeatable(1):
        whole, part = Trainer(small_work(**training)), Trainer(small_work(**training))
        run(whole, 5)
        half = decode(encode(whole.state()), 5, "there")
        run(whole, 9)
        part.load(half)
        run(part, 9)
        assert digest(part.state()) == digest(whole.state())


def test_states_of_others_are_refused() -> None:
    state = trained()
    with repeatable(1):
        trainer = Trainer(small_work())
    short = {name: one for name, one in state.tensors.items() if name != "model.0.bias"}
    with pytest.raises(ProofError, match="another model"):
        trainer.load(State(3, short))
    with pytest.raises(ProofError, match="another model"):
        trainer.load(with_tensor(state, "model.0.bias", lambda one: one[:2]))
    with pytest.raises(ProofError, match="another model"):
        trainer.load(with_tensor(state, "model.0.bias", lambda one: one.double()))
    with pytest.raises(ProofError, match="another optimiser"):
        trainer.load(State(3, {**state.tensors, "optimizer.nobody.momentum_buffer": torch.ones(1)}))


def test_a_copy_stays() -> None:
    with repeatable(1):
        trainer = Trainer(small_work())
        copied, live = trainer.state().copy(), trainer.state()
        before = digest(copied)
        trainer.advance()
        assert digest(copied) == before
        assert digest(State(0, live.tensors)) != before


class Odd(nn.Module):
    """Tied parameters, and a buffer that PyTorch does not save and that is replaced at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("hidden", torch.zeros(1), persistent=False)


def test_hidden_buffers_are_seen_and_tied_parameters_once() -> None:
    model = Odd()
    layout = Layout(model, torch.optim.SGD(model.parameters(), lr=1))
    assert set(layout.capture(0).tensors) == {
        "model.first.weight",
        "model.first.bias",
        "model.second.bias",
        "model.hidden",
    }
    before = digest(layout.capture(0))
    model.hidden = torch.ones(1)
    assert digest(layout.capture(0)) != before


def test_optimisers_that_cannot_be_proven() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="parameters of the model"):
        Layout(model, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    layout = Layout(model, optimizer)
    optimizer.state[model.weight]["count"] = 3
    with pytest.raises(ModelError, match="'count' as int"):
        layout.capture(0)
