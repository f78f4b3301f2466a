"""Devices that leave while they train, come back, or miss something: the weights are as if nothing had happened."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from awfulowl.errors import GoneError, UnavailableError
from awfulowl.fabric.base import Fabric
from awfulowl.fabric.faulty import Faults, FaultyFabric
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import ApplyTransposed, Freeze, Load, Step
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.training import REPLICAS, SMALL, Twins, image_model, perceptron, training, twins

each_plan = pytest.mark.parametrize("options", [SMALL, REPLICAS], ids=["1 replica", "2 replicas"])


def in_the_middle(fleet: MemoryFleet, name: str, kind: str) -> None:
    """Let a device leave while it does what it is asked next: it never answers."""
    worker = fleet.workers[name]

    def leave(*request: Any) -> Any:
        fleet.stop_in_the_middle(name)
        return honest(*request)

    if kind == "step":
        worker.learner.tamper = lambda block, gradient: fleet.stop_in_the_middle(name)
    elif kind == "forward":
        honest: Any = worker._store.apply
        worker._store.apply = leave  # type: ignore[method-assign,assignment]
    else:
        honest = worker.learner.apply_transposed
        worker.learner.apply_transposed = leave  # type: ignore[method-assign,assignment]


def quarantine(fleet: MemoryFleet, name: str) -> None:
    """Let the owner find a device out."""
    engine = fleet._engine

    async def find_out() -> None:
        engine.quarantine(engine.peers[name], "an answer failed the check")

    fleet._loop.run(find_out())


def step_with(pair: Twins, at: str, happen: Callable[[], None]) -> None:
    """Take a step with both; `happen` is called at a point of the fleet's."""
    x, wanted = pair.batch()
    for model, optimizer, cast in pair.each:
        fleet = model is pair.scattered
        optimizer.zero_grad()
        if fleet and at == "forward":
            happen()
        loss = pair.loss(model, cast(x), cast(wanted))
        if fleet and at == "backward":
            happen()
        loss.backward()  # type: ignore[no-untyped-call]
        if fleet and at == "step":
            happen()
        optimizer.step()


@each_plan
@pytest.mark.parametrize("back", ["stays away", "comes back at once", "comes back later"])
@pytest.mark.parametrize("at", ["forward", "backward", "step"])
def test_a_device_leaves_before(at: str, back: str, options: Options) -> None:
    with training(4, options=options, momentum=0.9) as pair:
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
        assert pair.fleet.statistics["requests_lost"] == pair.fleet.statistics["lies_caught"] == 0
        if back != "stays away":
            assert pair.fleet.standing["d2"] is Standing.PRESENT
            assert pair.fleet.statistics["restored"] > 0


@each_plan
@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.parametrize("at", ["forward", "backward", "step"])
def test_a_device_leaves_in_the_middle_of(at: str, comes_back: bool, options: Options) -> None:
    with training(4, options=options, momentum=0.9) as pair:
        pair.step(2)
        for name in ("d3", "d1"):
            step_with(pair, at, lambda name=name: in_the_middle(pair.fleet, name, at))  # type: ignore[misc]
            assert name not in pair.fleet.running
            if comes_back:
                pair.fleet.start(name)
            pair.step()
        pair.agree()
        assert pair.fleet.statistics["requests_lost"] == pair.fleet.statistics["lies_caught"] == 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_all_devices_leave_one_after_the_other_and_come_back(momentum: float) -> None:
    with training(4, options=SMALL, momentum=momentum) as pair:
        for name in ("d1", "d2", "d3", "d4"):
            pair.fleet.kill(name)
            pair.step(2)
            pair.fleet.start(name)
            pair.fleet.wait(5)
            pair.step()
        pair.agree()


def test_one_device_is_left_and_takes_everything() -> None:
    with training(4, options=REPLICAS, momentum=0.9) as pair:
        for name in ("d1", "d3", "d4"):
            pair.step(2)
            pair.fleet.kill(name)
        pair.step(2)
        pair.agree()
        held = [name for name, worker in pair.fleet.workers.items() if len(worker._store)]
        assert held == ["d2"]


def test_all_leave_at_once_and_come_back() -> None:
    """Weights live on nobody then: they are rebuilt from what the owner keeps."""
    with training(3, momentum=0.9) as pair:
        pair.step(3)
        for name in list(pair.fleet.running):
            pair.fleet.kill(name)
        for name in pair.fleet.workers:
            pair.fleet.start(name)
        pair.step(2)
        pair.agree()
        assert pair.fleet.statistics["replayed"] > 0


class TestNobodyLeft:
    """Training ends with an error that says why, and goes on when somebody comes."""

    def test_when_the_rules_allow_nobody(self) -> None:
        options = Options(block=(4, 2), replicas=1, share=0.5, domain_share=1.0)
        with training(3, Policy(repair_after_s=1, return_s=20, request_timeout_s=60), options=options) as pair:
            pair.step(2)
            before = pair.scattered.state_dict()["0.bias"].clone()
            pair.fleet.kill("d1")
            pair.fleet.kill("d2")
            pair.fleet.wait(10)
            pair.ours.zero_grad()
            with pytest.raises(UnavailableError, match="the rules allow none of them"):
                pair.scattered(torch.zeros(1, 12))
            assert torch.equal(pair.scattered.state_dict()["0.bias"], before)
            assert pair.fleet.statistics["kept"] == 0

    def test_a_device_that_is_back_in_time_is_waited_for(self) -> None:
        """Longer than a replica is missed: a busy machine is silent for some seconds, and a training is dear."""
        options = Options(block=(4, 2), replicas=1, share=0.5, domain_share=1.0)
        with training(3, Policy(repair_after_s=1, return_s=20, request_timeout_s=60), options=options) as pair:
            pair.step(2)
            for name in ("d1", "d2"):
                pair.fleet.kill(name)
            pair.fleet.wait(5)
            for name in ("d1", "d2"):
                pair.fleet.start_later(name, 10)
            pair.step(2)
            pair.agree()
            assert pair.fleet.statistics["replayed"] > 0

    @pytest.mark.parametrize("comes", [True, False])
    def test_a_device_that_may_stand_in_is_waited_for(self, comes: bool) -> None:
        """All who held a block were caught lying, and who may take it is away for a moment."""
        options = Options(block=(4, 2), replicas=1, share=0.5, domain_share=1.0)
        policy = Policy(repair_after_s=1, return_s=20, request_timeout_s=60)
        with training(2, policy, options=options, momentum=0.9) as pair:
            pair.fleet.admit(Device("d3"))
            pair.fleet.start("d3")
            pair.step(2)
            pair.fleet.kill("d3")
            pair.fleet.wait(6)
            quarantine(pair.fleet, "d1")  # each has seen half: d2 must not see the rest
            if comes:
                pair.fleet.start_later("d3", 10)
                pair.step(2)
                pair.agree()
                assert pair.fleet.statistics["replaced"] > 0
            else:
                with pytest.raises(UnavailableError, match="the rules allow none of them"):
                    pair.scattered(torch.zeros(1, 12))

    @pytest.mark.parametrize("at", ["forward", "backward"])
    def test_when_all_are_gone(self, at: str) -> None:
        with training(2, Policy(request_timeout_s=20), momentum=0.9) as pair:
            pair.step(2)
            x, wanted = pair.batch()
            pair.ours.zero_grad()
            if at == "backward":
                loss = pair.loss(pair.scattered, x, wanted)
            for name in list(pair.fleet.running):
                pair.fleet.kill(name)
            with pytest.raises(UnavailableError, match="within 20 s"):
                pair.scattered(x) if at == "forward" else loss.backward()  # type: ignore[no-untyped-call]
            for name in pair.fleet.workers:
                pair.fleet.start(name)
            pair.step(2)
            pair.agree()
            assert pair.fleet.statistics["requests_lost"] == 1


def lose(fleet: MemoryFleet, name: str, kind: type[Any], *, arrives: bool) -> list[Any]:
    """Lose the next request of a kind to a device, or its answer where it `arrives`; returns what was lost."""
    peer = fleet._engine.peers[name]
    ask, lost = peer.ask, list[Any]()

    async def losing(body: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(body, kind) and not lost:
            lost.append(body)
            if arrives:
                await ask(body, *arguments, **options)
            raise GoneError(f"{name}: no answer in time")
        return await ask(body, *arguments, **options)

    peer.ask = losing  # type: ignore[method-assign]
    return lost


class TestMissed:
    """What a device missed without leaving makes it behind, and it is brought back; nobody is called a liar."""

    @each_plan
    @pytest.mark.parametrize("arrives", [False, True])
    @pytest.mark.parametrize("kind", [Step, ApplyTransposed])
    def test_a_lost_request(self, kind: type[Any], arrives: bool, options: Options) -> None:
        with training(4, options=options, momentum=0.9) as pair:
            pair.step(2)
            lost = lose(pair.fleet, "d2", kind, arrives=arrives)
            pair.step(3)
            assert len(lost) == 1
            assert pair.fleet.statistics["behind"] <= 1
            assert kind is ApplyTransposed or pair.fleet.statistics["behind"] == 1
            assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())
            pair.agree()

    def test_a_lost_load(self) -> None:
        with training(4, Policy(repair_after_s=1), momentum=0.9) as pair:
            pair.step()
            pair.fleet.kill("d2")
            lost = [lose(pair.fleet, name, Load, arrives=True) for name in ("d1", "d3")]
            pair.step(3)
            assert any(lost)
            pair.agree()

    def test_a_lost_copy(self, tmp_path: Any) -> None:
        with training(4, options=REPLICAS, momentum=0.9) as pair:
            pair.step()
            lost = lose(pair.fleet, "d1", Freeze, arrives=False)
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            assert lost
            pair.step()
            pair.agree()


def shaken(losses: float) -> Callable[[Fabric], Fabric]:
    """A fabric that loses, doubles, alters and delays some frames."""
    faults = Faults(lose=losses, duplicate=0.05, reorder=0.05, corrupt=losses, delay=0.05)
    return lambda fabric: FaultyFabric(fabric, Entropy(4), to_devices=faults, to_owner=faults)


@pytest.mark.parametrize("losses", [0.0, 0.01])
def test_a_bad_network(losses: float) -> None:
    with still_fleet(3, Policy(answer_timeout_s=1.0), wrap=shaken(losses)) as fleet:
        pair = twins(fleet, perceptron(), momentum=0.9)
        pair.step(12)
        pair.agree()
        assert fleet.statistics["damaged"] > 0 or losses == 0.0
        assert fleet.statistics["lies_caught"] == 0


@each_plan
def test_a_device_that_was_cut_off_missed_steps_and_still_has_its_blocks(options: Options) -> None:
    fabrics: list[FaultyFabric] = []

    def wrap(fabric: Fabric) -> Fabric:
        fabrics.append(FaultyFabric(fabric, Entropy(0)))
        return fabrics[0]

    with still_fleet(4, Policy(lease_s=300.0), wrap=wrap) as fleet:
        pair = twins(fleet, perceptron(), options=options, momentum=0.9)
        pair.step(2)
        fabrics[0].cut("d2")
        pair.step(2)
        held = len(fleet.workers["d2"]._store)
        assert held
        assert fleet.standing["d2"].value == "absent"
        fabrics[0].heal("d2")
        fleet.wait(5)
        assert fleet.standing["d2"] is Standing.PRESENT
        pair.step(2)
        pair.agree()
        assert fleet.statistics["lies_caught"] == 0


def random_faults(pair: Twins, names: Sequence[str], steps: int, seed: int) -> None:
    """Kill each of some devices once at random points, and start it again after some steps."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randperm(steps - 4, generator=generator).tolist()
    leaves = dict(zip(draw, names, strict=False))
    back: dict[int, str] = {}
    for turn in range(steps):
        name = leaves.get(turn)
        if name is None:
            pair.step()
        else:
            at = ("forward", "backward", "step")[int(torch.randint(3, (), generator=generator))]
            step_with(pair, at, lambda name=name: pair.fleet.kill(name))  # type: ignore[misc]
            back[turn + int(torch.randint(1, 4, (), generator=generator))] = name
        if turn in back:
            pair.fleet.start(back.pop(turn))
            pair.fleet.wait(3)


@each_plan
@pytest.mark.parametrize("seed", [0, 1])
def test_many_leave_and_come_back(seed: int, options: Options) -> None:
    with training(5, Policy(snapshot_after=7), options=options, momentum=0.9, weight_decay=0.01) as pair:
        random_faults(pair, ["d1", "d2", "d3", "d4", "d5"], 20, seed)
        pair.agree()
        assert pair.fleet.statistics["requests_lost"] == pair.fleet.statistics["lies_caught"] == 0


def test_convolutions_are_rebuilt_too() -> None:
    with training(3, model=image_model(), example=torch.zeros(1, 4, 5, 5), momentum=0.9) as pair:
        for name in ("d1", "d2"):
            step_with(pair, "step", lambda name=name: pair.fleet.kill(name))  # type: ignore[misc]
            pair.step()
        pair.agree()
        assert pair.fleet.statistics["replayed"] > 0
