"""What the owner does beside answering: it saves plans, draws secrets anew, keeps to its credit, and stays small."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.limits import Limits
from awfulowl.models.mlp import Mlp
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.placement.summary import summarise
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet, still_fleet
from tests.simulated.world import World, simulate


def note_loads(fleet: MemoryFleet, name: str, happened: list[Any]) -> None:
    """Write down (device, handles of slices) whenever a device is loaded."""
    store = fleet.workers[name]._store
    load = store.load

    def noting(request: Any, tensors: Any) -> None:
        happened.append((name, {handle for sheet in request.sheets for handle in sheet.slices}))
        load(request, tensors)

    store.load = noting  # type: ignore[method-assign]


def holders_of(plan: Plan, handle: bytes) -> set[str]:
    """Who was ever given a slice, as a plan says."""
    (panel,) = plan.panels
    column = panel.slice_handles.index(handle)
    return {name for cell in panel.cells if cell.column == column for name in cell.holders}


def test_a_plan_is_saved_before_a_block_is_sent_to_a_device_that_the_plan_did_not_name() -> None:
    """A restarted owner knows from the saved plan alone who saw what, however soon it was killed."""
    model, x = nn.Linear(64, 24).eval(), torch.randn(3, 64)
    with still_fleet(4) as fleet:
        plan = plan_model(model, x, fleet.devices, Options(block=8, replicas=1, share=1.0))
        happened: list[Any] = []
        scattered = fleet.scatter(model, plan, on_change=happened.append)
        assert not happened, "nothing is new in a plan that is carried out"
        for name in fleet.workers:
            note_loads(fleet, name, happened)
        for victim in ("d2", "d3"):
            fleet.kill(victim)
            with torch.no_grad():
                torch.testing.assert_close(scattered(x), model(x), rtol=1e-4, atol=1e-4)
        saved = [at for at, what in enumerate(happened) if isinstance(what, Plan)]
        loads = [at for at, what in enumerate(happened) if not isinstance(what, Plan)]
        assert len(saved) == fleet.statistics["replaced"] > 0
        assert len(loads) > 1
        for at in loads:
            name, handles = happened[at]
            known = [happened[before] for before in saved if before < at]
            assert known, "a block was sent before the plan was saved"
            for handle in handles:
                assert name in holders_of(known[-1], handle)
                assert name not in holders_of(plan, handle)
        for earlier, later in pairwise([plan, *(happened[at] for at in saved)]):
            assert earlier != later
        assert happened[saved[-1]] == fleet.plan_of(scattered)
        fleet.release(scattered)


@pytest.mark.parametrize("arithmetic", ["float32", "int8"])
def test_check_vectors_are_renewed_after_as_many_products_as_the_policy_says(arithmetic: str) -> None:
    async def main() -> None:
        options = Options(block=8, replicas=1, share=1.0, arithmetic=arithmetic)
        async with World(2, options=options, policy=Policy(renew_after=4)) as world:
            used = []
            for _ in range(13):
                used.append(world.deployment.checks[0])
                x = world.inputs(2)
                world.expect(await world.multiply(x), x)
                await asyncio.sleep(1)
            runs = [len([one for one in used if one is check]) for check in dict.fromkeys(used)]
            assert runs == [4, 4, 4, 1]
            assert world.engine.ledger.checks_failed == 0
            assert world.engine.ledger.checks == 2 * len(used)

    simulate(main())


def test_requests_wait_until_they_fit_the_credit_and_one_larger_than_all_of_it_goes_alone() -> None:
    """32 samples of 64 inputs and 24 outputs take 11 KiB on their way there and back, so three fit 40 KiB."""
    header_bytes = 1500

    async def main() -> None:
        limits = Limits(credit_bytes=40 << 10)
        async with World(1, options=Options(block=8, replicas=1, share=1.0), limits=limits) as world:
            world.workers["d1"].delay_s = 0.1
            session = world.engine.peers["d1"].session
            send, under_way = session.request, []

            def noting(*request: Any, **options: Any) -> Any:
                sent = send(*request, **options)
                under_way.append((len(session._open), session.free_credit_bytes))
                return sent

            session.request = noting  # type: ignore[method-assign]
            inputs = [world.inputs(32) for _ in range(10)]
            inputs.insert(5, world.inputs(300))
            outputs: list[Tensor] = await asyncio.gather(*(world.multiply(x) for x in inputs))
            for x, y in zip(inputs, outputs, strict=True):
                world.expect(y, x)
            assert len(under_way) == len(inputs)
            assert max(count for count, _ in under_way) == 3, "credit that is there is used"
            assert [count for count, free in under_way if free < -3 * header_bytes] == [1]
            assert world.engine.ledger.failovers == world.engine.ledger.requests_lost == 0

    simulate(main())


def perceptron() -> tuple[nn.Module, Tensor]:
    """A quarter of the width of the benchmark's."""
    return Mlp([1024, 1024, 1024, 10]), torch.randn(8, 1024)


def convolutions() -> tuple[nn.Module, Tensor]:
    """The end of a VGG at 32x32."""
    layers = [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 512, 3, padding=1), nn.ReLU()]
    classifier = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    return nn.Sequential(*layers, *classifier), torch.randn(4, 256, 4, 4)


@pytest.mark.parametrize("made", [perceptron, convolutions])
def test_the_secrets_of_checks_take_little_beside_the_weights(made: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    """Under a tenth at block 256; the share falls with the width, so the networks of the benchmark take less."""
    model, x = made()
    model.eval()
    with memory_fleet(4) as fleet, torch.no_grad():
        plan = owl.plan(model, x, devices=fleet, block=256)
        scattered = fleet.scatter(model, plan)
        for _ in range(2):  # convolutions unroll secrets for the inputs that come
            scattered(x)
        deployment, _ = fleet._scattering(scattered)
        secrets = sum(check.memory_bytes for check in deployment.checks)
        assert len(deployment.checks) == len(plan.panels) > 1
        assert all(check.memory_bytes > 0 for check in deployment.checks)
        assert secrets < 0.1 * 4 * summarise(plan).parameters
        fleet.release(scattered)
