"""What users do meanwhile makes no honest device a liar: other uses of the model, other threads, interruptions."""

import asyncio
import copy
import dataclasses
import threading
from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import nn

from awfulowl.arithmetic.descent import Descent
from awfulowl.errors import AwfulOwlError
from awfulowl.limits import DEFAULT, KIB
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet, still_fleet
from tests.simulated.training import Twins, image_model, perceptron, training, twins


def honest(fleet: MemoryFleet) -> None:
    """Require that nobody was called a liar."""
    assert [name for name, one in fleet.standing.items() if one is Standing.QUARANTINED] == []
    assert fleet.statistics["lies_caught"] == 0


@pytest.mark.parametrize("snapshot_after", [2, 1000])
def test_the_model_may_be_used_otherwise(snapshot_after: int) -> None:
    """To evaluate what was gathered, say: devices are rebuilt from what it was, or from a snapshot."""
    model = perceptron()
    with training(3, Policy(snapshot_after=snapshot_after), model=model, momentum=0.9) as pair:
        pair.step(3)
        model.load_state_dict(pair.fleet.gather(pair.scattered))
        pair.fleet.kill("d2")
        pair.fleet.start("d2")
        pair.fleet.wait(3)
        pair.step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        pair.fleet.kill("d1")
        pair.step(2)
        pair.agree()
        honest(pair.fleet)


def test_the_model_may_be_gone() -> None:
    model = perceptron()
    with training(2, model=model) as pair:
        pair.step()
        model[0] = nn.Linear(12, 8)
        pair.fleet.kill("d2")
        pair.step()
        pair.agree()


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 11, 14, 20])
def test_an_interrupted_step(turns: int) -> None:
    """Ctrl-C in a notebook: the step is taken everywhere or nowhere, and training goes on."""
    with training(3, Policy(request_timeout_s=20)) as pair:
        pair.step()
        pair.ours.zero_grad()
        pair.differentiate_ours()
        deployment: Any = pair.fleet._scattered[pair.scattered][0]
        rule = Descent.sgd(0.1)

        async def interrupted() -> None:
            step = asyncio.ensure_future(deployment.step({0: rule, 1: rule}))
            for _ in range(turns):
                await asyncio.sleep(0)
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)

        pair.fleet._loop.run(interrupted())
        for _ in range(2):
            pair.ours.zero_grad()
            pair.differentiate_ours()
            pair.ours.step()
        pair.fleet.gather(pair.scattered)
        honest(pair.fleet)


class Meanwhile:
    """Does something in another thread as long as a step goes on."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.done = 0
        self.failed: list[AwfulOwlError] = []

    def _run(self) -> None:
        with torch.no_grad():
            while not self._over.is_set() and not self.failed:
                try:
                    self._work()
                    self.done += 1
                except AwfulOwlError as error:
                    self.failed.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_a_model_is_evaluated_while_it_is_trained() -> None:
    """In another thread: products see the weights between two steps."""
    with memory_fleet(3, Policy(request_timeout_s=20, snapshot_after=10)) as fleet:
        pair = twins(fleet, perceptron(), momentum=0.9)
        with Meanwhile(lambda: pair.scattered(torch.randn(4, 12))) as meanwhile:
            pair.step(25)
        assert meanwhile.failed == []
        assert meanwhile.done > 0
        pair.agree()
        honest(fleet)


def test_settings_of_a_copy_change_nothing() -> None:
    """What a scheduler or a user reads of the optimizer may be kept and changed."""
    with training() as pair:
        pair.step()
        copied = copy.deepcopy(pair.ours.settings())
        pair.ours.settings()[0]["lr"] = 9.0
        assert pair.ours.settings() == copied


class TestRoom:
    """Devices keep inputs and gradients for one step, and no longer."""

    @staticmethod
    def held(fleet: MemoryFleet) -> int:
        """Bytes that the device with most of them keeps."""
        return max(worker.learner.held_bytes for worker in fleet.workers.values())

    def test_is_free_after_a_step(self) -> None:
        with training(model=image_model(), example=torch.zeros(1, 4, 5, 5)) as pair:
            pair.differentiate()
            assert self.held(pair.fleet) > 0
            pair.ours.step()
            assert self.held(pair.fleet) == 0

    def test_is_not_filled_by_frozen_layers(self) -> None:
        model = perceptron()
        model[2].weight.requires_grad = False
        with still_fleet(2, limits=dataclasses.replace(DEFAULT, activation_bytes=4 * KIB)) as fleet:
            pair = twins(fleet, model)
            pair.step(80)
            pair.agree()
            assert fleet.statistics["behind"] == 0

    def test_is_not_filled_by_passes_without_a_way_back(self) -> None:
        """As when a model is validated without `no_grad`."""
        with still_fleet(2, limits=dataclasses.replace(DEFAULT, activation_bytes=16 * KIB)) as fleet:
            pair = twins(fleet, perceptron())
            for _ in range(20):
                pair.scattered(torch.randn(64, 12))
            self.steps(pair)
            assert fleet.statistics["behind"] == 0

    def steps(self, pair: Twins) -> None:
        pair.step(2)
        pair.agree()
        honest(pair.fleet)
