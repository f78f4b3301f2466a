"""Devices that leave, return, and round otherwise while Adam trains: the weights are as if nothing had happened."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.device.dense import Products
from awfulowl.device.lies import Liar, Misstep
from awfulowl.errors import UnavailableError
from awfulowl.fabric.base import Fabric
from awfulowl.fabric.faulty import FaultyFabric
from awfulowl.owner import auditing
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import ApplyTransposed, Fetch, Load, Step
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.test_training_churn import Chance
from tests.simulated.test_training_faults import in_the_middle, lose, random_faults, shaken, step_with
from tests.simulated.training import Twins, image_model, perceptron, training, twins


def adam(devices: int = 3, policy: Policy | None = None, **settings: Any) -> Any:
    return training(devices, policy, algorithm="adam", **{"lr": 0.01} | settings)


MOMENTS = ["forward", "backward", "step"]


def all_honest(pair: Twins) -> None:
    """Require that nobody was called a liar, and nothing was lost."""
    statistics = pair.fleet.statistics
    assert statistics["requests_lost"] == statistics["lies_caught"] == 0
    assert Standing.QUARANTINED not in pair.fleet.standing.values()


def round_otherwise(fleet: MemoryFleet, *names: str) -> None:
    """Let devices be of another make: their products are added up in float64, those of others in float32."""

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return (x.double() @ weight.double().T).float()

    def transposed(dy: Tensor, weight: Tensor) -> Tensor:
        return (dy.double() @ weight.double()).float()

    for name in names:
        store: Any = fleet.workers[name]._store
        store.dense = Products(multiply, transposed)


class TestLeaving:
    """At any moment; blocks are rebuilt elsewhere, and a device that returns is given its own again."""

    @pytest.mark.parametrize(
        ("at", "back"),
        [
            *((at, "stays away") for at in MOMENTS),
            ("forward", "comes back at once"),
            ("step", "comes back at once"),
            ("backward", "comes back later"),
        ],
    )
    def test_before(self, at: str, back: str) -> None:
        with adam(4) as pair:
            pair.step(2)

            def happen() -> None:
                pair.fleet.kill("d2")
                if back == "comes back at once":
                    pair.fleet.start("d2")

            step_with(pair, at, happen)
            pair.step()
            if back == "comes back later":
                pair.fleet.start("d2")
                pair.fleet.wait(5)
            pair.step(2)
            pair.agree()
            all_honest(pair)
            assert back == "stays away" or pair.fleet.standing["d2"] is Standing.PRESENT

    @pytest.mark.parametrize(
        ("at", "comes_back"), [("forward", False), ("backward", True), ("step", False), ("step", True)]
    )
    def test_in_the_middle_of(self, at: str, comes_back: bool) -> None:
        with adam(4) as pair:
            pair.step(2)
            for name in ("d3", "d1"):
                step_with(pair, at, lambda name=name: in_the_middle(pair.fleet, name, at))  # type: ignore[misc]
                assert name not in pair.fleet.running
                if comes_back:
                    pair.fleet.start(name)
                pair.step()
            pair.agree()
            all_honest(pair)

    @pytest.mark.parametrize("comes_back", [False, True])
    @pytest.mark.parametrize("parts", [1, 4], ids=["statement", "snapshot"])
    def test_in_the_middle_of_a(self, parts: int, comes_back: bool) -> None:
        """Of what is asked of all devices after a step, and of what is asked at the end."""
        with adam(4) as pair:
            pair.step(2)
            for name in ("d3", "d1"):
                leave_when_asked(pair.fleet, name, parts)
                pair.step()
                if parts == 4:
                    pair.agree()
                assert name not in pair.fleet.running
                if comes_back:
                    pair.fleet.start(name)
                pair.step()
            pair.agree()
            all_honest(pair)

    def test_several_at_once(self) -> None:
        with adam(5) as pair:
            pair.step(2)
            for name in ("d1", "d2"):
                in_the_middle(pair.fleet, name, "step")
            leave_when_asked(pair.fleet, "d4", 1)
            pair.step()
            assert pair.fleet.running.keys() == {"d3", "d5"}
            pair.step()
            pair.agree()
            all_honest(pair)

    def test_all_one_after_the_other(self) -> None:
        with adam(3) as pair:
            for name in ("d1", "d2", "d3"):
                pair.fleet.kill(name)
                pair.step(2)
                pair.fleet.start(name)
                pair.fleet.wait(5)
                pair.step()
            pair.agree()
            all_honest(pair)

    def test_all_at_once(self) -> None:
        """Weights live on nobody then: they are rebuilt from what the owner keeps."""
        with adam(3) as pair:
            pair.step(3)
            for name in list(pair.fleet.running):
                pair.fleet.kill(name)
            for name in pair.fleet.workers:
                pair.fleet.start(name)
            pair.step(2)
            pair.agree()
            all_honest(pair)
            assert pair.fleet.statistics["replayed"] > 0

    @pytest.mark.parametrize("seed", [0])
    def test_at_random(self, seed: int) -> None:
        with adam(5, Policy(snapshot_after=7), weight_decay=0.01) as pair:
            random_faults(pair, ["d1", "d2", "d3", "d4", "d5"], 12, seed)
            pair.agree()
            all_honest(pair)

    def test_convolutions_are_rebuilt_too(self) -> None:
        with adam(3, model=image_model(), example=torch.zeros(1, 4, 5, 5)) as pair:
            for name in ("d1", "d2"):
                step_with(pair, "step", lambda name=name: pair.fleet.kill(name))  # type: ignore[misc]
                pair.step()
            pair.agree()
            all_honest(pair)
            assert pair.fleet.statistics["replayed"] > 0


def leave_when_asked(fleet: MemoryFleet, name: str, parts: int) -> None:
    """Let a device leave when it is asked next for so many parts of its blocks."""
    store = fleet.workers[name]._store
    honest = store.fetch

    def leave(rows: Any, slices: Any, count: int = 1, frozen: int = 0) -> list[Tensor]:
        if count == parts:
            fleet.stop_in_the_middle(name)
        return honest(rows, slices, count, frozen)

    store.fetch = leave  # type: ignore[method-assign,assignment]


class TestMissed:
    """What a device missed without leaving makes it behind, and it is brought back; nobody is called a liar."""

    @pytest.mark.parametrize("arrives", [False, True])
    @pytest.mark.parametrize("kind", [Step, ApplyTransposed, Fetch])
    def test_a_lost_request(self, kind: type[Any], arrives: bool) -> None:
        with adam(4) as pair:
            pair.step(2)
            lost = lose(pair.fleet, "d2", kind, arrives=arrives)
            pair.step(3)
            assert len(lost) == 1
            pair.agree()
            all_honest(pair)

    def test_a_lost_load(self) -> None:
        with adam(4, Policy(repair_after_s=1)) as pair:
            pair.step()
            pair.fleet.kill("d2")
            lost = [lose(pair.fleet, name, Load, arrives=True) for name in ("d1", "d3")]
            pair.step(3)
            assert any(lost)
            pair.agree()
            all_honest(pair)

    def test_a_bad_network(self) -> None:
        with still_fleet(3, Policy(answer_timeout_s=1.0, request_timeout_s=600.0), wrap=shaken(0.01)) as fleet:
            pair = twins(fleet, perceptron(), algorithm="adam", lr=0.01)
            pair.step(8)
            pair.agree()
            assert fleet.statistics["lies_caught"] == 0

    def test_a_device_that_was_cut_off_and_still_has_its_blocks(self) -> None:
        fabrics: list[FaultyFabric] = []

        def wrap(fabric: Fabric) -> Fabric:
            fabrics.append(FaultyFabric(fabric, Entropy(0)))
            return fabrics[0]

        with still_fleet(4, Policy(lease_s=300.0), wrap=wrap) as fleet:
            pair = twins(fleet, perceptron(), algorithm="adam", lr=0.01)
            pair.step(2)
            fabrics[0].cut("d2")
            pair.step(2)
            assert len(fleet.workers["d2"]._store)
            assert fleet.standing["d2"].value == "absent"
            fabrics[0].heal("d2")
            fleet.wait(5)
            pair.step(2)
            pair.agree()
            assert fleet.standing["d2"] is Standing.PRESENT
            assert fleet.statistics["lies_caught"] == 0


class TestOtherMakes:
    """Blocks that are rebuilt on a device that rounds otherwise are not, to the last bit, what was stated."""

    @pytest.mark.parametrize("at", MOMENTS)
    def test_take_over(self, at: str) -> None:
        with adam(4) as pair:
            round_otherwise(pair.fleet, "d1", "d3")
            pair.step(3)
            step_with(pair, at, lambda: pair.fleet.kill("d2"))
            step_with(pair, at, lambda: pair.fleet.kill("d1"))
            pair.step()
            pair.agree()
            all_honest(pair)

    def test_take_over_before_a_snapshot(self) -> None:
        """The last state that was stated is not what the stand-ins have: they are asked anew."""
        with adam(4) as pair:
            round_otherwise(pair.fleet, "d1", "d3")
            pair.step(3)
            pair.fleet.kill("d2")
            pair.fleet.kill("d1")
            pair.agree()
            pair.step(2)
            pair.agree()
            all_honest(pair)

    def test_take_over_before_a_checkpoint(self, tmp_path: Any) -> None:
        with adam(4) as pair:
            round_otherwise(pair.fleet, "d1", "d3")
            pair.step(3)
            pair.fleet.kill("d2")
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            pair.fleet.kill("d4")
            pair.step(2)
            pair.agree()
            all_honest(pair)

    @pytest.mark.parametrize("parts", [1, 4], ids=["statement", "snapshot"])
    def test_take_over_in_the_middle_of_a(self, parts: int) -> None:
        with adam(4) as pair:
            round_otherwise(pair.fleet, "d1", "d3")
            pair.step(3)
            leave_when_asked(pair.fleet, "d2", parts)
            pair.step()
            pair.agree()
            pair.step()
            pair.agree()
            all_honest(pair)
            assert "d2" not in pair.fleet.running

    @pytest.mark.parametrize("seed", [1])
    def test_at_random(self, seed: int) -> None:
        names = ["d1", "d2", "d3", "d4"]
        with adam(4, Policy(snapshot_after=6, request_timeout_s=100)) as pair:
            round_otherwise(pair.fleet, "d1", "d3")
            chance, start = Chance(seed), pair.fleet.start

            def started(name: str, *arguments: Any) -> Any:
                worker = start(name, *arguments)
                if name in ("d1", "d3"):
                    round_otherwise(pair.fleet, name)
                return worker

            pair.fleet.start = started
            for _ in range(10):
                name = chance.one_of(names)
                if name not in pair.fleet.running:
                    pair.fleet.start(name)
                    pair.fleet.wait(chance.below(4))
                elif len(pair.fleet.running) > 2:
                    step_with(pair, chance.one_of(MOMENTS), partial(pair.fleet.kill, name))
                pair.step()
            pair.agree()
            all_honest(pair)

    @pytest.mark.parametrize("kind", ["skipped", "scaled"])
    def test_a_stand_in_that_lies_is_found_all_the_same(self, kind: Any) -> None:
        """It may state its weights anew, once; what they became since the snapshot is looked at as ever."""
        with adam(4) as pair:
            pair.step(3)
            pair.fleet.workers["d4"].learner.tamper = Misstep(kind, 0.1)
            pair.fleet.kill("d2")
            pair.agree()
            took = {event.device for event in pair.fleet.events if event.kind == "replaced"}
            quarantined = {name for name, one in pair.fleet.standing.items() if one is Standing.QUARANTINED}
            assert quarantined == {"d4"} & took

    def test_a_stand_in_that_multiplies_falsely_is_found(self) -> None:
        with adam(2) as pair:
            pair.step(2)
            pair.fleet.kill("d1")
            pair.fleet.wait(1)
            pair.step()
            pair.fleet.start("d1")
            pair.fleet.wait(4)
            pair.fleet.workers["d1"].tamper = Liar("random", 0.1)
            pair.step(2)
            assert pair.fleet.standing["d1"] is Standing.QUARANTINED
            assert pair.fleet.standing["d2"] is Standing.PRESENT
            pair.agree()


class TestNobodyLeft:
    """A step that was taken stays taken, also where nobody is left to say what came of it."""

    @pytest.mark.parametrize("at", ["step", "statement"])
    def test_to_state_the_weights(self, at: str) -> None:
        """All leave; when they come back training goes on, and no honest device is blamed for the step between."""
        with adam(2, Policy(request_timeout_s=20)) as pair:
            pair.step(2)
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
            pair.differentiate()
            for name in ("d1", "d2"):
                if at == "step":
                    in_the_middle(pair.fleet, name, "step")
                else:
                    leave_when_asked(pair.fleet, name, 1)
            pair.theirs.step()
            with pytest.raises(UnavailableError, match="20 s"):
                pair.ours.step()
            assert pair.ours.steps == 3
            for name in ("d1", "d2"):
                pair.fleet.start(name)
            pair.fleet.wait(5)
            pair.step(2)
            pair.agree()
            assert Standing.QUARANTINED not in pair.fleet.standing.values()
            assert pair.fleet.statistics["lies_caught"] == 0

    def test_of_one_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other layers take the step whole, and nobody is held to what was stated before it."""
        with adam(2) as pair:
            pair.step(2)
            fetch, failed = auditing._fetch, list[int]()

            async def once(deployment: Any, number: int, *arguments: Any, **options: Any) -> Any:
                if number == 1 and not failed:
                    failed.append(number)
                    raise UnavailableError("nobody")
                return await fetch(deployment, number, *arguments, **options)

            monkeypatch.setattr(auditing, "_fetch", once)
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
            pair.differentiate()
            pair.theirs.step()
            with pytest.raises(UnavailableError, match="nobody"):
                pair.ours.step()
            pair.step(2)
            pair.agree()
            all_honest(pair)
