"""Models that come and go on one fleet: released, forgotten, started in vain, or twice at once."""

import asyncio
import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.device.worker import Worker
from awfulowl.errors import PlanError, RefusedError, ScatteredError, UnavailableError
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet
from tests.simulated.world import World, simulate

PARTIES = {f"d{number}": "abc"[number % 3] for number in range(1, 7)}
each_sharing = pytest.mark.parametrize("sharing", [None, "inputs:2", "replicated"])


def model_and_plan(sharing: str | None) -> tuple[nn.Module, Plan]:
    model = nn.Linear(20, 6).eval()
    return model, owl.plan(model, devices=PARTIES, arithmetic="int8", sharing=sharing)


@torch.no_grad()
def expect_right(scattered: nn.Module, model: nn.Module, plan: Plan) -> None:
    x = torch.randn(3, 20)
    assert torch.equal(scattered(x), plan.twin(model)(x))


def restart_all(fleet: MemoryFleet) -> None:
    """Start one device after the other anew, and wait until it has its blocks again, and a little for any others."""
    held = fleet.held_blocks
    for name in PARTIES:
        fleet.kill(name)
        fleet.wait(0.05)
        fleet.start(name)
        for _ in range(200):
            fleet.wait(0.05)
            if fleet.held_blocks >= held:
                break
        fleet.wait(0.1)


def expect_nobody_blamed(fleet: MemoryFleet) -> None:
    assert set(fleet.standing.values()) == {Standing.PRESENT}
    assert fleet.statistics["lies_caught"] == fleet.statistics["checks_failed"] == 0


class TestReleased:
    @each_sharing
    def test_it_cannot_be_called(self, sharing: str | None) -> None:
        model, plan = model_and_plan(sharing)
        with memory_fleet(PARTIES) as fleet:
            scattered = fleet.scatter(model, plan)
            expect_right(scattered, model, plan)
            fleet.release(scattered)
            with pytest.raises(ScatteredError, match="was released"):
                scattered(torch.randn(3, 20))
            assert fleet.held_blocks == 0

    def test_nothing_of_it_is_placed_later(self) -> None:
        """A device left shortly before: its cells are not given to others once nobody needs them."""

        async def main() -> None:
            async with World(4, policy=Policy(repair_after_s=10), options=Options(block=8, share=1.0)) as world:
                await world.kill("d2")
                await asyncio.sleep(world.engine.policy.silence_s + 3)
                assert not world.engine.peers["d2"].alive
                await world.deployment.stop()
                await asyncio.sleep(60)
                assert world.engine.ledger.replaced == 0
                assert sum(len(world.workers[name]._store) for name in world.running) == 0
                await world.deployment.stop()

        simulate(main())

    def test_a_device_that_does_not_answer_is_no_obstacle(self) -> None:
        model, plan = model_and_plan(None)
        with memory_fleet(PARTIES, Policy(answer_timeout_s=0.3)) as fleet:
            scattered = fleet.scatter(model, plan)
            fleet.kill("d1")
            fleet.release(scattered)
            assert sum(len(fleet.workers[name]._store) for name in fleet.running) == 0
            fleet.start("d1")
            fleet.wait(0.5)
            again = fleet.scatter(model, plan)
            expect_right(again, model, plan)


class TestForgotten:
    @each_sharing
    def test_its_plan_can_be_used_again(self, sharing: str | None) -> None:
        """Devices that came back got the blocks of both, and shares under two keys make no product."""
        model, plan = model_and_plan(sharing)
        with memory_fleet(PARTIES) as fleet:
            first = fleet.scatter(model, plan)
            held = fleet.held_blocks
            del first
            gc.collect()
            again = fleet.scatter(model, plan)
            assert fleet.held_blocks == held
            restart_all(fleet)
            expect_right(again, model, plan)
            expect_nobody_blamed(fleet)

    def test_it_takes_no_room_beside_another(self) -> None:
        with memory_fleet(PARTIES) as fleet:
            model, plan = model_and_plan(None)
            fleet.scatter(model, plan)
            gc.collect()
            other, others = model_and_plan("inputs:2")
            scattered = fleet.scatter(other, others)
            held = fleet.held_blocks
            fleet.release(scattered)
            assert held > 0
            assert fleet.held_blocks == 0

    def test_what_is_left_of_it_goes_on(self) -> None:
        whole = nn.Sequential(nn.Linear(20, 6), nn.Tanh()).eval()
        with memory_fleet(PARTIES) as fleet:
            plan = owl.plan(whole, devices=PARTIES, arithmetic="int8")
            part = fleet.scatter(whole, plan).get_submodule("0")
            gc.collect()
            with pytest.raises(PlanError, match="in use"):
                fleet.scatter(whole, plan)
            x = torch.randn(3, 20)
            with torch.no_grad():
                assert torch.equal(part(x).tanh(), plan.twin(whole)(x))


class TestStarted:
    def test_a_plan_is_started_once_at_a_time(self) -> None:
        model, plan = model_and_plan("replicated")
        found: list[nn.Module | PlanError] = []
        with memory_fleet(PARTIES) as fleet:

            def scatter() -> None:
                try:
                    found.append(fleet.scatter(model, plan))
                except PlanError as error:
                    found.append(error)

            threads = [threading.Thread(target=scatter) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (scattered,) = (one for one in found if isinstance(one, nn.Module))
            assert len(found) == 3
            restart_all(fleet)
            expect_right(scattered, model, plan)
            expect_nobody_blamed(fleet)

    @each_sharing
    def test_one_that_failed_leaves_nothing(self, sharing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever tries again with the same plan has no other beside it that loads its blocks, too."""
        model, plan = model_and_plan(sharing)
        with memory_fleet(PARTIES) as fleet:
            with monkeypatch.context() as patch:
                patch.setattr(Worker, "_do", _only_one_loads(Worker._do))
                with pytest.raises(UnavailableError, match="were not loaded"):
                    fleet.scatter(model, plan, timeout_s=0.5)
            assert fleet.held_blocks == 0
            again = fleet.scatter(model, plan)
            restart_all(fleet)
            expect_right(again, model, plan)
            expect_nobody_blamed(fleet)


def _only_one_loads(do: Callable[..., object]) -> Callable[..., object]:
    def refuse(worker: Worker, request: object) -> object:
        if worker.name != "d1" and type(getattr(request, "body", None)).__name__ == "Load":
            raise RefusedError("not now")
        return do(worker, request)

    return refuse


def _refuse(_: int, __: list[Tensor]) -> list[Tensor]:
    raise RefusedError("no")


class TestRefusals:
    @pytest.mark.parametrize("count", [1, 3])
    def test_devices_that_refuse_everything_cost_a_request_its_time_and_no_more(self, count: int) -> None:
        """Asked again at once they made a chain of tries which was too long to be cancelled: it never ended."""
        policy = Policy(request_timeout_s=600)

        async def main() -> None:
            async with World(count, policy=policy, options=Options(block=8, share=1.0)) as world:
                for worker in world.workers.values():
                    worker.tamper = _refuse
                with pytest.raises(UnavailableError, match="no answer within 600 s"):
                    await world.multiply(world.inputs(3))
                assert world.engine.ledger.failovers < 100 * count
                for worker in world.workers.values():
                    worker.tamper = None
                x = world.inputs(3)
                world.expect(await world.multiply(x), x)

        simulate(main())

    def test_who_refuses_for_a_while_is_asked_again(self) -> None:
        left = 5

        def for_a_while(_: int, answers: list[Tensor]) -> list[Tensor]:
            nonlocal left
            left -= 1
            if left >= 0:
                raise RefusedError("no")
            return answers

        async def main() -> None:
            async with World(1, options=Options(block=8, share=1.0)) as world:
                world.workers["d1"].tamper = for_a_while
                x = world.inputs(3)
                world.expect(await world.multiply(x), x)
                assert world.engine.ledger.requests_lost == 0

        simulate(main())

    def test_a_fleet_says_so_in_time(self) -> None:
        with memory_fleet(2, Policy(request_timeout_s=1.0)) as fleet:
            model = nn.Linear(20, 6).eval()
            scattered = fleet.scatter(model, owl.plan(model, devices=fleet))
            for worker in fleet.workers.values():
                worker.tamper = _refuse
            with pytest.raises(UnavailableError, match="no answer within 1 s"):
                scattered(torch.randn(3, 20))
            assert fleet.statistics["failovers"] < 100
