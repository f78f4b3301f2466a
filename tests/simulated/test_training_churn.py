"""Dozens of steps with devices that leave, return, lie and stray at random, and batches on many threads."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awfulowl.device.lies import STEP_KINDS, Liar, Misstep
from awfulowl.device.worker import Worker
from awfulowl.errors import InputError
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet, still_fleet
from tests.simulated.training import REPLICAS, SMALL, Twins, perceptron, training, twins


class Chance:
    """What happens to whom, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def below(self, count: int) -> int:
        """A number below `count`."""
        return int(torch.randint(count, (), generator=self._generator))

    def one_of(self, names: Sequence[str]) -> str:
        """One of these."""
        return names[self.below(len(names))]


def corrupt(fleet: MemoryFleet, name: str, chance: Chance) -> None:
    """Let a device lie from now on, in products or in steps, always or now and then."""
    worker = fleet.workers[name]
    if chance.below(2):
        worker.tamper = Liar("random", 0.01, seed=chance.below(1000))
    else:
        worker.learner.tamper = Misstep(STEP_KINDS[chance.below(4)], 0.1, (1.0, 0.5)[chance.below(2)])


@pytest.mark.parametrize("options", [SMALL, REPLICAS], ids=["1 replica", "2 replicas"])
@pytest.mark.parametrize("seed", [0, 1])
def test_liars_and_leavers(seed: int, options: Options) -> None:
    """Of nine devices three lie and four leave, one of which does both, at random steps; the leavers return."""
    chance, steps = Chance(seed), 60
    happenings: dict[int, list[tuple[str, str]]] = {}
    for name in ("d2", "d5", "d7"):
        happenings.setdefault(1 + chance.below(steps - 6), []).append(("lies", name))
    for name in ("d1", "d3", "d5", "d8"):
        leaves = 1 + chance.below(steps - 10)
        happenings.setdefault(leaves, []).append(("leaves", name))
        happenings.setdefault(leaves + 1 + chance.below(4), []).append(("returns", name))
    with training(9, Policy(snapshot_after=8), options=options, momentum=0.9, weight_decay=0.01) as pair:
        for step in range(steps):
            for what, name in happenings.get(step, []):
                if what == "lies":
                    corrupt(pair.fleet, name, chance)
                elif what == "leaves":
                    pair.fleet.kill(name)
                else:
                    pair.fleet.start(name)
                    pair.fleet.wait(chance.below(6))
            pair.step()
        pair.agree()
        quarantined = {name for name, standing in pair.fleet.standing.items() if standing is Standing.QUARANTINED}
        assert quarantined <= {"d2", "d5", "d7"}
        assert quarantined
        assert pair.fleet.statistics["requests_lost"] == 0


class Sent:
    """The slices that every device was ever sent, blocks of them or inputs, by name: what it says it saw itself."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.slices: dict[str, set[bytes]] = {}
        do = Worker._do

        def noting(worker: Worker, request: Any) -> Any:
            body = request.body
            for part in (*getattr(body, "sheets", ()), *getattr(body, "terms", ())):
                self.slices.setdefault(worker.name, set()).update(part.slices)
            return do(worker, request)

        patch.setattr(Worker, "_do", noting)

    def keeps_to(self, plan: Plan) -> None:
        """Require that devices and domains saw what the rules of a plan allow, and nothing that its ledger omits."""
        for number, panel in enumerate(plan.panels):
            column_of = {handle: column for column, handle in enumerate(panel.slice_handles)}
            seen_by: dict[str, set[int]] = {}
            for device in plan.devices:
                seen = {column_of[handle] for handle in self.slices.get(device.name, ()) if handle in column_of}
                held = {cell.column for cell in panel.cells if device.name in cell.holders}
                assert seen <= held == plan.ledger.seen(number, device.name)
                assert len(held) <= plan.rules.share * len(column_of)
                seen_by.setdefault(device.domain, set()).update(held)
            for domain, columns in seen_by.items():
                assert columns == plan.ledger.seen_by_domain(number, domain)
                assert len(columns) <= plan.rules.domain_share * len(column_of)


@pytest.mark.parametrize(
    ("seed", "replicas", "share", "domain_share"),
    [(0, 1, 0.25, 0.34), (2, 1, 0.25, 0.34), (1, 2, 0.42, 0.67)],
    ids=["of devices", "of domains", "with 2 replicas"],
)
def test_rules_of_placement_hold_over_the_whole_run(
    seed: int, replicas: int, share: float, domain_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leaves is replaced, and returns to what it had; one leaves for good, and one comes late.

    The first two go wrong where nobody minds the rule in their name.
    """
    chance, sent, away = Chance(seed), Sent(monkeypatch), list[str]()
    names = {f"d{number}": f"p{number % 4}" for number in range(8)}
    options = Options(block=(8, 1), replicas=replicas, share=share, domain_share=domain_share)
    with still_fleet(names, Policy(repair_after_s=1, return_s=60, request_timeout_s=100, snapshot_after=9)) as fleet:
        pair = twins(fleet, perceptron(), options=options, momentum=0.9)
        before = fleet.plan_of(pair.scattered).ledger
        for step in range(30):
            if step == 10:
                fleet.admit(Device("late", "p4"))
                fleet.start("late")
                if "d0" in fleet.running:
                    fleet.kill("d0")
                away = [name for name in away if name != "d0"]
            if away and chance.below(5) < 2:
                fleet.start(away.pop())
                fleet.wait(chance.below(4))
            elif len(away) < 2 and chance.below(2):
                away.append(chance.one_of(sorted(fleet.running)))
                fleet.kill(away[-1])
            pair.step()
        pair.agree()
        plan = fleet.plan_of(pair.scattered)
        sent.keeps_to(plan)
        assert plan.ledger.seen(0, "late")
        assert sum(len(plan.ledger.seen(0, name)) > len(before.seen(0, name)) for name in names) >= 2
        assert fleet.statistics["replaced"] > 0
        assert fleet.statistics["requests_lost"] == 0


class TestPipelines:
    """Micro-batches of one step on several threads, over a real loop."""

    def step(self, pair: Twins, threads: int, batches: int = 5) -> None:
        micro = [pair.batch() for _ in range(batches)]
        for _, optimizer, _ in pair.each:
            optimizer.zero_grad()
        losses = pair.fleet.pipeline(
            pair.scattered, lambda one: pair.loss(pair.scattered, *one) / batches, micro, threads=threads
        )
        for loss, (x, wanted) in zip(losses, micro, strict=True):
            plain = pair.loss(pair.plain, x.double(), wanted.double()) / batches
            plain.backward()  # type: ignore[no-untyped-call]
            assert float(loss) == pytest.approx(float(plain.detach()), abs=1e-5)
        for _, optimizer, _ in pair.each:
            optimizer.step()

    def test_are_equal_bit_by_bit_for_any_number_of_threads(self) -> None:
        """With one replica: it depends on nobody's speed who multiplies."""
        found: list[dict[str, Tensor]] = []
        for threads in (1, 3, 6):
            with memory_fleet(3) as fleet:
                pair = twins(fleet, perceptron(), momentum=0.9)
                for _ in range(3):
                    self.step(pair, threads)
                pair.agree()
                found.append(fleet.gather(pair.scattered))
        for other in found[1:]:
            assert all(torch.equal(value, other[name]) for name, value in found[0].items())

    def test_go_on_when_a_device_lies(self) -> None:
        with memory_fleet(4) as fleet:
            pair = twins(fleet, perceptron())
            self.step(pair, 3)
            fleet.workers["d2"].tamper = Liar("random", 0.1)
            for _ in range(3):
                self.step(pair, 3)
            pair.agree()
            assert [name for name, one in fleet.standing.items() if one is not Standing.PRESENT] == ["d2"]

    def test_add_to_gradients_that_are_there(self) -> None:
        with memory_fleet(2) as fleet:
            pair = twins(fleet, perceptron())
            pair.differentiate()
            micro = [pair.batch() for _ in range(3)]
            fleet.pipeline(pair.scattered, lambda one: pair.loss(pair.scattered, *one), micro, threads=2)
            for x, wanted in micro:
                pair.loss(pair.plain, x.double(), wanted.double()).backward()  # type: ignore[no-untyped-call]
            for _, optimizer, _ in pair.each:
                optimizer.step()
            pair.agree()

    def test_refuse_statistics_that_depend_on_the_order(self) -> None:
        model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        with memory_fleet(2) as fleet:
            pair = twins(fleet, model, torch.zeros(2, 12))
            with pytest.raises(InputError, match="'1' changes its statistics"):
                self.step(pair, 2)
            pair.scattered.eval()
            pair.plain.eval()
            self.step(pair, 2)
            pair.agree()

    def test_errors_of_one_micro_batch_are_errors_of_all(self) -> None:
        with memory_fleet(2) as fleet:
            pair = twins(fleet, perceptron())

            def loss(one: tuple[Tensor, Tensor]) -> Tensor:
                if one[0] is micro[1][0]:
                    raise KeyError("mine")
                return pair.loss(pair.scattered, *one)

            micro = [pair.batch() for _ in range(4)]
            with pytest.raises(KeyError, match="mine"):
                fleet.pipeline(pair.scattered, loss, micro, threads=2)
            self.step(pair, 2)
            pair.agree()
