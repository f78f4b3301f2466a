"""Exact integers through the whole system: scattered equals the local twin, bit for bit, whatever happens."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.arithmetic.products import BACKENDS, Backend
from awfulowl.device.lies import KINDS, Kind, Liar
from awfulowl.errors import InputError, LocalError, PlanError, RuleError, UnavailableError
from awfulowl.owner.peer import Standing
from awfulowl.placement.options import Options
from awfulowl.randomness import expanded
from awfulowl.veil.base import SharedInputs
from awfulowl.veil.shares import sharing_of
from tests.contract.adapters.cases import CASES, Case
from tests.simulated import twins
from tests.simulated.memory_fleet import ACCELERATORS, MemoryFleet, memory_fleet
from tests.simulated.twins import MODES, called_with, equals_twin, has_numbers, require_case, unfolding
from tests.simulated.world import World, simulate

PARTIES = {f"d{number}": "abc"[number % 3] for number in range(1, 7)}
each_mode = pytest.mark.parametrize(("arithmetic", "sharing"), MODES)
some = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
few = settings(some, max_examples=4)


@pytest.fixture(scope="module", params=ACCELERATORS)
def fleet(request: pytest.FixtureRequest) -> Iterator[MemoryFleet]:
    with memory_fleet(PARTIES, accelerator=request.param) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_adapter_equals_its_twin(fleet: MemoryFleet, case: Case) -> None:
    ran = 0

    @some
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        nonlocal ran
        example = data.draw(case.examples.filter(has_numbers))
        arithmetic, sharing = data.draw(st.sampled_from(MODES))
        options = {"arithmetic": arithmetic, "sharing": sharing, "block": data.draw(st.integers(1, 12))}
        with unfolding(case):
            plan = equals_twin(fleet, example.module, called_with(example), **options)
        require_case(case, example, plan)
        ran += 1

    one()
    assert ran >= some.max_examples


@each_mode
@given(data=st.data())
@few
def test_networks_of_random_shapes(fleet: MemoryFleet, arithmetic: str, sharing: str, data: st.DataObject) -> None:
    channels, width, batch = (data.draw(st.integers(1, 9)) for _ in range(3))
    model = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, stride=data.draw(st.integers(1, 2))),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 7),
    )
    equals_twin(
        fleet,
        model,
        torch.randn(batch, channels, 6, 5),
        arithmetic=arithmetic,
        sharing=sharing,
        block=data.draw(st.integers(1, 9)),
        replicas=data.draw(st.integers(1, 2)),
    )


@each_mode
def test_an_encoder_does_not_slip_past_by_its_fused_path(fleet: MemoryFleet, arithmetic: str, sharing: str) -> None:
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    equals_twin(fleet, model, torch.randn(3, 5, 16), arithmetic=arithmetic, sharing=sharing, block=8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS, ids=[backend.name for backend in BACKENDS])
def test_every_backend_and_number_of_threads_gives_the_same_bits(
    backend: Backend, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(130, 70), nn.GELU(), nn.Linear(70, 5)).eval()
    x = torch.randn(33, 130)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = owl.plan(model, devices=1, arithmetic="int8").twin(model)(x).detach()
        monkeypatch.setattr("awfulowl.device.store.fastest", lambda _="cpu": backend)
        with memory_fleet(PARTIES) as opened, torch.no_grad():
            for sharing in (None, "inputs:2", "replicated"):
                plan = owl.plan(model, x, devices=PARTIES, arithmetic="int8", sharing=sharing)
                assert torch.equal(opened.scatter(model, plan)(x), expected)
    finally:
        torch.set_num_threads(before)


@each_mode
def test_gather_returns_what_devices_hold(fleet: MemoryFleet, arithmetic: str, sharing: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 9, 5)).eval()
    plan = owl.plan(model, torch.randn(1, 4, 5, 5), devices=PARTIES, block=4, arithmetic=arithmetic, sharing=sharing)
    scattered = fleet.scatter(model, plan)
    state = fleet.gather(scattered)
    fleet.release(scattered)
    largest = {"int8": 127, "int16": 32639}[arithmetic]
    for name, weight in model.state_dict().items():
        if weight.dim() > 1:
            most = weight.flatten(1).abs().amax(1)
            step = most / largest
            off = (state[name] - weight).flatten(1).abs().amax(1)
            assert bool((off <= step / 2 + 2**-22 * most).all())  # rounded once to integers, twice in float32
            assert not torch.equal(state[name], torch.zeros_like(weight))
        else:
            assert torch.equal(state[name], weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_name(fleet: MemoryFleet, value: float) -> None:
    layer, x = nn.Linear(12, 4), torch.randn(3, 12)
    x[1, 7] = value
    for model, name in ((nn.Sequential(layer), "0"), (layer, "the model")):
        for arithmetic, sharing in (("int8", "inputs:2"), ("float32", None)):
            plan = owl.plan(model, devices=PARTIES, block=4, arithmetic=arithmetic, sharing=sharing)
            scattered = fleet.scatter(model, plan)
            with torch.no_grad(), pytest.raises(InputError, match=rf"^{name}: the inputs are not finite"):
                scattered(x)
            fleet.release(scattered)


@each_mode
def test_zeros_and_outliers_are_right(fleet: MemoryFleet, arithmetic: str, sharing: str) -> None:
    model = nn.Linear(20, 6)
    x = torch.randn(6, 20)
    x[0] = 0
    x[1, 3] = 1e6
    x[2] = 1e-42
    x[3] = 3e38
    x[4, 1:] = 0
    equals_twin(fleet, model, x, arithmetic=arithmetic, sharing=sharing, block=6)


def test_an_empty_batch_has_an_empty_answer(fleet: MemoryFleet) -> None:
    model = nn.Linear(20, 6)
    scattered = fleet.scatter(model, owl.plan(model, devices=PARTIES, arithmetic="int8"))
    with torch.no_grad():
        assert scattered(torch.empty(0, 20)).shape == (0, 6)
    fleet.release(scattered)


def test_a_plan_serves_one_model_at_a_time(fleet: MemoryFleet) -> None:
    """Devices know blocks by the plan's handles: a second scatter would replace the first one's shares."""
    model = nn.Linear(20, 6).eval()
    plan = owl.plan(model, devices=PARTIES, arithmetic="int8", sharing="replicated")
    first = fleet.scatter(model, plan)
    with pytest.raises(PlanError, match="in use on this fleet"):
        fleet.scatter(model, plan)
    x = torch.randn(2, 20)
    with torch.no_grad():
        assert torch.equal(first(x), plan.twin(model)(x))
        fleet.release(first)
        again = fleet.scatter(model, plan)
        assert torch.equal(again(x), plan.twin(model)(x))
    fleet.release(again)


def test_a_plan_of_other_domains_than_the_fleets_is_refused(fleet: MemoryFleet) -> None:
    model = nn.Linear(20, 6).eval()
    others = {name: "b" if domain == "a" else domain for name, domain in PARTIES.items()}
    plan = owl.plan(model, devices=others | {"d1": "x"}, arithmetic="int8", sharing="inputs:2")
    with pytest.raises(PlanError, match=r"d1 is of domain 'x', the fleet says 'b'; make the plan with devices=fleet"):
        fleet.scatter(model, plan)


def test_too_few_domains_are_refused_with_a_way_out() -> None:
    with pytest.raises(RuleError, match=r"'one share'.*needs 3 domains.*d1@alice"):
        owl.plan(nn.Linear(4, 4), devices={"d1": "a", "d2": "b"}, arithmetic="int8", sharing="replicated")
    with pytest.raises(RuleError, match="'one share'"):
        owl.plan(nn.Linear(4, 4), devices=8, arithmetic="int8", sharing="inputs:2")


def test_large_batches_travel_in_parts_of_their_own_shares() -> None:
    async def main() -> None:
        options = Options(block=8, arithmetic="int8", sharing="inputs:2", replicas=1)
        async with World({"d1": "a", "d2": "b"}, options=options) as world:
            world.engine.policy = type(world.engine.policy)(part_bytes=64 * 4 * 10)
            x = world.inputs(95)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.parts == 10

    simulate(main())


# Failures


def options_of(arithmetic: str, sharing: str | None) -> Options:
    return Options(block=8, arithmetic=arithmetic, sharing=sharing, replicas=1, share=1.0, domain_share=1.0)


LARGE: Mapping[str, str] = {f"d{number}": f"party{number}" for number in range(1, 8)}


def lanes_of(world: World) -> dict[tuple[str, str, int], set[int]]:
    return twins.lanes_of(world.deployment.assignment.plan())


@each_mode
def test_killed_devices_cost_no_request_and_no_domain_gets_a_second_share(arithmetic: str, sharing: str) -> None:
    async def main() -> None:
        async with World(LARGE, options=options_of(arithmetic, sharing)) as world:
            for name in ("d2", "d5", "d2", "d7"):
                if name in world.running:
                    await world.kill(name)
                else:
                    world.start(name)
                for _ in range(3):
                    x = world.inputs(5)
                    world.expect(await world.multiply(x), x)
                    await asyncio.sleep(2)
            assert world.engine.ledger.requests_lost == 0
            assert all(len(lanes) == 1 for lanes in lanes_of(world).values())

    simulate(main())


@each_mode
@pytest.mark.parametrize("kind", KINDS)
def test_liars_are_caught_and_no_answer_is_wrong(arithmetic: str, sharing: str, kind: Kind) -> None:
    async def main() -> None:
        async with World(LARGE, options=options_of(arithmetic, sharing)) as world:
            liar = world.workers["d3"].tamper = Liar(kind, 1e-6)
            for _ in range(4):
                x = world.inputs(6)
                world.expect(await world.multiply(x), x)
            assert liar.told > 0
            assert world.engine.peers["d3"].standing is Standing.QUARANTINED
            assert [name for name, peer in world.engine.peers.items() if not peer.alive] == ["d3"]
            assert all(len(lanes) == 1 for lanes in lanes_of(world).values())

    simulate(main())


@each_mode
@pytest.mark.parametrize("bit", [0, 7, 8, 15])
def test_a_single_flipped_bit_is_a_lie(arithmetic: str, sharing: str, bit: int) -> None:
    def flip(_: int, answers: list[Tensor]) -> list[Tensor]:
        false = [answer.clone() for answer in answers]
        raw = false[0].view(torch.uint8).reshape(-1)
        raw[bit // 8] ^= 1 << bit % 8
        return false

    async def main() -> None:
        async with World(LARGE, options=options_of(arithmetic, sharing)) as world:
            world.workers["d3"].tamper = flip
            x = world.inputs(6)
            world.expect(await world.multiply(x), x)
            assert world.engine.peers["d3"].standing is Standing.QUARANTINED

    simulate(main())


def test_liars_that_cancel_each_other_out_do_no_harm() -> None:
    """Two devices add and subtract the same: the sum is right, so it is used, and nobody is accused."""

    def add(step: int) -> Any:
        return lambda _, answers: [answer + step for answer in answers]

    async def main() -> None:
        options = options_of("int8", "inputs:2")
        async with World({"d1": "a", "d2": "b"}, options=options) as world:
            world.workers["d1"].tamper, world.workers["d2"].tamper = add(1), add(-1)
            x = world.inputs(6)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.lies_caught == 0

    simulate(main())


def test_when_every_domain_lies_the_request_fails() -> None:
    async def main() -> None:
        async with World(LARGE, options=options_of("int8", "replicated")) as world:
            for worker in world.workers.values():
                worker.tamper = Liar("random", 0.1)
            with pytest.raises(UnavailableError):
                await world.multiply(world.inputs(2))

    simulate(main())


def test_when_no_third_domain_is_left_the_owner_multiplies_the_same_integers() -> None:
    async def main() -> None:
        parties = {"d1": "a", "d2": "b", "d3": "c"}
        async with World(parties, options=options_of("int8", "replicated")) as world:
            await world.kill("d2")
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.kept == 1

    simulate(main())


def test_a_second_share_for_a_domain_is_refused_whoever_planned_it() -> None:
    """The placement is made to give both lanes to one domain: the guard of the sharing stops it at the last door."""

    async def main() -> None:
        async with World({"d1": "a", "d2": "b"}, options=options_of("int8", "inputs:2")) as world:
            world.deployment.domain = lambda device: "a"  # type: ignore[method-assign]
            received: list[int] = []

            def note(request: int, answers: list[Tensor]) -> list[Tensor]:
                received.append(request)
                return answers

            for worker in world.workers.values():
                worker.tamper = note
            with pytest.raises(LocalError, match="'a' would get two shares"):
                await world.multiply(world.inputs(2))
            assert len(received) <= 1

    simulate(main())


def test_a_second_lane_of_weights_is_refused_before_any_is_sent() -> None:
    """Weights leave first and for good: a plan that gives one domain two lanes is stopped when it is loaded."""

    async def main() -> None:
        world = World({"d1": "a", "d2": "b", "d3": "c"}, options=options_of("int8", "replicated"))
        world.deployment.domain = lambda device: "a"  # type: ignore[method-assign]
        with pytest.raises(LocalError, match="'a' would get two shares of layer"):
            async with world:
                pass
        held = [worker for worker in world.workers.values() if len(worker._store) > 0]
        assert len(held) <= 1
        await world.engine.close()

    simulate(main())


def test_a_candidate_whose_domain_got_another_lane_meanwhile_is_passed_over() -> None:
    async def main() -> None:
        async with World(LARGE, options=options_of("int8", "inputs:2")) as world:
            deployment = world.deployment
            (panel,) = world.plan.panels
            taken = panel.cells[0]
            candidates = deployment.assignment.candidates

            def stale(panel_: int, cell: int, alive: Any) -> list[str]:
                """Count as candidates, first of all, those that hold another lane of the column."""
                lanes = [one for one in panel.cells if one.column == panel.cells[cell].column]
                others = [name for one in lanes if one.lane != panel.cells[cell].lane for name in one.holders]
                return [*others, *candidates(panel_, cell, alive)]

            deployment.assignment.candidates = stale  # type: ignore[method-assign,assignment]
            await world.kill(taken.holders[0])
            for _ in range(3):
                x = world.inputs(3)
                world.expect(await world.multiply(x), x)
            assert all(len(lanes) == 1 for lanes in lanes_of(world).values())

    simulate(main())


def test_more_columns_than_a_message_may_have_seeds() -> None:
    async def main() -> None:
        options = Options(
            block=(8, 1), arithmetic="int8", sharing="replicated", replicas=1, share=1.0, domain_share=1.0
        )
        weights = {"layer": torch.randn(8, 600, generator=torch.Generator().manual_seed(1))}
        async with World({"d1": "a", "d2": "b", "d3": "c"}, options=options, weights=weights) as world:
            assert len(world.plan.panels[0].grid.columns) == 600
            x = world.inputs(2)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.failovers == 0

    simulate(main())


def test_a_planted_second_lane_is_refused_by_the_rules() -> None:
    async def main() -> None:
        async with World(LARGE, options=options_of("int8", "inputs:2")) as world:
            (panel,) = world.plan.panels
            first = panel.cells[0]
            other = next(
                index for index, cell in enumerate(panel.cells) if (cell.column, cell.lane) == (first.column, 1)
            )
            with pytest.raises(RuleError, match="'one share'"):
                world.deployment.assignment.assign(0, other, first.holders[0])

    simulate(main())


def test_every_request_draws_its_shares_afresh() -> None:
    seen: list[Tensor] = []

    async def main() -> None:
        options = options_of("int8", "inputs:2")
        async with World({"d1": "a", "d2": "b"}, options=options) as world:
            for worker in world.workers.values():
                apply = worker._store.apply

                def noting(request: Any, x: Tensor, apply: Any = apply) -> Any:
                    seen.append(x.clone())
                    return apply(request, x)

                worker._store.apply = noting  # type: ignore[method-assign]
            x = world.inputs(4)
            await world.multiply(x)
            await world.multiply(x)

    simulate(main())
    assert len(seen) == 4
    assert all(float((one == other).float().mean()) < 0.05 for one in seen for other in seen if one is not other)


def test_a_quarantined_device_gets_no_new_share_of_an_old_input() -> None:
    """Cover traffic repeats what the device had: a fresh share of the same input would be a second one."""

    async def main() -> None:
        async with World(LARGE, options=options_of("int8", "inputs:2")) as world:
            got: list[Tensor] = []
            worker = world.workers["d3"]
            apply = worker._store.apply

            def noting(request: Any, x: Tensor) -> Any:
                got.append(x.clone())
                return apply(request, x)

            worker._store.apply = noting  # type: ignore[method-assign]
            worker.tamper = Liar("random", 0.1)
            await world.multiply(world.inputs(4))
            count = len(got)
            await asyncio.sleep(10)
            assert len(got) > count
            assert all(torch.equal(one, got[count - 1]) for one in got[count:])

    simulate(main())


def test_the_sum_of_what_devices_get_is_the_input() -> None:
    """The control of the two tests above: two lanes together do show the input."""
    sharing = sharing_of("inputs:2")

    async def main() -> None:
        async with World({"d1": "a", "d2": "b"}, options=options_of("int8", "inputs:2")) as world:
            numbers = world.deployment.numbers[0]
            entered = numbers.enter(world.inputs(4))
            shared = numbers.split(entered.x, world.engine.entropy)
            assert isinstance(shared, SharedInputs)
            columns = range(len(world.plan.panels[0].grid.columns))
            lanes = [
                torch.cat(
                    [expanded(piece) for piece in shared.inputs(lane, list(columns), f"party {lane}")],
                    dim=1,
                )
                for lane in range(sharing.lanes)
            ]
            assert torch.equal(lanes[0] + lanes[1], entered.x.to(torch.int32))

    simulate(main())
