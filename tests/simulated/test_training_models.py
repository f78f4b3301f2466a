"""Models of all kinds train on a fleet as they do in one process: every weight, bias and buffer."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.adapters import ScatteredWeight
from awfulowl.errors import InputError
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.request import plan_model
from awfulowl.wire import messages as verbs
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.training import SMALL, Twins, image_model, perceptron, training, twins


class Heads(nn.Module):
    """Two layers with the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.other(x)
        return y


class Attending(nn.Module):
    """Attention, whose projections share their input, and two layers around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        answer: Tensor = self.last(y.mean(1))
        return answer


class Recurrent(nn.Module):
    """One layer that is called again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        for _ in range(3):
            y = torch.tanh(self.again(y)) + y
        answer: Tensor = self.last(y)
        return answer


def normalised() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(150, 3)
    )


def several_convolutions() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, groups=4, padding=2, dilation=2, padding_mode="reflect"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (perceptron, torch.zeros(1, 12)),
        (Recurrent, torch.zeros(1, 12)),
        (Heads, torch.zeros(1, 12)),
        (normalised, torch.zeros(2, 4, 5, 5)),
        (several_convolutions, torch.zeros(1, 4, 5, 5)),
    ],
    ids=["perceptron", "one layer thrice", "one input for two layers", "batch norm", "convolutions"],
)
def test_models_train_as_in_one_process(make: Callable[[], nn.Module], example: Tensor) -> None:
    torch.manual_seed(1)
    model = make()
    before = copy.deepcopy(model.state_dict())
    with still_fleet(2) as fleet:
        pair = twins(fleet, model, example, momentum=0.9)
        pair.step(5)
        pair.agree()
        assert fleet.statistics["checks_failed"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the original moved"


def test_attention_and_embeddings_train() -> None:
    torch.manual_seed(0)
    with still_fleet(2) as fleet:
        pair = twins(fleet, Attending(), torch.zeros(1, 4, dtype=torch.long), momentum=0.9)
        tokens = torch.randint(0, 10, (5, 4))
        wanted = torch.randn(5, 3)
        for _ in range(5):
            before = fleet.statistics["requests"]
            for model, optimizer, cast in pair.each:
                optimizer.zero_grad()
                functional.mse_loss(model(tokens), cast(wanted)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            # q, k and v are one request, then the output projection and the last layer: both ways.
            assert fleet.statistics["requests"] - before == 6
        pair.agree()


def test_the_first_layer_is_asked_for_no_gradients_of_inputs() -> None:
    with training() as pair:
        pair.step()
        # Forward both layers, backward the second.
        assert pair.fleet.statistics["checks"] == 3 * pair.samples
        asked = [type(request.body) for request in watched(pair, pair.step)]
        assert asked.count(verbs.ApplyTransposed) == 2 * 2


def watched(pair: Twins, work: Callable[[], None]) -> list[Any]:
    """Return what devices were asked during some work."""
    seen: list[Any] = []
    for worker in pair.fleet.workers.values():
        do = worker._do

        def noting(request: Any, do: Callable[[Any], Any] = do) -> Any:
            seen.append(request)
            return do(request)

        worker._do = noting  # type: ignore[method-assign]
    work()
    return seen


class TestFrozen:
    """Layers whose weights require no gradient."""

    @pytest.mark.parametrize("frozen", [0, 2])
    def test_frozen_layers_stay_and_pass_gradients(self, frozen: int) -> None:
        model = perceptron()
        model[frozen].requires_grad_(False)  # noqa: FBT003
        before = model.get_parameter(f"{frozen}.weight").detach().clone()
        with training(model=model, momentum=0.9) as pair:
            pair.step(4)
            pair.agree()
            after = pair.fleet.gather(pair.scattered)
            assert torch.equal(after[f"{frozen}.weight"], before)
            assert pair.scattered.get_parameter(f"{frozen}.weight").requires_grad is False
            assert pair.fleet.statistics["steps"] == 4

    def test_only_the_bias_of_a_frozen_layer_trains(self) -> None:
        model = perceptron()
        model[0].weight.requires_grad_(False)  # noqa: FBT003
        with training(model=model) as pair:
            pair.step(3)
            pair.agree()

    def test_a_whole_frozen_model_passes_gradients_to_its_input(self) -> None:
        model = image_model().requires_grad_(False)  # noqa: FBT003
        x = torch.randn(2, 4, 5, 5, requires_grad=True)
        with still_fleet(2) as fleet:
            scattered = fleet.scatter(model, plan_model(model, x.detach(), fleet.devices, SMALL), train=True)
            (ours,) = torch.autograd.grad(scattered(x).square().sum(), x)
            (theirs,) = torch.autograd.grad(model(x).square().sum(), x)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            assert not scattered(x.detach()).requires_grad
            with pytest.raises(InputError, match="cannot be made"):
                fleet.optimizer(scattered, lr=0.1)

    def test_groups_may_leave_layers_out(self) -> None:
        """They get gradients, as in PyTorch, and do not move."""
        with training(groups=lambda model: model[2].parameters()) as pair:
            pair.step(3)
            pair.agree()


def test_kept_and_scattered_layers_mix() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    for keep in (("0",), ("2",), ("4",), ("0", "4")):
        with training(model=model, options=Options(block=4, keep=keep), momentum=0.9, weight_decay=0.01) as pair:
            kept = [isinstance(pair.scattered[place].weight, ScatteredWeight) for place in (0, 2, 4)]  # type: ignore[index]
            assert kept == [str(place) not in keep for place in (0, 2, 4)]
            pair.step(3)
            pair.agree()


@pytest.mark.parametrize("shape", ["columns", "rows", "rectangles", "scattered"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_shape_of_cells_trains(shape: Shape, replicas: int) -> None:
    options = Options(block=4, shape=shape, share=1.0, domain_share=1.0, replicas=replicas)
    with still_fleet(3) as fleet:
        pair = twins(fleet, several_convolutions(), torch.zeros(1, 4, 5, 5), options=options, momentum=0.9)
        pair.step(4)
        pair.agree()
        assert fleet.statistics["checks_failed"] == fleet.statistics["behind"] == 0


def held(fleet: MemoryFleet) -> dict[tuple[bytes, bytes], list[Tensor]]:
    """Return every block that devices hold, by row and slice: one for each replica."""
    found: dict[tuple[bytes, bytes], list[Tensor]] = {}
    for worker in fleet.workers.values():
        for sheet in worker._store._sheets:
            for row, down in sheet.rows.items():
                for handle, across in sheet.slices.items():
                    found.setdefault((row, handle), []).append(sheet.cut(sheet.whole(0), down, across))
    return found


def test_replicas_hold_equal_bits() -> None:
    with training(4, model=perceptron(), options=Options(block=4, replicas=2, share=1.0)) as pair:
        pair.step(10)
        blocks = held(pair.fleet)
        assert blocks
        assert all(len(found) == 2 and torch.equal(*found) for found in blocks.values())
        pair.agree()


class TestBatches:
    """However a batch is cut, and whatever happens between its passes."""

    @pytest.mark.parametrize("part_bytes", [64, 200])
    def test_batches_travel_in_parts(self, part_bytes: int) -> None:
        with training(2, Policy(part_bytes=part_bytes)) as pair:
            pair.step(3)
            assert pair.fleet.statistics["parts"] > pair.fleet.statistics["steps"]
            pair.agree()

    def test_replicas_share_the_parts(self) -> None:
        with training(4, Policy(part_bytes=64), options=Options(block=4, replicas=2, share=1.0)) as pair:
            pair.step(4)
            pair.agree()

    def test_micro_batches_add_up(self) -> None:
        with training(momentum=0.9) as pair:
            for _ in range(3):
                large, wanted = pair.batch()
                for model, optimizer, cast in pair.each:
                    optimizer.zero_grad()
                    parts = [slice(None)] if model is pair.plain else [slice(0, 1), slice(1, 4), slice(4, 6)]
                    for part in parts:
                        loss = functional.mse_loss(model(cast(large[part])), cast(wanted[part]), reduction="sum")
                        torch.autograd.backward(loss / large.shape[0])
                    optimizer.step()
            pair.agree()

    def test_zero_grad_drops_what_was_there(self) -> None:
        with training() as pair:
            for _ in range(2):
                pair.differentiate()
                for _, optimizer, _ in pair.each:
                    optimizer.zero_grad()
                pair.differentiate()
                for _, optimizer, _ in pair.each:
                    optimizer.step()
                    optimizer.zero_grad()
            pair.differentiate()
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
                optimizer.step()
            pair.agree()

    def test_passes_without_gradients_in_between(self) -> None:
        with training() as pair:
            for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
                batch = pair.batch()
                for model, optimizer, cast in pair.each:
                    optimizer.zero_grad()
                    x, wanted = (cast(one) for one in batch)
                    pair.loss(model, x, wanted).backward()  # type: ignore[no-untyped-call]
                    with mode():
                        model.eval()(x)
                    model.train()
                    optimizer.step()
            pair.agree()

    def test_graphs_may_be_walked_twice(self) -> None:
        with training() as pair:
            x, wanted = pair.batch()
            for model, optimizer, cast in pair.each:
                loss = pair.loss(model, cast(x), cast(wanted))
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            pair.agree()

    def test_an_empty_batch_moves_nothing(self) -> None:
        with training() as pair:
            for model, optimizer, cast in pair.each:
                x = cast(torch.zeros(0, 12)).requires_grad_()
                model(x).sum().backward()
                assert x.grad is not None
                assert x.grad.shape == (0, 12)
                optimizer.step()
            pair.agree(1e-7)
            pair.step(2)
            pair.agree()

    def test_models_clear_gradients_too(self) -> None:
        with training() as pair:
            pair.differentiate()
            for model, _, _ in pair.each:
                model.zero_grad()
            pair.differentiate()
            for _, optimizer, _ in pair.each:
                optimizer.step()
            pair.agree()

    def test_gradients_that_are_only_asked_for_are_no_part_of_a_step(self) -> None:
        """As `torch.autograd.grad` leaves those of parameters alone: for attacks, penalties, maps of saliency."""
        with training() as pair:
            x, wanted = pair.batch()
            for model, optimizer, cast in pair.each:
                own = cast(x).requires_grad_()
                (found,) = torch.autograd.grad(pair.loss(model, own, cast(wanted)), own)
                pair.loss(model, (own + found).detach(), cast(wanted)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            pair.agree()

    def test_two_graphs_are_walked_in_any_order(self) -> None:
        with training() as pair:
            batches = [pair.batch() for _ in range(3)]
            for model, optimizer, cast in pair.each:
                losses = [pair.loss(model, cast(x), cast(wanted)) for x, wanted in batches]
                for loss in (losses[1], losses[2], losses[0]):
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            pair.agree()


def test_one_device_is_enough() -> None:
    with training(1) as pair:
        pair.step(3)
        pair.agree()
