"""Shares of weights as the owner gives them out: those of a block are the same in whatever rectangle it comes."""

import itertools

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS
from awfulowl.arithmetic.quantise import quantise, steps
from awfulowl.device.lies import Liar
from awfulowl.owner.gather import fetch_panel
from awfulowl.owner.numbers import Exact, numbers_of
from awfulowl.owner.peer import Standing
from awfulowl.owner.product import Product
from awfulowl.placement.cutting import Layer
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.plan import Panel
from awfulowl.randomness import Entropy, Seeded, expanded
from awfulowl.veil.shares import Replicated
from awfulowl.verification.exact import ExactCheck
from tests.simulated.world import World, simulate
from tests.unit.placement.fleets import CONVOLUTION, plan

PARTIES = {f"d{number}": "abc"[min(number // 2, 2)] for number in range(9)}
"""Two devices, two, and five: lanes that cut a layer into other rectangles than each other."""

SHAPES: list[Shape] = ["columns", "rows", "rectangles", "scattered"]

LAYERS = [
    Layer("dense", (24, 64), arithmetic="int8"),
    Layer("convolution", (24, 32, 3, 3), CONVOLUTION, arithmetic="int16"),
]


def owner(layer: Layer, shape: Shape) -> tuple[Panel, Exact, ExactCheck]:
    devices = [Device(*pair) for pair in PARTIES.items()]
    made = plan([layer], devices, 0, block=8, shape=shape, arithmetic=layer.arithmetic, sharing="replicated")
    weights = torch.randn(layer.shape, generator=torch.Generator().manual_seed(0))
    (panel,) = made.panels
    numbers = numbers_of(panel, [weights], Replicated(), Entropy(1))
    assert isinstance(numbers, Exact)
    rows = range(len(panel.grid.rows))
    apart = [rows[start:stop] for start, stop in itertools.combinations(range(len(rows) + 1), 2)]
    return panel, numbers, numbers.new_check(Entropy(2), apart)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.product)
def test_a_part_of_a_rectangle_has_the_same_shares(layer: Layer) -> None:
    """Or a device that is asked for one of several members of a panel would be taken for a liar."""
    panel, numbers, check = owner(layer, "columns")
    for lane, column in itertools.product(range(3), range(len(panel.grid.columns))):
        whole = numbers.matrices(check, lane, (0, 1, 2), [column])
        for rows in ((0,), (1,), (2,), (0, 1), (1, 2)):
            span = slice(panel.grid.rows[rows[0]].start, panel.grid.rows[rows[-1]].stop)
            own = numbers.matrices(check, lane, rows, [column])
            assert all(torch.equal(part, matrix[span]) for part, matrix in zip(own, whole, strict=True))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.product)
@pytest.mark.parametrize("shape", SHAPES)
def test_lanes_that_are_cut_differently_fit_together(layer: Layer, shape: Shape) -> None:
    panel, numbers, check = owner(layer, shape)
    grid = panel.grid
    total = torch.zeros(grid.shape, dtype=torch.int64)
    for lane, part in Replicated.whole:
        for cell in panel.cells:
            if cell.lane == lane:
                (down, up), across = (grid.rows[cell.rows[0]], grid.rows[cell.rows[-1]]), grid.columns[cell.column].span
                matrix = numbers.matrices(check, lane, cell.rows, [cell.column])[part]
                total[down.start : up.stop, across.start : across.stop] += matrix
    wanted = torch.cat(
        [numbers._block(check, range(len(grid.rows)), [column]) for column in range(len(grid.columns))], dim=1
    )
    ring = torch.int32 if layer.arithmetic == "int8" else torch.int64
    assert torch.equal(total.to(ring), wanted.to(ring))


def test_blocks_of_a_rectangle_have_shares_of_their_own() -> None:
    panel, numbers, check = owner(LAYERS[0], "columns")
    matrices = numbers.matrices(check, 0, (0, 1, 2), [0, 1])[1]
    blocks = [block for strip in torch.split(matrices, 8) for block in torch.split(strip, 7, dim=1)]
    assert panel.grid.columns[0].span.size == 7
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(blocks[:6], 2))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.product)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_sent_is_what_is_held(layer: Layer, shape: Shape) -> None:
    """Random shares as the seed of each block, row by row; of all lanes two matrices travel whole."""
    panel, numbers, check = owner(layer, shape)
    whole: set[int] = set()
    for cell in panel.cells:
        sent = numbers.sent(check, cell.lane, cell.rows, [cell.column])
        held = numbers.matrices(check, cell.lane, cell.rows, [cell.column])
        named = Replicated().matrices(cell.lane)
        for number, blocks, matrix in zip(named, sent, held, strict=True):
            assert torch.equal(torch.cat([expanded(block) for block in blocks]), matrix)
            if isinstance(blocks[0], Tensor):
                assert len(blocks) == 1
                whole.add(number)
            else:
                assert len(blocks) == len(cell.rows)
    assert whole == {2, 3}


def test_no_two_blocks_shares_or_panels_have_a_seed_in_common() -> None:
    seeds: dict[bytes, tuple[object, ...]] = {}
    for number in range(2):  # two panels, each of keys of its own
        devices = [Device(*pair) for pair in PARTIES.items()]
        made = plan([LAYERS[0]], devices, 0, block=8, arithmetic="int8", sharing="replicated")
        (panel,) = made.panels
        numbers = numbers_of(panel, [torch.zeros(LAYERS[0].shape)], Replicated(), Entropy(number))
        check = numbers.new_check(Entropy(2), [(0, 1, 2)])
        columns = range(len(panel.grid.columns))
        places = list(itertools.product((0, 1, 2), columns))
        for lane in range(3):
            sent = numbers.sent(check, lane, (0, 1, 2), columns)
            for (wanted, _), blocks in zip(Replicated().products(lane), sent, strict=True):
                for place, block in zip(places, blocks, strict=False):
                    if isinstance(block, Seeded):
                        assert seeds.setdefault(block.seed, (number, wanted, place)) == (number, wanted, place)
    assert len(seeds) == 2 * 2 * len(places)


def test_more_blocks_than_a_message_may_have_seeds_travel_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    panel, numbers, check = owner(LAYERS[0], "columns")
    for most, count in ((6, 6), (5, 1)):
        monkeypatch.setattr("awfulowl.owner.numbers.MOST_SEEDS", most)
        sent = numbers.sent(check, 0, (0, 1, 2), [0, 1])
        assert [len(blocks) for blocks in sent] == [count, count]
    matrices = numbers.matrices(check, 0, (0, 1, 2), [0, 1])
    assert all(torch.equal(expanded(blocks[0]), matrix) for blocks, matrix in zip(sent, matrices, strict=True))
    assert panel.grid.columns[0].rows == (0, 1, 2)


def options(shape: Shape) -> Options:
    return Options(block=8, shape=shape, arithmetic="int8", sharing="replicated", replicas=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_any_shape_products_are_right_and_weights_come_home(shape: Shape) -> None:
    async def main() -> None:
        async with World(PARTIES, options=options(shape)) as world:
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.checks_failed == 0
            weight, numbers = world.weights["layer"], INTEGERS["int8"]
            own = steps(weight, numbers)
            (home,) = await fetch_panel(world.deployment, 0, 10)
            assert torch.equal(home, quantise(weight, own, numbers).float() * own[:, None])

    simulate(main())


def test_only_the_liar_is_blamed_where_some_rows_are_asked_for() -> None:
    """Two lanes hold all rows in one rectangle, and answer for two of three: that is done again to find the liar."""

    async def main() -> None:
        async with World(PARTIES, options=options("rectangles")) as world:
            assert (0, 1, 2) in {cell.rows for cell in world.plan.panels[0].cells}
            assert (1, 2) in {cell.rows for cell in world.plan.panels[0].cells}
            liar = next(cell.holders[0] for cell in world.plan.panels[0].cells if cell.rows == (0, 1, 2))
            world.workers[liar].tamper = Liar("random", None)
            x = world.inputs(3)
            y = await Product(world.deployment, 0, (1, 2)).multiply(x)
            assert torch.equal(y, world.twins["layer"](x)[:, 8:])
            blamed = {name for name, peer in world.engine.peers.items() if peer.standing is Standing.QUARANTINED}
            assert blamed == {liar}

    simulate(main())
