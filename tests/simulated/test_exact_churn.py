"""Through kills, lies and returns a mixed model gives the bits of its twin, and no domain gets a second lane."""

from collections import Counter

import pytest
import torch
from torch import nn

import awfulowl as owl
from awfulowl.device.lies import Liar
from awfulowl.owner.peer import Standing
from awfulowl.placement.plan import Plan
from awfulowl.veil.shares import sharing_of
from awfulowl.wire.messages import Apply, Load
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.twins import MODES, Got, listening, require_one_lane


def mixed() -> nn.Module:
    """Convolutions with and without groups, an encoder, and linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Flatten(2),
        nn.Linear(16, 16),
        nn.TransformerEncoderLayer(16, 4, 24, batch_first=True),
        nn.Flatten(),
        nn.Linear(128, 7),
    ).eval()


class Scene:
    """A mixed model on a fleet, its twin, and what devices got."""

    def __init__(self, fleet: MemoryFleet, heard: list[Got], arithmetic: str, sharing: str | None) -> None:
        model = mixed()
        self.fleet, self._heard, self._sharing = fleet, heard, sharing_of(sharing)
        plan = owl.plan(
            model,
            torch.randn(1, 4, 6, 6),
            devices=fleet,
            block=8,
            replicas=1,
            share=1.0,
            domain_share=1.0,
            arithmetic=arithmetic,
            sharing=sharing,
        )
        self._model, self._twin = fleet.scatter(model, plan), plan.twin(model)
        self._domains = {device.name: device.domain for device in fleet.devices}

    @property
    def plan(self) -> Plan:
        """As it stands now."""
        return self.fleet.plan_of(self._model)

    def busiest(self) -> str:
        """The device with the most to do of those that run and do not lie."""
        held = Counter(name for panel in self.plan.panels for cell in panel.cells for name in cell.holders)
        honest = [name for name in self.fleet.running if self.fleet.workers[name].tamper is None]
        return max(honest, key=held.__getitem__)

    def ask(self) -> None:
        """Require an answer that is the twin's, and no domain with two lanes."""
        x = torch.randn(3, 4, 6, 6)
        with torch.no_grad():
            assert torch.equal(self._model(x), self._twin(x))
        require_one_lane(self.plan)
        assert [place for place, lanes in self.lanes_got().items() if len(lanes) > 1] == []

    def lanes_got(self) -> dict[tuple[str, str, int], set[int]]:
        """The lanes that devices of each domain were sent anything of, by panel, domain and column."""
        lanes: dict[tuple[str, str, int], set[int]] = {}
        places = self._places()
        for got in self._heard:
            for handle in handles_of(got):
                name, column, lane = places[handle]
                lanes.setdefault((name, self._domains[got.device], column), set()).add(lane)
        return lanes

    def _places(self) -> dict[bytes, tuple[str, int, int]]:
        return {
            panel.slice_handle(column, matrix): (panel.name, column, lane)
            for panel in self.plan.panels
            for column in range(len(panel.grid.columns))
            for lane in range(self._sharing.lanes)
            for matrix in self._sharing.matrices(lane)
        }


def handles_of(got: Got) -> list[bytes]:
    """The slices that a device was sent weights or inputs of."""
    match got.body:
        case Load(sheets=sheets):
            return [handle for sheet in sheets for handle in sheet.slices]
        case Apply(slices=slices):
            return list(slices)
    return []


@pytest.mark.parametrize(("arithmetic", "sharing"), MODES)
def test_a_mixed_model_equals_its_twin_through_kills_lies_and_returns(arithmetic: str, sharing: str | None) -> None:
    """Two devices in each domain, and two domains more than lanes."""
    domains = sharing_of(sharing).lanes + 2
    parties = {f"d{number}": f"party{number % domains}" for number in range(2 * domains)}
    with listening() as heard, still_fleet(parties) as fleet:
        scene = Scene(fleet, heard, arithmetic, sharing)
        scene.ask()
        first = scene.busiest()
        fleet.kill(first)
        scene.ask()
        liar = scene.busiest()
        fleet.workers[liar].tamper = Liar("random", 1e-3)
        scene.ask()
        fleet.start(first)
        fleet.wait(10)
        scene.ask()
        second = scene.busiest()
        fleet.kill(second)
        other = scene.busiest()
        fleet.workers[other].tamper = Liar("one row", 1e-3)
        scene.ask()
        fleet.wait(60)
        fleet.start(second)
        fleet.wait(60)
        scene.ask()
        assert fleet.statistics["failovers"] + fleet.statistics["hedged"] >= 2
        assert fleet.statistics["restored"] >= 2
        assert fleet.statistics["lies_caught"] >= 2
        assert fleet.statistics["requests_lost"] == fleet.statistics["kept"] == 0
        peers = fleet._engine.peers
        assert {name for name in parties if peers[name].standing is Standing.QUARANTINED} == {liar, other}
        assert len(scene.lanes_got()) > len(scene.plan.panels)
