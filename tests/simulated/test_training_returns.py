"""Devices that come and go more than once, and blocks that come to devices in other sheets than before."""

from typing import Any

import pytest
import torch

from awfulowl.fabric.base import Fabric
from awfulowl.fabric.faulty import FaultyFabric
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import Load
from tests.simulated.memory_fleet import still_fleet
from tests.simulated.test_training_faults import lose
from tests.simulated.training import REPLICAS, SMALL, perceptron, training, twins

each_plan = pytest.mark.parametrize("options", [SMALL, REPLICAS], ids=["1 replica", "2 replicas"])


@pytest.mark.parametrize("devices", [2, 3])
def test_a_device_leaves_again_and_again(devices: int) -> None:
    """Its stand-in, which stepped back each time that it returned, is loaded anew each time that it leaves."""
    with training(devices, Policy(request_timeout_s=100), momentum=0.9) as pair:
        for _ in range(4):
            pair.step()
            pair.fleet.kill("d1")
            pair.step()
            pair.fleet.start("d1")
            pair.fleet.wait(5)
        pair.step()
        pair.agree()


def test_a_load_fails_once_on_the_only_candidate() -> None:
    with training(2, Policy(request_timeout_s=100)) as pair:
        pair.step()
        pair.fleet.kill("d2")
        lost = lose(pair.fleet, "d1", Load, arrives=True)
        pair.step(2)
        assert lost
        pair.agree()


@each_plan
@pytest.mark.parametrize("seed", [0, 1])
def test_any_device_leaves_any_number_of_times(seed: int, options: Options) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = [f"d{number}" for number in range(1, 6)]
    with training(5, Policy(snapshot_after=9, request_timeout_s=100), options=options, momentum=0.9) as pair:
        for _ in range(20):
            name = names[int(torch.randint(5, (), generator=generator))]
            if name not in pair.fleet.running:
                pair.fleet.start(name)
                pair.fleet.wait(3)
            elif len(pair.fleet.running) > 2:
                pair.fleet.kill(name)
            pair.step()
        pair.agree()
        assert all(standing is not Standing.QUARANTINED for standing in pair.fleet.standing.values())


@each_plan
def test_a_snapshot_while_a_device_is_loaded(options: Options) -> None:
    """What was sent is of the snapshot before: it is void, and no step is missing in it."""
    with training(4, options=options, momentum=0.9) as pair:
        pair.step(3)
        deployment: Any = pair.fleet._scattered[pair.scattered][0]
        pair.fleet.kill("d2")
        pair.step()
        pair.fleet.start("d2")
        peer = pair.fleet._engine.peers["d2"]
        ask, taken = peer.ask, list[int]()

        async def slow(body: Any, *arguments: Any, **options: Any) -> Any:
            answer = await ask(body, *arguments, **options)
            if isinstance(body, Load) and not taken:
                for number in (0, 1):
                    taken.append(number)
                    await deployment.snapshot(number)
            return answer

        peer.ask = slow  # type: ignore[method-assign]
        pair.fleet.wait(20)
        assert taken == [0, 1]
        pair.step(3)
        pair.agree()
        assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())


def test_a_device_that_was_cut_off_while_its_duties_shrank() -> None:
    """It still holds a sheet with a column more than the one that it is sent now."""
    fabrics: list[FaultyFabric] = []

    def wrap(fabric: Fabric) -> Fabric:
        fabrics.append(FaultyFabric(fabric, Entropy(0)))
        return fabrics[0]

    with still_fleet(3, Policy(lease_s=3000.0), wrap=wrap) as fleet:
        pair = twins(fleet, perceptron())
        pair.step()
        fleet.kill("d1")
        pair.step()
        fleet.kill("d2")
        fleet.start("d2")
        fleet.wait(10)
        pair.step()
        fabrics[0].cut("d2")
        fleet.wait(7)
        fleet.start("d1")
        fleet.wait(1)
        pair.step()
        fabrics[0].heal("d2")
        fleet.wait(20)
        pair.step()
        pair.agree()
        assert [event.text for event in fleet.events if "overlaps" in event.text] == []


@pytest.mark.parametrize("shape", ["rows", "rectangles", "scattered"])
def test_stand_ins_that_hold_other_rows_of_a_column(shape: Any) -> None:
    """Replaying steps to what they take over leaves alone what they had."""
    options = Options(block=(4, 2), shape=shape, replicas=1, share=1.0, domain_share=1.0)
    with training(3, Policy(request_timeout_s=100), options=options, momentum=0.9) as pair:
        pair.step(3)
        pair.fleet.kill("d1")
        pair.step(3)
        pair.agree()
        assert [event.text for event in pair.fleet.events if event.kind in ("behind", "load failed")] == []
