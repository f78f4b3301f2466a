"""Every step is a function of the state before it and of the seed: any stretch can be run again."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import InputError, ModelError
from awfulowl.jobs import records
from awfulowl.jobs.job import Proving, Training
from awfulowl.jobs.loop import (
    EVALUATED_PARTS,
    HONEST,
    Row,
    Trainer,
    evaluating,
    order,
    preflight,
    prepare,
    repeatable,
    run,
)
from awfulowl.jobs.state import digest
from awfulowl.jobs.task import Batch
from tests.unit.jobs.small import EXAMPLES, STEPS, Small, files, made, small_work, verdict


def digests(work: Any, steps: int) -> list[bytes]:
    found: list[bytes] = []
    with repeatable(1):
        trainer = Trainer(work)
        found.append(digest(trainer.state()))
        run(trainer, steps, lambda own, _: found.append(digest(own.state())))
    return found


def test_equal_seeds_give_equal_states() -> None:
    assert digests(small_work(), 9) == digests(small_work(), 9)


def test_other_seeds_begin_elsewhere() -> None:
    assert digests(small_work(seed=1), 0) != digests(small_work(seed=2), 0)


def test_steps_do_not_depend_on_what_ran_before() -> None:
    torch.manual_seed(5)
    before = digests(small_work(), 5)
    torch.manual_seed(6)
    torch.rand(7)
    assert digests(small_work(), 5) == before


def test_generators_and_settings_are_put_back() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is meant
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is meant
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with repeatable(2):
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        run(Trainer(small_work()), 2)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == (threads, strict)


def test_the_order_is_a_permutation_of_seed_and_epoch() -> None:
    first = order(1, 0, 50)
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, order(1, 1, 50))
    assert not torch.equal(first, order(2, 0, 50))
    assert order(1, 0, 5).tolist() == [1, 4, 3, 0, 2]  # pinned: another order would make old proofs void


def test_an_epoch_takes_every_example_at_most_once() -> None:
    work = small_work()
    assert (work.rows, work.per_epoch, work.steps) == (EXAMPLES, 6, STEPS)
    seen = torch.cat([work.indices(step) for step in range(work.per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == 48
    assert [work.epoch(step) for step in (0, 5, 6, STEPS - 1, STEPS)] == [0, 0, 1, 4, 4]
    assert work.ends == (6, 12, 18, 24, 30)
    assert small_work(steps=20).ends == (6, 12, 18, 20)
    assert small_work(steps=None, epochs=2).steps == 12


@pytest.mark.parametrize("steps", [20, 30])
def test_stored_states_and_their_neighbours(steps: int) -> None:
    work = small_work(steps=steps)
    kept = [step for step in range(steps + 1) if work.kept(step)]
    assert kept == sorted({*range(4, steps + 1, 4), *work.ends})
    for step in range(steps + 1):
        assert work.nearest(step) == max([0, *(one for one in kept if one <= step)])
        if step < steps:
            assert work.next_kept(step) == min(one for one in kept if one > step)


def test_a_step_says_what_it_did() -> None:
    work = small_work()
    with repeatable(1):
        trainer = Trainer(work)
        first = trainer.advance()
        run(trainer, 10)
        later = trainer.advance()
    assert first.rate == pytest.approx(0.1)
    assert later.rate == pytest.approx(0.1 * (1 - 0.5 * 10 / STEPS))
    assert first.norm > 0
    assert first.loss == pytest.approx(1.1, abs=0.5)


def test_gradients_are_clipped() -> None:
    def moved(clip: float | None) -> float:
        with repeatable(1):
            trainer = Trainer(small_work(clip=clip, momentum=0.0))
            before = trainer.state().copy()
            norm = trainer.advance().norm
            after = trainer.state()
        names = [name for name in after.tensors if name.endswith(("weight", "bias"))]
        square = sum(float((after.tensors[name] - before.tensors[name]).square().sum()) for name in names)
        assert norm > 0.01
        return float(square**0.5)

    assert moved(0.01) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert moved(None) > moved(0.01)


def test_bfloat16_is_another_job() -> None:
    assert digests(small_work(precision="bfloat16"), 1)[0] == digests(small_work(), 1)[0]
    assert digests(small_work(precision="bfloat16"), 1)[1] != digests(small_work(), 1)[1]


def test_evaluations_move_nothing_and_come_again() -> None:
    class Frozen(Small):
        """Holds its batch norm still from the start of every step."""

        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            model.get_submodule("1").eval()
            return super().loss(model, batch)

    with repeatable(1):
        trainer = Trainer(small_work(Frozen()))
        run(trainer, 6)
        before = digest(trainer.state())
        losses = trainer.evaluate(0)
        assert digest(trainer.state()) == before
        assert not trainer.model.get_submodule("1").training
        assert trainer.model.get_submodule("3").training
        assert len(losses) == EVALUATED_PARTS
        assert trainer.evaluate(0, (2, 5)) == [losses[2], losses[5]]
        assert trainer.evaluate(1) != losses
        assert HONEST.evaluate(trainer, 0) == pytest.approx(sum(losses) / len(losses))


def test_divergence_is_said_before_anything_moves() -> None:
    with repeatable(1):
        trainer = Trainer(small_work(lr=1e6, momentum=0.0))
        with pytest.raises(InputError, match="diverges"):
            run(trainer, STEPS)


class Drawing(Small):
    """Draws from generators of its own choice within a step."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * (1 + 0.1 * float(self._draw()))


@pytest.mark.parametrize(
    "draw",
    [random.random, np.random.rand, lambda: torch.rand(1), lambda: 1.0],
    ids=["python", "numpy", "torch", "none"],
)
def test_global_generators_are_repeatable(draw: Any) -> None:
    preflight(small_work(Drawing(draw)))


@pytest.mark.parametrize("draw", [random.Random(1).random, np.random.default_rng(1).random, iter(range(99)).__next__])
def test_generators_of_ones_own_are_not(draw: Any) -> None:
    with pytest.raises(ModelError, match="came out otherwise"):
        preflight(small_work(Drawing(draw)))


def test_initial_weights_have_to_come_again() -> None:
    class Restless(Small):
        def model(self) -> nn.Module:
            model = super().model()
            with torch.no_grad():
                next(model.parameters()).add_(np.random.default_rng().random())
            return model

    with pytest.raises(ModelError, match="initial weights"):
        preflight(small_work(Restless()))


def test_state_outside_the_state_is_found() -> None:
    class Counting(Small):
        """Counts its steps where no state sees it; a second whole run would count alike."""

        def model(self) -> nn.Module:
            self.steps = 0
            return super().model()

        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            self.steps += 1
            return super().loss(model, batch) / self.steps

    with pytest.raises(ModelError, match="came out otherwise"):
        preflight(small_work(Counting()))


class Data(Small):
    """Returns what it is told."""

    def __init__(self, data: Batch) -> None:
        self._data = data

    def data(self, files: Mapping[str, bytes]) -> Batch:
        return self._data


@pytest.mark.parametrize(
    "data", [(), (torch.ones(()),), (torch.ones(50), torch.ones(49)), (torch.ones(7), torch.ones(7))]
)
def test_data_that_cannot_be_used(data: Batch) -> None:
    with pytest.raises(InputError, match="data"):
        small_work(Data(data))


def test_other_data_are_refused() -> None:
    job = small_work().job
    altered = files()
    altered["labels"] = bytes([altered["labels"][0] ^ 1]) + altered["labels"][1:]
    for wrong in (altered, {}, {**files(), "more": b""}):
        with pytest.raises(InputError, match="not those that the client signed"):
            prepare(job, Small(), wrong)


def test_a_job_that_begins_with_one_step() -> None:
    preflight(small_work(steps=1, proving=Proving()))


def test_rows_are_plain_numbers() -> None:
    with repeatable(1):
        row = Trainer(small_work()).advance()
    assert all(type(value) is float for value in row)
    assert isinstance(row, Row)


def test_an_optimiser_of_the_tasks_own(tmp_path: Path) -> None:
    """Its rate is the one that is logged, and that the log is held to."""

    class Own(Small):
        def optimizer(self, model: nn.Module, training: Training) -> torch.optim.Optimizer:
            return torch.optim.RMSprop(model.parameters(), lr=training.lr / 10, momentum=0.5, centered=True)

    work = small_work(Own(), momentum=0.0)
    preflight(work)
    assert verdict(work, made(work, tmp_path / "proof")).status == "accepted"


@pytest.mark.parametrize("steps", [1, 5, 6, 12, 23, 24, 30, 61])
@pytest.mark.parametrize("every", [1, 4, 6, 9, 50])
def test_how_many_states_are_stored(steps: int, every: int) -> None:
    work = small_work(steps=steps, proving=Proving(checkpoint_every=every))
    assert work.count_kept == sum(work.kept(step) for step in range(steps + 1))


def test_a_job_whose_log_would_be_too_long_is_refused_before_it_begins() -> None:
    """A runner would learn it at the end."""
    most = records.MOST_BATCHES
    with pytest.raises(InputError, match="raise checkpoint_every or batch"):
        preflight(small_work(steps=most + 1, proving=Proving(checkpoint_every=1)))
    with pytest.raises(InputError, match="raise checkpoint_every or batch"):
        preflight(small_work(steps=most + 1, batch=EXAMPLES, proving=Proving(checkpoint_every=1000)))
    with pytest.raises(InputError, match="bytes"):
        preflight(small_work(steps=30_000_000, batch=1, proving=Proving(checkpoint_every=1 << 30)))
    preflight(small_work(steps=most // 2, proving=Proving(checkpoint_every=1)))


class Raising(Small):
    """Raises where it is evaluated."""

    def model(self) -> nn.Module:
        model = super().model()
        model.get_submodule("1").eval()
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if not model.training:
            raise ArithmeticError
        return super().loss(model, batch)


def test_modes_are_put_back_when_an_evaluation_raises() -> None:
    with repeatable(1):
        trainer = Trainer(small_work(Raising()))
        before = [module.training for module in trainer.model.modules()]
        with pytest.raises(ArithmeticError):
            trainer.evaluate(0)
        assert [module.training for module in trainer.model.modules()] == before
        with evaluating(trainer.model):
            assert not any(module.training for module in trainer.model.modules())
            assert not torch.is_grad_enabled()
        assert [module.training for module in trainer.model.modules()] == before
