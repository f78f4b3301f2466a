"""Whoever changes weights in place after they were scattered gets no honest device accused, and none of them sent."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.device.lies import Liar
from awfulowl.errors import InputError, ModelError
from awfulowl.owner.peer import Standing
from awfulowl.placement.options import Options
from tests.simulated.world import World, simulate

PARTIES = {f"d{number}": f"party{number}" for number in range(1, 8)}
MODES = [("float32", None), ("int8", None), ("int8", "inputs:2"), ("int8", "replicated"), ("int16", "replicated")]
each_mode = pytest.mark.parametrize(("arithmetic", "sharing"), MODES)
CHANGED = "layer: the weights changed since they were scattered; scatter the model again"


def everything(weight: Tensor) -> None:
    weight.mul_(3.0)


def one_column(weight: Tensor) -> None:
    weight[:, :8] *= 0.5


def one_row(weight: Tensor) -> None:
    weight[2] *= 0.5


def one_element(weight: Tensor) -> None:
    weight[5, 13] *= -1


each_change = pytest.mark.parametrize("change", [everything, one_column, one_row, one_element])


def world_of(arithmetic: str, sharing: str | None, **options: Any) -> World:
    rules = Options(block=8, arithmetic=arithmetic, sharing=sharing, replicas=1, share=1.0, domain_share=1.0)
    return World(PARTIES, options=rules, **options)


def events(world: World, kind: str) -> list[str]:
    return [event.text for event in world.engine.ledger.events if event.kind == kind]


def quarantined(world: World) -> set[str]:
    return {name for name, peer in world.engine.peers.items() if peer.standing is Standing.QUARANTINED}


async def renewed(world: World) -> bool:
    old = world.deployment.checks[0]
    world.deployment.renew(0)
    await asyncio.sleep(1)
    return world.deployment.checks[0] is not old


async def serves(world: World, weight: Tensor) -> None:
    """Require products of these weights, and that nobody is accused."""
    x = world.inputs(5)
    y = await world.multiply(x)
    if world.twins:  # made before the change
        assert torch.equal(y, world.twins["layer"](x))
    else:
        torch.testing.assert_close(y, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert world.engine.ledger.checks_failed == 0
    assert not quarantined(world)


@each_mode
@each_change
def test_weights_that_changed_are_not_checked_against(
    arithmetic: str, sharing: str | None, change: Callable[[Tensor], None]
) -> None:
    """However little of them it was: devices go on being held to what they were given."""

    async def main() -> None:
        async with world_of(arithmetic, sharing) as world:
            weight = world.weights["layer"]
            before = weight.clone()
            change(weight)
            for _ in range(3):
                assert not await renewed(world)
            assert events(world, "not renewed") == [CHANGED] * 3
            await serves(world, before)

    simulate(main())


@each_mode
def test_secrets_of_weights_that_stayed_are_renewed(arithmetic: str, sharing: str | None) -> None:
    """And what changes afterwards is in neither: those before it were the last."""

    async def main() -> None:
        async with world_of(arithmetic, sharing) as world:
            weight = world.weights["layer"]
            before = weight.clone()
            for _ in range(3):
                assert await renewed(world)
            await serves(world, before)
            one_element(weight)
            assert not await renewed(world)
            await serves(world, before)
            one_element(weight)
            assert await renewed(world)
            await serves(world, before)

    simulate(main())


@each_mode
@pytest.mark.parametrize("late", [False, True])
def test_weights_that_change_while_secrets_are_drawn(arithmetic: str, sharing: str | None, late: bool) -> None:
    async def main() -> None:
        async with world_of(arithmetic, sharing) as world:
            weight, draw = world.weights["layer"], world.deployment.new_check
            before = weight.clone()

            def changing(number: int) -> Any:
                drawn = draw(number) if late else None
                one_element(weight)
                return drawn or draw(number)

            world.deployment.new_check = changing  # type: ignore[method-assign]
            assert not await renewed(world)
            await serves(world, before)

    simulate(main())


def test_integers_count_and_not_what_was_rounded_to_them() -> None:
    """Also where the owner multiplies itself: by the steps of then."""

    async def main() -> None:
        generator = torch.Generator().manual_seed(3)
        integers = torch.randint(-126, 127, (24, 64), generator=generator).float()
        integers[:, 7] = 127.0
        weight = integers / 127.0
        async with world_of("int8", None, weights={"layer": weight}) as world:
            weight.sub_(0.4 / 127.0)
            assert await renewed(world)
            await serves(world, weight)
            world.deployment.keep(0)
            await serves(world, weight)
            assert world.engine.ledger.kept == 1

    simulate(main())


@each_mode
@each_change
def test_nobody_but_a_liar_is_accused(arithmetic: str, sharing: str | None, change: Callable[[Tensor], None]) -> None:
    """What is found out about shares is computed from the weights: where they are gone, the request says so."""

    async def main() -> None:
        async with world_of(arithmetic, sharing) as world:
            liar = world.workers["d3"].tamper = Liar("random", 0.1)
            refused = set[str]()
            change(world.weights["layer"])
            for _ in range(4):
                try:
                    await world.multiply(world.inputs(4))
                except ModelError as error:
                    refused.add(str(error))
                await asyncio.sleep(1)
            assert liar.told > 0
            assert refused <= {CHANGED}
            assert quarantined(world) <= {"d3"}
            if sharing is None:
                assert quarantined(world) == {"d3"}
                assert events(world, "not renewed")

    simulate(main())


@each_mode
def test_under_one_key_one_weight_is_sent(arithmetic: str, sharing: str | None) -> None:
    """Nobody takes a cell over whose weights changed: with a lane of `replicated` it would get W' - u beside W - u."""

    async def main() -> None:
        async with world_of(arithmetic, sharing) as world:
            (panel,) = world.plan.panels
            weight, cell, loaded = world.weights["layer"], panel.cells[0], list[str]()
            before, span = weight.clone(), panel.grid.columns[cell.column].span
            handles = set(world.deployment.slices(0, 0))

            def noting(name: str) -> None:
                load = world.workers[name]._store.load

                def note(request: Any, tensors: Any) -> Any:
                    if any(not handles.isdisjoint(sheet.slices) for sheet in request.sheets):
                        loaded.append(name)
                    return load(request, tensors)

                world.workers[name]._store.load = note  # type: ignore[method-assign]

            for name in world.workers:
                noting(name)
            weight[:, span.start : span.stop] *= 0.5
            for _ in range(3):
                await renewed(world)
            await world.kill(cell.holders[0])
            await asyncio.sleep(10)
            for _ in range(3):
                with pytest.raises(ModelError, match=CHANGED):
                    await world.multiply(world.inputs(3))
            assert loaded == []
            weight.copy_(before)
            await serves(world, before)
            assert len(loaded) == 1

    simulate(main())


@each_mode
@each_change
def test_the_owner_does_not_multiply_by_others_itself(
    arithmetic: str, sharing: str | None, change: Callable[[Tensor], None]
) -> None:
    async def main() -> None:
        async with world_of(arithmetic, sharing) as world:
            weight = world.weights["layer"]
            before = weight.clone()
            change(weight)
            world.deployment.keep(0)
            for _ in range(2):
                with pytest.raises(ModelError, match=CHANGED):
                    await world.multiply(world.inputs(3))
            weight.copy_(before)
            await serves(world, before)

    simulate(main())


@pytest.mark.parametrize("restarted", [False, True])
def test_other_layers_are_loaded_and_repaired_all_the_same(restarted: bool) -> None:
    """A device that is gone, or comes back empty, served two layers: one of them changed."""
    unheard: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        weights = {name: torch.randn(24, 64) for name in ("layer", "other")}
        async with world_of("int8", None, weights=weights) as world:
            everything(weights["layer"])
            await world.kill("d3")
            if restarted:
                world.start("d3")
            await asyncio.sleep(30)
            assert CHANGED in events(world, "load failed")
            ready = {key: holders & world.deployment._alive() for key, holders in world.deployment.ready_on.items()}
            assert all(holders for (number, _), holders in ready.items() if number == 1)
            assert not all(holders for (number, _), holders in ready.items() if number == 0)
            x = world.inputs(3, "other")
            world.twins = {name: twin for name, twin in world.twins.items() if name == "other"}
            world.expect(await world.multiply(x, "other"), x, "other")
            with pytest.raises(ModelError, match=CHANGED):
                await world.multiply(x)

    simulate(main())
    gc.collect()
    assert unheard == []


def test_inputs_beyond_the_range_of_the_weights_of_then_are_nobodys_fault() -> None:
    async def main() -> None:
        async with world_of("float32", None) as world:
            world.weights["layer"].zero_()
            with pytest.raises(InputError, match=r"inputs of .* may lead out of the range of float32"):
                await world.multiply(world.inputs(3) * 1e38)
            assert not quarantined(world)

    simulate(main())
