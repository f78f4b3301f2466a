"""What devices really got and hold, through the whole system, is noise; an owner that shows some of it is found.

Statistics and their limit, 1e-6 for each of 3,840 p-values, are those of `tests.unit.veil`; keys are from fixed seeds,
so that runs are equal.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS
from awfulowl.arithmetic.quantise import quantise, steps
from awfulowl.blocks.grid import Grid, take
from awfulowl.owner import numbers as owned
from awfulowl.placement.options import Options
from awfulowl.randomness import Entropy, Seeded
from awfulowl.veil.base import SharedInputs, SharedWeights, Sharing
from awfulowl.veil.shares import sharing_of
from awfulowl.wire.messages import Apply, Load
from tests.simulated.twins import Got, listening
from tests.simulated.world import World, simulate
from tests.unit.veil.leaks import Score, about, alone, leaks, together

BATCH, INPUTS, OUTPUTS = 256, 512, 256
PARTIES = {
    "inputs:2": {f"d{number}": "ab"[number % 2] for number in range(4)},
    "replicated": {f"d{number}": "abc"[number % 3] for number in range(6)},
}
each_case = pytest.mark.parametrize(("arithmetic", "sharing"), list(itertools.product(INTEGERS, PARTIES)))


class Evidence:
    """What the devices of one domain have, after a layer was multiplied twice by the same inputs."""

    def __init__(self) -> None:
        self.views: dict[str, dict[int, Tensor]] = {}
        """By column: x[0] and W[0], where a lane has two x[1] and W[1], too; x[0] again of inputs that came again."""
        self.came: list[Tensor] = []
        """All that has to be noise, as it came, whatever it is."""

    def add(self, name: str, column: int, numbers: Tensor) -> None:
        """Note what hides one thing: two devices of a domain have the same of it."""
        assert torch.equal(self.views.setdefault(name, {}).setdefault(column, numbers), numbers)

    def scores(self, grid: Grid, secrets: dict[str, Tensor]) -> Iterator[Score]:
        """Test numbers by themselves, against what they hide, and against others that hide the same."""

        def laid(name: str, columns: list[int]) -> Tensor:
            return torch.cat([self.views[name][column] for column in columns], dim=1)

        yield from alone("all that came", torch.cat([numbers.flatten() for numbers in self.came]))
        for name, own in self.views.items():
            columns = sorted(own)
            view = {name: laid(name, columns)}
            yield from alone(name, view[name])
            yield from about(view, {name[0]: take(secrets[name[0]], grid, columns)})
        for one, other in itertools.combinations(self.views, 2):
            columns = sorted(self.views[one].keys() & self.views[other].keys())
            if one[0] == other[0]:
                yield from together({one: laid(one, columns), other: laid(other, columns)})


class Trial:
    """One such run, and what came of it."""

    def __init__(self, arithmetic: str, sharing: str, seeds: tuple[int, int] = (1, 2)) -> None:
        """Run; `seeds` are those of the shares of the inputs, each time that they are sent."""
        self.numbers, self.sharing = INTEGERS[arithmetic], sharing_of(sharing)
        self.parties = PARTIES[sharing]
        self.evidence = {domain: Evidence() for domain in sorted(set(self.parties.values()))}
        self.secrets: dict[str, Tensor] = {}
        simulate(self._run(seeds))

    async def _run(self, seeds: tuple[int, int]) -> None:
        options = Options(
            block=64, arithmetic=self.numbers.name, sharing=self.sharing.name, replicas=1, share=1.0, domain_share=1.0
        )
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
        x = torch.randn(BATCH, INPUTS, generator=generator).relu_()
        with listening() as heard:
            async with World(self.parties, options=options, weights={"layer": weight}) as world:
                self.grid = world.plan.panels[0].grid
                self._places = {
                    world.plan.panels[0].slice_handle(column, matrix): (column, matrix - self.sharing.matrices(lane)[0])
                    for lane in range(self.sharing.lanes)
                    for matrix in self.sharing.matrices(lane)
                    for column in range(len(self.grid.columns))
                }
                for turn, seed in zip(("", " again"), seeds, strict=True):
                    before = len(heard)
                    world.engine.entropy = Entropy(seed)
                    world.expect(await world.multiply(x), x)
                    self._note_inputs(turn, heard[before:])
                assert world.engine.ledger.checks_failed == 0
                self._note_weights(world, heard)
                self.secrets["x"] = world.deployment.numbers[0].enter(x).x
                self.secrets["W"] = quantise(weight, steps(weight, self.numbers), self.numbers)

    def _note_inputs(self, turn: str, heard: list[Got]) -> None:
        for got in heard:
            assert isinstance(got.body, Apply)
            evidence = self.evidence[self.parties[got.device]]
            evidence.came += got.tensors
            places = [self._places[handle] for handle in got.body.slices]
            sizes = [self.grid.columns[column].span.size for column, _ in places]
            pieces = torch.split(torch.cat(got.tensors, dim=1), sizes, dim=1)
            for (column, part), numbers in zip(places, pieces, strict=True):
                evidence.add(f"x[{part}]{turn}", column, numbers)

    def _note_weights(self, world: World, heard: list[Got]) -> None:
        if not self.sharing.hides_weights:
            return
        for got in heard:
            if isinstance(got.body, Load):
                self.evidence[self.parties[got.device]].came += got.tensors
        for name, worker in world.workers.items():
            for sheet in worker._store._sheets:
                assert tuple(sheet.rows) == world.plan.panels[0].row_handles
                numbers = worker._store._backend.restore(sheet.weights.planes)
                for handle, span in sheet.slices.items():
                    column, part = self._places[handle]
                    self.evidence[self.parties[name]].add(f"W[{part}]", column, numbers[:, span.start : span.stop])

    def leaks(self) -> dict[str, list[str]]:
        """What gives something away, by domain."""
        return {domain: leaks(list(own.scores(self.grid, self.secrets))) for domain, own in self.evidence.items()}


@each_case
def test_what_devices_got_and_hold_is_noise(arithmetic: str, sharing: str) -> None:
    trial = Trial(arithmetic, sharing)
    matrices = sum(len(trial.sharing.matrices(lane)) for lane in range(trial.sharing.lanes))
    wanted = matrices * (2 * BATCH * INPUTS + (OUTPUTS * INPUTS if trial.sharing.hides_weights else 0))
    assert 10**5 < wanted == sum(numbers.numel() for own in trial.evidence.values() for numbers in own.came)
    viewed = [numbers for own in trial.evidence.values() for view in own.views.values() for numbers in view.values()]
    assert sum(numbers.numel() for numbers in viewed) == wanted
    assert {numbers.dtype for numbers in viewed} == {trial.numbers.ring}
    assert trial.leaks() == {domain: [] for domain in trial.evidence}


# The control: slips of an owner whose answers stay right.


class CarelessInputs(SharedInputs):
    """Gives the inputs of one column of eight as they are, to whoever has their last share, and zeros to the others."""

    def __init__(self, sharing: Sharing, x: Tensor, grid: Grid, ring: torch.dtype, entropy: Entropy) -> None:
        super().__init__(sharing, x, grid, ring, entropy)
        bare = take(x, grid, [0]).to(ring)
        self._random[0] = tuple(torch.zeros_like(bare) for _ in range(sharing.shares - 1))
        for wanted, whole in self._whole.items():
            take(whole, grid, [0]).copy_(bare if sharing.shares - 1 in wanted else torch.zeros_like(bare))


class CarelessWeights(SharedWeights):
    """Does the same with weights."""

    def matrices(self, lane: int, block: Tensor, place: Any) -> list[Tensor | Seeded]:
        if place[1] != 0:
            return super().matrices(lane, block, place)
        bare, last = block.to(self._ring), self._sharing.shares - 1
        return [bare if last in wanted else torch.zeros_like(bare) for wanted, _ in self._sharing.products(lane)]


@each_case
def test_inputs_in_the_clear_are_found(arithmetic: str, sharing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "SharedInputs", CarelessInputs)
    found = Trial(arithmetic, sharing).leaks()
    assert all({"byte 3 of all that came", "byte 3 of x[0]"} <= set(one) for one in found.values())
    assert any("and the true x: low, low" in what for one in found.values() for what in one)
    assert not any("W[" in what for one in found.values() for what in one)


@pytest.mark.parametrize("arithmetic", INTEGERS)
def test_weights_in_the_clear_are_found(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "SharedWeights", CarelessWeights)
    found = Trial(arithmetic, "replicated").leaks()
    assert all({"byte 3 of all that came", "byte 3 of W[0]"} <= set(one) for one in found.values())
    assert any("and the true W: low, low" in what for one in found.values() for what in one)
    assert not any("x[" in what for one in found.values() for what in one)


@pytest.mark.parametrize("sharing", PARTIES)
def test_shares_of_the_same_seeds_are_found(sharing: str) -> None:
    """Each is noise, and both together are not."""
    found = Trial("int8", sharing, seeds=(1, 1)).leaks()
    assert all("correlation of x[0] and x[0] again" in one for one in found.values())
    assert not any({"byte 3 of x[0]", "byte 3 of x[0] again"} & set(one) for one in found.values())
