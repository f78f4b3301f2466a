"""Devices that lie while Adam trains: in products, in what they state, in steps, and in one block of many."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awfulowl.device.lies import STEP_KINDS, Liar, Misstep, StepKind
from awfulowl.device.worker import Worker
from awfulowl.errors import RefusedError, UnavailableError
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.owner.states import ADAPTATION_PARTS
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import Step
from tests.simulated.memory_fleet import still_fleet
from tests.simulated.test_training_lies import caught, lie_in_gradients
from tests.simulated.training import Twins, image_model, training, twins

WEIGHT, LOST, MOMENTUM, SQUARE = range(4)


def adam(devices: int = 3, policy: Policy | None = None, **settings: Any) -> Any:
    return training(devices, policy, algorithm="adam", **{"lr": 0.01} | settings)


def step_ours(pair: Twins, count: int = 1) -> None:
    """Take steps with the fleet only: where nobody looks yet, they lead elsewhere."""
    for _ in range(count):
        pair.ours.zero_grad()
        pair.differentiate_ours()
        pair.ours.step()


def lie_when_asked(
    worker: Worker, lie: Callable[[list[Tensor]], list[Tensor]], *parts: int, frozen: bool = False
) -> None:
    """Let a device lie about its blocks when it is asked for so many parts of them, as they are or as they were."""
    fetch = worker._store.fetch

    def lying(rows: Any, slices: Any, count: int = 1, copy: int = 0) -> list[Tensor]:
        found = fetch(rows, slices, count, copy)
        return lie([one.clone() for one in found]) if count in parts and bool(copy) == frozen else found

    worker._store.fetch = lying  # type: ignore[method-assign,assignment]


def refuse(parts: list[Tensor]) -> list[Tensor]:
    """Give none of some blocks."""
    raise RefusedError(f"{len(parts)} parts are not for you")


def stray(worker: Worker, change: Callable[[list[Tensor]], object]) -> None:
    """Let a device change its blocks after each step: their parts, in place, those of one sheet after the other."""
    honest = worker.learner.step

    def step(request: Step) -> None:
        honest(request)
        for sheet in worker._store._sheets:
            if len(sheet.state.parts) == SQUARE:
                change([sheet.weights.planes[0], *sheet.state.parts])

    worker.learner.step = step  # type: ignore[method-assign]


class TestProducts:
    """Held to what devices state: a lie is caught at once, and the weights are those of honest ones."""

    @pytest.mark.parametrize("kind", ["one row", "zeros", "stale"])
    def test_forward(self, kind: Any) -> None:
        with adam() as pair:
            pair.step(2)
            liar = pair.fleet.workers["d2"].tamper = Liar(kind, 0.01, seed=3)
            pair.step(2)
            assert liar.told > 0
            caught(pair, "d2")
            pair.agree()

    @pytest.mark.parametrize("kind", ["two rows", "low rank"])
    def test_backward(self, kind: Any) -> None:
        with adam() as pair:
            pair.step(2)
            liar = Liar(kind, 0.01, seed=3)
            lie_in_gradients(pair.fleet.workers["d2"], liar)
            pair.step(2)
            assert liar.told > 0
            caught(pair, "d2")
            pair.agree()

    def test_in_convolutions(self) -> None:
        with adam(model=image_model(), example=torch.zeros(1, 4, 5, 5)) as pair:
            pair.step()
            pair.fleet.workers["d1"].tamper = Liar("random", 0.01)
            pair.step(2)
            caught(pair, "d1")
            pair.agree()


class TestStatements:
    """What devices say their weights are, and what they multiply with."""

    @pytest.mark.parametrize("size", [1e-4, 1.0])
    def test_other_weights_than_they_multiply_with(self, size: float) -> None:
        with adam() as pair:
            pair.step(2)
            lie_when_asked(pair.fleet.workers["d2"], lambda parts: [part * (1 + size) for part in parts], 1)
            pair.step(2)
            caught(pair, "d2")
            pair.agree()

    @pytest.mark.parametrize(
        "lie",
        [
            lambda parts: [part / 0 for part in parts],
            lambda parts: [part * math.inf for part in parts],
            lambda parts: [part[:1] for part in parts],
            lambda parts: [part.flatten() for part in parts],
            lambda parts: [part.T.contiguous() for part in parts],
            lambda parts: [part.double() for part in parts],
            lambda parts: [part.half() for part in parts],
            lambda parts: [(1000 * part).to(torch.int32) for part in parts],
            lambda parts: [torch.zeros(0) for part in parts],
        ],
        ids=["NaN", "infinite", "one row", "flat", "transposed", "double", "half", "integers", "nothing"],
    )
    def test_what_are_no_weights(self, lie: Callable[[list[Tensor]], list[Tensor]]) -> None:
        with adam() as pair:
            pair.step()
            lie_when_asked(pair.fleet.workers["d3"], lie, 1)
            pair.step(2)
            caught(pair, "d3")
            pair.agree()

    @pytest.mark.parametrize("lie", [lambda parts: [], lambda parts: parts * 2, refuse], ids=["none", "two", "refused"])
    def test_who_gives_no_answer_is_asked_no_more(self, lie: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """Nor does it hold training up: its blocks are rebuilt elsewhere."""
        with adam(policy=Policy(request_timeout_s=40.0, answer_timeout_s=2.0)) as pair:
            pair.step()
            lie_when_asked(pair.fleet.workers["d3"], lie, 1)
            pair.step(2)
            pair.agree()
            failures = [event for event in pair.fleet.events if event.kind == "failover"]
            replaced = pair.fleet.statistics["replaced"]
            assert replaced > 0
            pair.step(3)
            pair.agree()
            assert pair.fleet.statistics["replaced"] == replaced
            assert [event for event in pair.fleet.events if event.kind == "failover"] == failures

    def test_weights_at_the_end_of_float32(self) -> None:
        """Finite, but so large that nothing can be multiplied with them."""
        with adam() as pair:
            pair.step()
            lie_when_asked(pair.fleet.workers["d3"], lambda parts: [torch.full_like(part, 3e38) for part in parts], 1)
            pair.step(2)
            caught(pair, "d3")
            pair.agree()

    def test_now_this_and_now_that(self) -> None:
        """Another statement each time that it is asked: what it multiplies with is none of them."""
        with adam() as pair:
            pair.step()
            generator = torch.Generator().manual_seed(0)
            lie_when_asked(
                pair.fleet.workers["d1"],
                lambda parts: [part + 0.01 * torch.randn(part.shape, generator=generator) for part in parts],
                *(1, 4),
            )
            pair.step(2)
            caught(pair, "d1")
            pair.agree()


class TestSteps:
    """Devices that state what they hold, and hold what they should not: found at the next snapshot."""

    @pytest.mark.parametrize(("kind", "since"), [*((kind, 1) for kind in STEP_KINDS), ("scaled", 3)])
    def test_are_found_by_gather(self, kind: StepKind, since: int) -> None:
        with adam() as pair:
            pair.step(2)
            misstep = pair.fleet.workers["d2"].learner.tamper = Misstep(kind, 1e-3)
            step_ours(pair, since)
            assert misstep.told >= (kind != "stale")
            step_ours(pair)
            assert pair.fleet.statistics["lies_caught"] == 0
            pair.fleet.gather(pair.scattered)
            caught(pair, "d2")

    def test_who_does_not_give_what_it_spoiled_is_found_all_the_same(self) -> None:
        """Its blocks come right from others, and it is held to what it stated of them."""
        with adam(policy=Policy(reworked=1.0, request_timeout_s=60.0, answer_timeout_s=2.0)) as pair:
            pair.step(2)
            pair.fleet.workers["d2"].learner.tamper = Misstep("scaled", 1e-3)
            step_ours(pair, 2)
            lie_when_asked(pair.fleet.workers["d2"], lambda parts: [], ADAPTATION_PARTS)
            pair.fleet.gather(pair.scattered)
            caught(pair, "d2")

    @pytest.mark.parametrize("kind", ["skipped", "scaled"])
    def test_the_blocks_are_rebuilt_as_they_should_be(self, kind: StepKind) -> None:
        with adam() as pair:
            pair.step(3)
            pair.fleet.workers["d2"].learner.tamper = Misstep(kind, 0.1)
            pair.step()
            pair.agree()
            caught(pair, "d2")
            pair.step(3)
            pair.agree()

    @pytest.mark.parametrize("kind", ["doubled", "stale"])
    def test_in_convolutions(self, kind: StepKind) -> None:
        with adam(model=image_model(), example=torch.zeros(1, 4, 5, 5)) as pair:
            pair.fleet.workers["d1"].learner.tamper = Misstep(kind, 1e-3)
            step_ours(pair, 2)
            pair.fleet.gather(pair.scattered)
            caught(pair, "d1")

    def test_on_schedule_and_training_goes_on(self) -> None:
        with adam(4, Policy(snapshot_after=3)) as pair:
            pair.fleet.workers["d4"].learner.tamper = Misstep("scaled", 0.01)
            step_ours(pair, 2)
            assert pair.fleet.standing["d4"] is Standing.PRESENT
            step_ours(pair)
            caught(pair, "d4")
            step_ours(pair, 4)
            caught(pair, "d4")

    def test_of_several(self) -> None:
        with adam(5) as pair:
            pair.step()
            for name, kind in (("d2", "doubled"), ("d3", "skipped"), ("d5", "scaled")):
                pair.fleet.workers[name].learner.tamper = Misstep(kind, 0.1)  # type: ignore[arg-type]
            pair.step()
            pair.agree()
            liars = {name for name, standing in pair.fleet.standing.items() if standing is Standing.QUARANTINED}
            assert liars == {"d2", "d3", "d5"}
            pair.step(2)
            pair.agree()

    def test_of_all_devices_end_the_training(self) -> None:
        with adam(2) as pair:
            pair.step()
            for worker in pair.fleet.workers.values():
                worker.learner.tamper = Misstep("skipped")
            step_ours(pair)
            with pytest.raises(UnavailableError, match="lying"):
                pair.fleet.gather(pair.scattered)

    @pytest.mark.parametrize("part", [WEIGHT, MOMENTUM, SQUARE], ids=["weights", "momentum", "squares"])
    def test_one_part_that_strays(self, part: int) -> None:
        """In all blocks, after an honest step: a ten thousandth of it."""
        with adam() as pair:
            pair.step(2)
            stray(pair.fleet.workers["d1"], lambda parts: parts[part].mul_(1 + 1e-4))
            step_ours(pair, 2)
            pair.fleet.gather(pair.scattered)
            caught(pair, "d1")

    def test_a_momentum_that_strays_is_found_in_any_block(self) -> None:
        """Images follow it, so that chance has no part in it: of twelve columns one is off."""
        with adam(1, model=nn.Linear(24, 4), example=torch.zeros(1, 24)) as pair:
            pair.outputs = 4
            step_ours(pair)
            stray(pair.fleet.workers["d1"], lambda parts: parts[MOMENTUM][:, :2].add_(1e-3))
            step_ours(pair)
            with pytest.raises(UnavailableError):
                pair.fleet.gather(pair.scattered)
            caught(pair, "d1")


class Wanderer:
    """Holds other weights after some steps, and goes back to the right ones before the next."""

    def __init__(self, worker: Worker, steps: set[int], size: float = 1e-4) -> None:
        honest = worker.learner.step
        right: list[tuple[Tensor, Tensor]] = []

        def step(request: Step) -> None:
            for weight, kept in right:
                weight.copy_(kept)
            right.clear()
            honest(request)
            if request.step in steps:
                for sheet in worker._store._sheets:
                    weight = sheet.weights.planes[0]
                    right.append((weight, weight.clone()))
                    weight.mul_(1 + size)

        worker.learner.step = step  # type: ignore[method-assign]


class TestWandering:
    """Devices whose blocks are right again when a snapshot comes: what they stated on the way was not."""

    @pytest.mark.parametrize("size", [1e-4, 1.0])
    def test_is_found_at_the_next_snapshot(self, size: float) -> None:
        with adam(3, Policy(snapshot_after=5)) as pair:
            Wanderer(pair.fleet.workers["d2"], {3}, size)
            step_ours(pair, 4)
            assert pair.fleet.standing["d2"] is Standing.PRESENT
            step_ours(pair)
            caught(pair, "d2")
            step_ours(pair, 5)
            caught(pair, "d2")

    def test_in_convolutions(self) -> None:
        with adam(2, Policy(snapshot_after=3), model=image_model(), example=torch.zeros(1, 4, 5, 5)) as pair:
            Wanderer(pair.fleet.workers["d1"], {2})
            step_ours(pair, 3)
            caught(pair, "d1")

    def test_is_found_also_of_one_that_left(self) -> None:
        """Who took over its blocks is not blamed for it, and they are right."""
        with adam(3) as pair:
            Wanderer(pair.fleet.workers["d2"], {2})
            step_ours(pair, 3)
            pair.fleet.kill("d2")
            step_ours(pair)
            pair.fleet.gather(pair.scattered)
            caught(pair, "d2")
            assert pair.fleet.statistics["lies_caught"] == 1
            step_ours(pair, 2)
            pair.fleet.gather(pair.scattered)
            caught(pair, "d2")

    def test_at_the_last_step_is_a_wrong_state(self) -> None:
        with adam(3) as pair:
            pair.step(2)
            Wanderer(pair.fleet.workers["d3"], {3})
            pair.step()
            pair.agree()
            caught(pair, "d3")


class TestSnapshots:
    """Devices that are honest until they are asked for all that they hold."""

    @pytest.mark.parametrize(
        ("part", "lie"),
        [
            (WEIGHT, lambda one: one + 1e-4),
            (LOST, lambda one: one + 1e-3),
            (MOMENTUM, lambda one: one * 1.001),
            (MOMENTUM, lambda one: one / 0),
            (SQUARE, lambda one: -one - 1e-6),
            (SQUARE, lambda one: one * 1.001),
            (SQUARE, lambda one: 0 * one),
            (SQUARE, lambda one: one / 0),
            (SQUARE, lambda one: one[:1]),
            (SQUARE, Tensor.double),
        ],
        ids=[
            *("weights", "lost", "momentum", "no momentum", "negative squares", "larger squares", "no squares"),
            *("infinite squares", "one row", "double"),
        ],
    )
    def test_another_state(self, part: int, lie: Callable[[Tensor], Tensor]) -> None:
        def other(parts: list[Tensor]) -> list[Tensor]:
            parts[part] = lie(parts[part])
            return parts

        with adam() as pair:
            pair.step(2)
            lie_when_asked(pair.fleet.workers["d2"], other, 4)
            pair.agree()
            caught(pair, "d2")
            pair.step(2)
            pair.agree()

    @pytest.mark.parametrize("lie", [lambda one: 1.01 * one, lambda one: 0 * one], ids=["larger", "none"])
    def test_other_squares_in_a_checkpoint(self, lie: Callable[[Tensor], Tensor], tmp_path: Any) -> None:
        """What was looked at in the snapshot, and what is written, are the same to the last bit."""
        with adam() as pair:
            pair.step(2)
            lie_when_asked(pair.fleet.workers["d2"], lambda parts: [*parts[:3], *map(lie, parts[3:])], 4, frozen=True)
            with pytest.raises(UnavailableError, match="d2 sent other blocks"):
                pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            caught(pair, "d2")
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            pair.agree()


RUNS = 6


class OneBlock:
    """Moves the weights of the first column of each of its sheets, and of no other."""

    def __init__(self) -> None:
        self.told = 0

    def __call__(self, parts: list[Tensor]) -> None:
        self.told += 1
        parts[WEIGHT][:, :2] += 1e-3


def snapshots_until_caught(seed: int, reworked: float, most: int = 60) -> int:
    """How many snapshots a device passes that lets one of its six columns go wrong before each."""
    with still_fleet(2, Policy(reworked=reworked)) as fleet:
        fleet._engine.entropy = Entropy(seed)
        pair = twins(fleet, nn.Linear(24, 4, bias=False), torch.zeros(1, 24), algorithm="adam", lr=0.01, seed=seed)
        pair.outputs = 4
        stray(fleet.workers["d1"], OneBlock())
        for turn in range(most):
            step_ours(pair)
            fleet.gather(pair.scattered)
            if fleet.standing["d1"] is Standing.QUARANTINED:
                assert fleet.standing["d2"] is Standing.PRESENT
                return turn
    raise AssertionError("it was never caught")


@pytest.mark.parametrize(("reworked", "drawn"), [(0.1, 1), (0.5, 3), (1.0, 6)])
def test_one_of_many_blocks(reworked: float, drawn: int) -> None:
    """Found with a probability of m/6 each time, where m of six are rebuilt, which is more than 1 - (1 - 1/6)^m."""
    passed = [snapshots_until_caught(seed, reworked) for seed in range(RUNS)]
    chance = drawn / 6
    assert chance >= 1 - (1 - 1 / 6) ** drawn
    expected, spread = (1 - chance) / chance, math.sqrt((1 - chance) / chance**2 / len(passed))
    assert abs(sum(passed) / len(passed) - expected) <= 3 * spread
    assert drawn < 6 or passed == [0] * RUNS


def test_nobody_is_drawn_by_who_is_away() -> None:
    """A device that drops its blocks when a snapshot begins is given them again, and is looked at like all others."""
    with adam(2) as pair:
        pair.step(2)
        worker = pair.fleet.workers["d1"]
        stray(worker, lambda parts: parts[SQUARE].mul_(1.5))
        step_ours(pair)
        gone = tuple(handle for sheet in worker._store._sheets for handle in sheet.slices)
        deployment: Any = pair.fleet._scattered[pair.scattered][0]

        async def evict() -> None:
            deployment.evicted(pair.fleet._engine.peers["d1"], gone)

        loop: Any = pair.fleet._loop
        evicting, run = evict(), loop.run

        def first(work: Any, timeout_s: float | None = None) -> Any:
            async def both() -> Any:
                await evicting
                return await work

            loop.run = run
            return run(both(), timeout_s)

        loop.run = first
        pair.fleet.gather(pair.scattered)
        assert pair.fleet.statistics["replayed"] > 0
        caught(pair, "d1")
