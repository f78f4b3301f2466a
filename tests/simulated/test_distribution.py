"""How weights get to devices under a sharing: in how few bytes, to whom, and the same again after every failure."""

import asyncio
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS
from awfulowl.arithmetic.quantise import quantise, steps
from awfulowl.device.lies import Liar
from awfulowl.owner.gather import fetch_panel
from awfulowl.owner.peer import Standing
from awfulowl.placement.options import Options
from awfulowl.randomness import Seeded
from awfulowl.wire.messages import Load
from tests.simulated.world import World, simulate

LARGE = {f"d{number}": f"party{number}" for number in range(1, 8)}


def options_of(arithmetic: str, sharing: str | None, block: int) -> Options:
    return Options(block=block, arithmetic=arithmetic, sharing=sharing, replicas=1, share=1.0, domain_share=1.0)


def bytes_a_weight(arithmetic: str, sharing: str | None) -> float:
    """Bytes that leave the owner until every device holds what it should, headers and frames included."""
    weights = {"layer": torch.randn(256, 256, generator=torch.Generator().manual_seed(1))}

    async def main() -> float:
        parties = {"d1": "a", "d2": "b", "d3": "c"}
        async with World(parties, options=options_of(arithmetic, sharing, 32), weights=weights) as world:
            sent = world.engine.ledger.bytes_sent
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
            return sent / 256**2

    return simulate(main())


@pytest.mark.parametrize(
    ("arithmetic", "sharing", "copies"),
    [
        ("int8", None, 1),
        ("int8", "inputs:2", 2),
        ("int8", "replicated", 2 * 4),
        ("int16", "replicated", 2 * 8),
    ],
)
def test_two_whole_copies_are_sent_of_replicated_weights(arithmetic: str, sharing: str | None, copies: int) -> None:
    found = bytes_a_weight(arithmetic, sharing)
    assert copies < found < copies + 0.25


@pytest.mark.parametrize(("arithmetic", "width"), [("int8", 3), ("int16", 5)])
@pytest.mark.parametrize(("sharing", "lanes"), [(None, 1), ("inputs:2", 2), ("replicated", 3)])
def test_answers_to_shares_have_no_more_bytes_than_their_sum_needs(
    arithmetic: str, width: int, sharing: str | None, lanes: int
) -> None:
    weights = {"layer": torch.randn(256, 256, generator=torch.Generator().manual_seed(1))}
    parties = {f"d{lane}": f"party{lane}" for lane in range(lanes)}

    async def main() -> None:
        async with World(parties, options=options_of(arithmetic, sharing, 256), weights=weights) as world:
            before, x = world.engine.ledger.bytes_received, world.inputs(200)
            world.expect(await world.multiply(x), x)
            received = (world.engine.ledger.bytes_received - before) / (200 * 256)
            assert lanes * width < received < lanes * width + 0.1

    simulate(main())


class Watched(World):
    """Notes every load that a device gets: by domain and handles the seeds, and the numbers that came whole."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loaded: list[tuple[str, tuple[bytes, bytes], bytes | Tensor]] = []

    def start(self, name: str) -> Any:
        worker = super().start(name)
        load = worker._store.load

        def noting(request: Load, tensors: Any) -> None:
            for sheet, own in request.dealt(tensors):
                places = itertools.product(sheet.rows, sheet.slices)
                if isinstance(own[0], Seeded):
                    self.loaded += ((name, place, one.seed) for place, one in zip(places, own, strict=True))
                else:
                    rows = torch.split(own[0], list(sheet.row_sizes))
                    blocks = [block for row in rows for block in torch.split(row, list(sheet.slice_sizes), dim=1)]
                    self.loaded += ((name, place, one.clone()) for place, one in zip(places, blocks, strict=True))
            load(request, tensors)

        worker._store.load = noting  # type: ignore[method-assign]
        return worker

    def expect_one_share_for_each_place(self) -> int:
        """Whoever was loaded with a block of a matrix, whenever, got the same; return how many got it later."""
        first: dict[tuple[bytes, bytes], bytes | Tensor] = {}
        for _, place, what in self.loaded:
            known = first.setdefault(place, what)
            assert type(known) is type(what)
            assert torch.equal(known, what) if isinstance(what, Tensor) and isinstance(known, Tensor) else known == what
        return len(self.loaded) - len(first)

    def expect_seeds_in_their_lanes(self) -> None:
        """Seeds count as shares: no domain ever has one of a lane beside anything of another, of one column."""
        (panel,) = self.plan.panels
        sharing = self.deployment.sharing
        lane_of = {number: lane for lane in range(sharing.lanes) for number in sharing.matrices(lane)}
        where = {
            panel.slice_handle(column, number): (column, lane)
            for number, lane in lane_of.items()
            for column in range(len(panel.grid.columns))
        }
        lanes: dict[tuple[str, int], set[int]] = {}
        for name, (_, handle), _ in self.loaded:
            column, lane = where[handle]
            lanes.setdefault((self.deployment.domain(name), column), set()).add(lane)
        assert all(len(own) == 1 for own in lanes.values())

    async def expect_right(self) -> None:
        x = self.inputs(5)
        self.expect(await self.multiply(x), x)


@pytest.mark.parametrize("arithmetic", ["int8", "int16"])
def test_who_takes_over_or_comes_back_gets_the_shares_of_before(arithmetic: str) -> None:
    async def main() -> None:
        async with Watched(LARGE, options=options_of(arithmetic, "replicated", 8)) as world:
            before = len(world.loaded)
            for name in ("d2", "d5", "d2", "d7", "d5"):
                if name in world.running:
                    await world.kill(name)
                else:
                    world.start(name)
                for _ in range(3):
                    await world.expect_right()
                    await asyncio.sleep(2)
            assert len(world.loaded) > before
            assert world.expect_one_share_for_each_place() == len(world.loaded) - before > 0
            assert any(isinstance(what, bytes) for _, _, what in world.loaded[before:])
            assert any(isinstance(what, Tensor) for _, _, what in world.loaded[before:])
            world.expect_seeds_in_their_lanes()
            assert world.engine.ledger.requests_lost == 0

    simulate(main())


def test_who_takes_over_from_a_liar_gets_its_shares_and_weights_come_home() -> None:
    async def main() -> None:
        async with Watched(LARGE, options=options_of("int8", "replicated", 8)) as world:
            world.workers["d3"].tamper = Liar("random", 1e-6)
            for _ in range(4):
                await world.expect_right()
            assert world.engine.peers["d3"].standing is Standing.QUARANTINED
            world.expect_one_share_for_each_place()
            world.expect_seeds_in_their_lanes()
            weight, numbers = world.weights["layer"], INTEGERS["int8"]
            own = steps(weight, numbers)
            (home,) = await fetch_panel(world.deployment, 0, 10)
            assert torch.equal(home, quantise(weight, own, numbers).float() * own[:, None])

    simulate(main())


def test_a_device_that_expands_other_numbers_is_found_when_weights_come_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """What devices hold of seeds is verified like what was sent to them whole."""

    async def main() -> None:
        parties = {f"d{number}": "abc"[number % 3] for number in range(6)}
        options = Options(block=8, arithmetic="int8", sharing="replicated", replicas=2, share=1.0, domain_share=1.0)
        async with World(parties, options=options) as world:
            (panel,) = world.plan.panels
            liar = next(cell.holders[0] for cell in panel.cells if cell.lane == 0)
            store = world.workers[liar]._store
            fetch = store.fetch
            monkeypatch.setattr(store, "fetch", lambda *args: [one ^ 1 for one in fetch(*args)])
            weight, numbers = world.weights["layer"], INTEGERS["int8"]
            own = steps(weight, numbers)
            (home,) = await fetch_panel(world.deployment, 0, 10)
            assert torch.equal(home, quantise(weight, own, numbers).float() * own[:, None])
            assert world.engine.peers[liar].standing is Standing.QUARANTINED

    simulate(main())


def test_another_deployment_of_the_same_weights_has_other_shares() -> None:
    async def main() -> set[bytes]:
        async with Watched(LARGE, options=options_of("int8", "replicated", 8), seed=len(runs)) as world:
            return {what for _, _, what in world.loaded if isinstance(what, bytes)}

    runs: list[set[bytes]] = []
    for _ in range(2):
        runs.append(simulate(main()))  # noqa: PERF401 - the seed is the number of runs before
    assert runs[0]
    assert runs[0].isdisjoint(runs[1])
