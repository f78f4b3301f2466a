"""Devices that lie while they train: they are found out, and the weights are those of honest ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.device.lies import KINDS, STEP_KINDS, Kind, Liar, Misstep, StepKind
from awfulowl.device.worker import Worker
from awfulowl.errors import UnavailableError
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options, Shape
from tests.simulated.training import REPLICAS, SMALL, Twins, image_model, training


def lie_in_gradients(worker: Worker, liar: Callable[[int, list[Tensor]], list[Tensor]]) -> None:
    """Let a device lie about gradients of inputs, and about nothing else."""
    honest = worker.learner.apply_transposed

    def lying(*request: Any) -> list[Tensor]:
        return liar(0, honest(*request))

    worker.learner.apply_transposed = lying  # type: ignore[method-assign,assignment]


def caught(pair: Twins, *names: str) -> None:
    """Require that these devices, and no others, were found out."""
    liars = [name for name, standing in pair.fleet.standing.items() if standing is Standing.QUARANTINED]
    assert liars == list(names)
    assert [event.device for event in pair.fleet.events if event.kind == "quarantined"] == list(names)


@pytest.mark.parametrize("options", [SMALL, REPLICAS], ids=["1 replica", "2 replicas"])
@pytest.mark.parametrize("kind", KINDS)
def test_lies_in_gradients_of_inputs(kind: Kind, options: Options) -> None:
    with training(4, options=options, momentum=0.9) as pair:
        liar = Liar(kind, 0.01, seed=3)
        lie_in_gradients(pair.fleet.workers["d2"], liar)
        pair.step(4)
        assert liar.told > 0
        caught(pair, "d2")
        pair.agree()


@pytest.mark.parametrize("kind", ["one row", "stale", "zeros"])
def test_lies_in_every_product(kind: Kind) -> None:
    with training(4, options=REPLICAS, momentum=0.9) as pair:
        pair.step(2)
        liar = pair.fleet.workers["d3"].tamper = Liar(kind, 0.01, seed=3)
        pair.step(4)
        assert liar.told > 0
        caught(pair, "d3")
        pair.agree()


@pytest.mark.parametrize("shape", ["columns", "rows", "rectangles", "scattered"])
def test_lies_about_convolutions(shape: Shape) -> None:
    options = Options(block=(4, 2), shape=shape, share=1.0, domain_share=1.0)
    with training(3, model=image_model(), example=torch.zeros(1, 4, 5, 5), options=options) as pair:
        x, wanted = pair.batch()
        lie_in_gradients(pair.fleet.workers["d1"], Liar("random", 0.01))
        for model, optimizer, cast in pair.each:
            own = cast(x).requires_grad_()
            pair.loss(model, own, cast(wanted)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pair.step(2)
        caught(pair, "d1")
        pair.agree()


def test_a_liar_that_sends_other_shapes() -> None:
    with training(3) as pair:
        lie_in_gradients(pair.fleet.workers["d2"], lambda _, answers: [answer[:, :1] for answer in answers])
        pair.step(2)
        caught(pair, "d2")
        pair.agree()


def test_a_liar_that_sends_no_numbers() -> None:
    with training(3) as pair:
        lie_in_gradients(pair.fleet.workers["d2"], lambda _, answers: [answer / 0 for answer in answers])
        pair.step(2)
        caught(pair, "d2")
        pair.agree()


class TestMissteps:
    """Devices that answer truly, and move their blocks otherwise than they were told."""

    @pytest.mark.parametrize("options", [SMALL, REPLICAS], ids=["1 replica", "2 replicas"])
    @pytest.mark.parametrize("kind", STEP_KINDS)
    def test_are_found_at_the_next_use(self, kind: StepKind, options: Options) -> None:
        with training(4, options=options, momentum=0.9) as pair:
            pair.step(2)
            misstep = pair.fleet.workers["d2"].learner.tamper = Misstep(kind, 0.1)
            pair.step(3)
            if options is SMALL:  # else it may be that only the other replica was asked
                assert pair.fleet.standing["d2"] is Standing.QUARANTINED
            pair.agree()
            pair.step(3)
            assert misstep.told > 0
            pair.agree()
            honest = [name for name in pair.fleet.standing if name != "d2"]
            assert all(pair.fleet.standing[name] is Standing.PRESENT for name in honest)

    def test_are_found_by_gather(self) -> None:
        with training(3) as pair:
            pair.step()
            pair.fleet.workers["d1"].learner.tamper = Misstep("doubled")
            pair.step()
            pair.agree()
            caught(pair, "d1")

    @pytest.mark.parametrize("kind", STEP_KINDS)
    def test_in_convolutions(self, kind: StepKind) -> None:
        with training(3, model=image_model(), example=torch.zeros(1, 4, 5, 5), momentum=0.5) as pair:
            for worker in list(pair.fleet.workers.values())[:1]:
                worker.learner.tamper = Misstep(kind, 0.1)
            pair.step(3)
            pair.agree()
            caught(pair, "d1")

    def test_now_and_then(self) -> None:
        """Two devices of five stray in some steps only."""
        with training(5, options=REPLICAS, momentum=0.9) as pair:
            for seed, name in enumerate(("d2", "d5")):
                pair.fleet.workers[name].learner.tamper = Misstep("scaled", 0.05, 0.2, seed)
            pair.step(20)
            pair.agree()
            liars = {name for name, standing in pair.fleet.standing.items() if standing is Standing.QUARANTINED}
            assert liars == {"d2", "d5"}

    def test_of_all_devices_end_the_training(self) -> None:
        with training(2) as pair:
            for worker in pair.fleet.workers.values():
                worker.learner.tamper = Misstep("skipped")
            pair.step()
            with pytest.raises(UnavailableError, match="lying"):
                pair.step()
            assert pair.ours.steps == 1

    def test_of_nobody_else_are_blamed_on_nobody(self) -> None:
        """What an honest device did beside liars stands."""
        with training(4) as pair:
            for name in ("d1", "d2", "d3"):
                pair.fleet.workers[name].learner.tamper = Misstep("doubled")
            pair.step(4)
            pair.agree()
            assert pair.fleet.standing["d4"] is Standing.PRESENT


class TestStates:
    """Devices that send other weights than they have, when these are fetched."""

    @pytest.mark.parametrize("part", [0, 1, 2])
    @pytest.mark.parametrize("size", [1e-3, 1e3])
    def test_lies_about_a_state(self, part: int, size: float) -> None:
        """Of weights, of what was lost in rounding, and of momentum."""
        with training(3, Policy(snapshot_after=3), momentum=0.9) as pair:
            store = pair.fleet.workers["d2"]._store
            fetch = store.fetch

            def lying(*request: Any) -> list[Tensor]:
                found = [one.clone() for one in fetch(*request)]
                found[part].view(-1)[0] += size
                return found

            store.fetch = lying  # type: ignore[method-assign,assignment]
            pair.step(7)
            assert pair.fleet.statistics["snapshots"] == 4
            caught(pair, "d2")
            pair.agree()

    @pytest.mark.parametrize("sent", [[], [torch.zeros(1)], [torch.zeros(4, 4)] * 3, [torch.zeros(4, 4).double()] * 3])
    def test_states_of_other_shapes(self, sent: list[Tensor]) -> None:
        with training(3) as pair:
            pair.step()
            pair.fleet.workers["d3"]._store.fetch = lambda *_: sent  # type: ignore[method-assign]
            pair.agree()
            refused = pair.fleet.statistics["violations"] > 0
            assert refused or pair.fleet.standing["d3"] is Standing.QUARANTINED

    def test_a_liar_that_is_asked_for_its_blocks_lies_again(self) -> None:
        with training(3) as pair:
            worker = pair.fleet.workers["d2"]
            lie_in_gradients(worker, Liar("random", 0.1))
            fetch = worker._store.fetch
            worker._store.fetch = lambda *request: [one + 1 for one in fetch(*request)]  # type: ignore[method-assign]
            pair.step(2)
            caught(pair, "d2")
            assert "not what they should be" in next(e.text for e in pair.fleet.events if e.kind == "quarantined")
            pair.agree()


def test_unverified_training_goes_wrong_in_silence() -> None:
    """What all the others would be without the check."""
    with training(2, Policy(verify=False)) as pair:
        pair.fleet.workers["d2"].tamper = Liar("random", 0.1)
        with pytest.raises(AssertionError):
            pair.step(3)
