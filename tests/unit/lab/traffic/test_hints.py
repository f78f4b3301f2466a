"""A student is shown what was seen, where it was seen, and for as long as it was said."""

import pytest
import torch
from torch import Tensor

from awfulowl.costs import Ledger
from awfulowl.lab.scenes.loot import Service, Watched
from awfulowl.lab.traffic.hints import Held, Hinting, Student
from awfulowl.lab.victims.fitting import distillation
from tests.scenes import Tiny, build_tiny, digits, tiny_victim

LAYERS = {"conv": 1, "inner": 16, "hidden": 256, "head": 64}
QUERIES = 20


def watched(share: float = 0.5) -> tuple[Tensor, Watched]:
    seen = {layer: torch.arange(inputs) < share * inputs for layer, inputs in LAYERS.items()}
    model, x = tiny_victim().model, digits().public.inputs[:QUERIES]
    return x, Service(model, model, seen).watch(x, Ledger())


def student(hinting: Hinting, held: dict[str, Held] | None = None, share: float = 0.5, steps: int = 10) -> Student:
    x, found = watched(share)
    network = build_tiny(77)
    return Student(network, x, found, held or {}, hinting, steps)


NUMBERS = torch.arange(QUERIES)


def test_without_hints_it_is_distillation() -> None:
    x, found = watched()
    own = student(Hinting(weight=0.0, forced=0.0)).train()
    logits = own(NUMBERS)
    assert torch.equal(logits, build_tiny(77)(x))
    assert float(own.loss(logits, NUMBERS).detach()) == pytest.approx(
        float(distillation(logits, found.logits).detach())
    )


def test_forced_activations_replace_those_that_were_seen() -> None:
    own = student(Hinting(weight=1.0, forced=1.0), share=1.0).train()
    entered: dict[str, Tensor] = {}
    for layer in LAYERS:
        own.network.get_submodule(layer).register_forward_pre_hook(
            lambda _m, given, layer=layer: entered.__setitem__(layer, given[0].detach())
        )
    own(NUMBERS)
    _, found = watched(1.0)
    assert all(torch.equal(entered[layer], found.inputs[layer]) for layer in LAYERS)
    half = student(Hinting(weight=1.0, forced=1.0), share=0.5).train()
    half.network.get_submodule("inner").register_forward_pre_hook(
        lambda _m, given: entered.__setitem__("half", given[0].detach())
    )
    half(NUMBERS)
    _, some = watched(0.5)
    assert torch.equal(entered["half"][:, :8], some.inputs["inner"][:, :8])
    assert not torch.equal(entered["half"][:, 8:], found.inputs["inner"][:, 8:])


def test_forcing_ends_when_it_was_said_to() -> None:
    own = student(Hinting(weight=1.0, forced=0.5), share=1.0, steps=4).train()
    x, _ = watched(1.0)
    answers = [own(NUMBERS) for _ in range(4)]
    alone = build_tiny(77)(x)
    assert [torch.equal(logits, alone) for logits in answers] == [False, False, True, True]


def test_the_victim_itself_has_no_error_and_others_have() -> None:
    own = student(Hinting(), share=1.0).train()
    own.network.load_state_dict(tiny_victim().model.state_dict())
    assert float(own.loss(own(NUMBERS), NUMBERS).detach()) == pytest.approx(0.0, abs=1e-6)
    fresh = student(Hinting(), share=1.0).train()
    assert float(fresh.loss(fresh(NUMBERS), NUMBERS).detach()) > 1.0


def test_hints_teach_layers_that_answers_do_not_reach() -> None:
    own = student(Hinting(forced=1.0), share=1.0).train()
    loss = own.loss(own(NUMBERS), NUMBERS)
    torch.autograd.backward(loss)
    gradients = {name: one.grad for name, one in own.network.named_parameters()}
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients.values())


def test_unseen_channels_teach_nothing() -> None:
    one, other = student(Hinting(forced=0.0)), student(Hinting(forced=0.0))
    changed = other._watched.inputs["hidden"]
    changed[:, ~other._watched.seen["hidden"]] = 1e6
    losses = [float(own.loss(own(NUMBERS), NUMBERS).detach()) for own in (one.train(), other.train())]
    assert losses[0] == losses[1]


def test_it_is_an_ordinary_network_when_it_does_not_learn() -> None:
    x, _ = watched()
    own = student(Hinting()).eval()
    assert torch.equal(own(NUMBERS), build_tiny(77)(x))
    trained = student(Hinting()).train()
    trained.release()
    assert torch.equal(trained(NUMBERS), build_tiny(77)(x))


def test_held_weights_stay_for_as_long_as_it_was_said() -> None:
    mask = torch.zeros(64, 256, dtype=torch.bool)
    mask[:16, :32] = True
    weight = torch.full((64, 256), 0.25)
    own = student(Hinting(frozen=0.5), {"hidden": Held(weight, mask)}, steps=4).train()
    assert isinstance(own.network, Tiny)
    optimizer = torch.optim.AdamW(own.network.parameters(), lr=0.01, weight_decay=0.5)
    for step in range(4):
        # What the optimizer did after a frozen step is undone at the next one.
        optimizer.zero_grad()
        torch.autograd.backward(own.loss(own(NUMBERS), NUMBERS))
        gradient = own.network.hidden.weight.grad
        assert gradient is not None
        assert bool((own.network.hidden.weight[mask] == 0.25).all()) == (step < 2)
        assert not (step < 2 and gradient[mask].any())
        assert bool(gradient[~mask].any())
        optimizer.step()
