"""Layers with the same input are one panel, whose products are asked for together and need not be used together."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.simulated.test_training_models import Heads
from tests.simulated.training import Twins, training


def step_of(pair: Twins, name: str, x: Tensor) -> None:
    """Take a step along the gradient of one layer only."""
    for model, optimizer, _ in pair.each:
        optimizer.zero_grad()
        model.get_submodule(name)(inputs(pair, x)[model]).square().mean().backward()
        optimizer.step()


def inputs(pair: Twins, x: Tensor) -> dict[Any, Tensor]:
    """Inputs of both twins; the very same objects every time."""
    known: dict[int, dict[Any, Tensor]] = pair.__dict__.setdefault("known", {})
    return known.setdefault(id(x), {model: cast(x) for model, _, cast in pair.each})


def test_members_asked_alone() -> None:
    with training(model=Heads()) as pair:
        for turn in range(6):
            step_of(pair, ("one", "other")[turn % 2], pair.batch()[0])
        pair.agree()


def test_members_trained_in_turns_on_the_same_tensor() -> None:
    """As when two heads are fitted to one batch: nothing is remembered over a step."""
    with training(model=Heads()) as pair:
        x, _ = pair.batch()
        for turn in range(6):
            step_of(pair, ("one", "other")[turn % 2], x)
        pair.agree()


def test_members_differentiated_one_after_the_other() -> None:
    """Two graphs for PyTorch, and so for us: the first backward frees nothing of the second."""
    with training(model=Heads()) as pair:
        x, _ = pair.batch()
        for model, optimizer, cast in pair.each:
            both: Any = model
            own = cast(x)
            for member in (both.one, both.other):
                member(own).square().mean().backward()
            optimizer.step()
        pair.agree()


def test_members_with_other_inputs() -> None:
    with training(model=Heads()) as pair:
        for _ in range(6):
            (x, wanted), (other, _) = pair.batch(), pair.batch()
            for model, optimizer, cast in pair.each:
                optimizer.zero_grad()
                both: Any = model
                y = both.one(cast(x)) + both.other(cast(other))
                functional.mse_loss(y, cast(wanted)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        pair.agree()


def test_a_member_asked_after_a_step() -> None:
    """Its rows came with the product before the step, and are of weights that are no more."""
    with training(model=Heads(), lr=1.0) as pair:
        x, _ = pair.batch()
        pair.differentiate()
        ours: Any = pair.scattered
        theirs: Any = pair.plain
        with torch.no_grad():
            ours.one(x)
            for _, optimizer, _ in pair.each:
                optimizer.step()
            torch.testing.assert_close(ours.other(x).double(), theirs.other(x.double()), rtol=0.0, atol=1e-5)


def test_a_member_asked_without_gradients_first() -> None:
    """The rows that came along have no graph, and are none for a pass that wants one."""
    with training(model=Heads()) as pair:
        x, _ = pair.batch()
        for model, optimizer, cast in pair.each:
            both: Any = model
            own = cast(x)
            with torch.no_grad():
                both.one(own)
            both.other(own).square().mean().backward()
            optimizer.step()
        pair.agree()


def test_a_member_asked_with_gradients_first() -> None:
    with training(model=Heads()) as pair:
        x, _ = pair.batch()
        ours: Any = pair.scattered
        ours.one(x)
        with torch.no_grad():
            assert not ours.other(x).requires_grad


def test_inputs_that_were_changed_in_place_in_between() -> None:
    with training(model=Heads()) as pair:
        x, _ = pair.batch()
        for model, optimizer, cast in pair.each:
            both: Any = model
            own = cast(x).clone()
            with torch.no_grad():
                both.one(own)
            own.add_(1.0)
            both.other(own).square().mean().backward()
            optimizer.step()
        pair.agree()
