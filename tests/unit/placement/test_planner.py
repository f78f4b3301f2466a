"""Plans as a whole: for any model and fleet a partition that keeps its own rules, or a clear refusal."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError, ModelError, RuleError
from awfulowl.placement.cutting import Layer
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.plan import Plan
from awfulowl.placement.planner import make_plan
from awfulowl.randomness import Entropy
from tests.unit.placement.fleets import (
    chain,
    convolution,
    dense,
    fleet,
    malformations,
    plan,
    some,
    some_devices,
    some_layers,
    violations,
)

SHAPES: list[Shape] = ["columns", "rows", "rectangles", "scattered"]


@settings(some, max_examples=150)
@given(some_layers(), some_devices(), st.sampled_from(["auto", 1, 5, 16, 64]), st.sampled_from(SHAPES))
def test_defaults_place_any_model_on_any_fleet(
    layers: list[Layer], devices: list[Device], block: int, shape: Shape
) -> None:
    made = plan(layers, devices, block=block, shape=shape)
    assert malformations(made) == []
    assert violations(made) == []


@settings(some, max_examples=150)
@given(
    some_layers(),
    some_devices(),
    st.sampled_from([None, 0.1, 0.25, 0.5, 0.8]),
    st.sampled_from([None, 0.3, 0.5, 0.75]),
    st.booleans(),
    st.booleans(),
)
def test_what_is_asked_for_is_kept_or_refused(
    layers: list[Layer],
    devices: list[Device],
    share: float | None,
    domain_share: float | None,
    apart: bool,
    strict: bool,
) -> None:
    options = Options(block=16, share=share, domain_share=domain_share, separate_neighbours=apart, strict=strict)
    try:
        made = make_plan(layers, devices, options)
    except RuleError:
        event("refused")
        return
    event("made, strict" if strict else "made")
    assert malformations(made) == []
    assert violations(made) == []
    assert made.rules.share == (share or made.rules.share)
    assert made.rules.domain_share == (domain_share or made.rules.domain_share)
    if strict:
        assert not any("relaxed" in note for note in made.notes)
        assert min(len(panel.grid.columns) for panel in made.panels) >= 2


@settings(some, max_examples=50)
@given(some_layers(), st.integers(1, 14))
def test_in_one_domain_every_layer_is_dealt_evenly(layers: list[Layer], devices: int) -> None:
    made = plan(layers, fleet(devices), block=8)
    for index in range(len(made.panels)):
        counts = [len(made.ledger.seen(index, device.name)) for device in made.devices]
        assert max(counts) - min(counts) <= 1


def test_layers_with_one_input_become_one_panel() -> None:
    layers = [
        dense("block/q", 16, 32, source=1),
        dense("block/k", 8, 32, source=1),
        dense("block/v", 24, 32, source=1),
        dense("block/out", 32, 24, source=2),
    ]
    made = plan(layers, fleet(4), block=8)
    assert [panel.name for panel in made.panels] == ["block/q+block/k+block/v", "block/out"]
    assert [(member.product, member.rows.start, member.rows.stop) for member in made.panels[0].members] == [
        ("block/q", 0, 16),
        ("block/k", 16, 24),
        ("block/v", 24, 48),
    ]
    assert made.panels[0].grid.outputs == 48
    assert made.neighbours == ((0, 1),)
    assert [panel.first for panel in made.panels] == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        dense("other", 8, 32, source=2),
        dense("other", 8, 32),
        dense("other", 8, 16, source=1),
        dense("other", 8, 32, source=1, positions=5),
        convolution("other", 8, 32)._replace(input=1),
    ],
)
def test_layers_that_differ_are_panels_of_their_own(other: Layer) -> None:
    assert len(plan([dense("one", 8, 32, source=1), other], fleet(2)).panels) == 2


def test_layers_that_do_not_follow_each_other_are_not_joined() -> None:
    layers = [dense("one", 8, 32, source=1), dense("two", 8, 8, source=2), dense("three", 8, 32, source=1)]
    assert len(plan(layers, fleet(2)).panels) == 3


def test_without_an_example_the_plan_says_what_it_assumed() -> None:
    assert any("order of definition" in note for note in plan([dense("one", 8, 8)], fleet(2)).notes)
    assert not any("order of definition" in note for note in plan(chain(8, 8, 8), fleet(2)).notes)


def test_a_seeded_plan_is_repeatable_and_says_unsafe() -> None:
    one, same, other = (plan(chain(64, 64, 10), fleet(4), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.unsafe
    assert any("UNSAFE" in note for note in one.notes)


def test_an_unseeded_plan_is_neither() -> None:
    one, other = plan(chain(64, 64, 10), fleet(4)), plan(chain(64, 64, 10), fleet(4))
    assert one != other
    assert not one.unsafe
    assert not any("UNSAFE" in note for note in one.notes)


def test_neighbours_are_served_by_other_domains() -> None:
    made = plan(chain(64, 64, 64, 64, 10), fleet(12, domains=4), separate_neighbours=True)
    assert violations(made) == []
    served = [set(domains) for domains in made.ledger.domains]
    assert all(not one & other for one, other in pairwise(served))
    assert len(set.union(*served)) == 4


def test_neighbours_need_two_domains() -> None:
    with pytest.raises(RuleError, match=r"separate neighbours.*two domains"):
        plan(chain(8, 8, 8), fleet(4), separate_neighbours=True)
    assert len(plan(chain(8, 8), fleet(4), separate_neighbours=True).panels) == 1


def kept(made: Plan) -> dict[str, str]:
    return dict(made.kept)


def test_what_is_to_be_kept_is_kept_with_everything_below() -> None:
    layers = [
        dense("stem", 8, 8),
        dense("block.attention/q", 8, 8),
        dense("block.attention/k", 8, 8),
        dense("blocks", 8, 8),
    ]
    made = make_plan(layers, fleet(2), Options(keep=("block",)), kept=[("norm", "no weights")])
    assert [panel.name for panel in made.panels] == ["stem", "blocks"]
    assert kept(made) == {
        "norm": "no weights",
        "block.attention/q": "kept by request",
        "block.attention/k": "kept by request",
    }


def test_one_product_of_a_module_can_be_kept() -> None:
    made = plan([dense("a/q", 8, 8), dense("a/k", 8, 8)], fleet(2), keep=("a/q",))
    assert [panel.name for panel in made.panels] == ["a/k"]


def test_keeping_what_is_kept_anyway_is_no_error() -> None:
    made = make_plan([dense("one", 8, 8)], fleet(2), Options(keep=("norm",)), kept=[("norm", "no weights")])
    assert kept(made) == {"norm": "no weights"}


def test_keeping_what_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match="'lstm', which is no layer"):
        plan([dense("one", 8, 8)], fleet(2), keep=("lstm",))


def test_nothing_to_scatter_is_an_error_with_reasons() -> None:
    with pytest.raises(ModelError, match=r"nothing is left to scatter \(norm: no weights; one: kept by request\)"):
        make_plan([dense("one", 8, 8)], fleet(2), Options(keep=("one",)), kept=[("norm", "no weights")])
    with pytest.raises(ModelError, match=r"nothing is left to scatter$"):
        plan([], fleet(2))


def test_layers_without_weights_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"empty has a weight of shape \(0, 8\)"):
        plan([dense("empty", 0, 8)], fleet(2))


def test_no_devices_are_an_error() -> None:
    with pytest.raises(RuleError, match="no devices"):
        plan([dense("one", 8, 8)], [])


def test_names_must_differ() -> None:
    with pytest.raises(InputError, match="device 'd0' is named twice"):
        plan([dense("one", 8, 8)], [Device("d0", "a"), Device("d0", "b")])
    with pytest.raises(InputError, match="layer 'one' is named twice"):
        plan([dense("one", 8, 8), dense("one", 8, 8)], fleet(2))


def test_strict_names_the_layer_that_cannot_keep_the_rules() -> None:
    with pytest.raises(RuleError, match="layer0"):
        plan(chain(512, 512, 10), fleet(4, domains=4), strict=True)


def test_positions_pass_through() -> None:
    layer = convolution("conv", 8, 8, positions=16)._replace(input_positions=64)
    panel = plan([layer], fleet(2)).panels[0]
    assert (panel.positions, panel.input_positions) == (16, 64)
    panel = plan([convolution("conv", 8, 8, positions=16)], fleet(2)).panels[0]
    assert (panel.positions, panel.input_positions) == (16, 16)


@pytest.mark.parametrize("devices", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("width", [96, 100])
def test_a_deep_model_is_even(devices: int, width: int) -> None:
    """Columns that the devices may not divide, with or without a ragged one: the rest goes round."""
    made = plan(chain(*[width] * 12), fleet(devices), seed=1, block=-(-width // 12))
    held: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for panel in made.panels:
        for cell in panel.cells:
            first[cell.holders[0]] += 1
            for name in cell.holders:
                held[name] += panel.grid.columns[cell.column].span.size
    assert max(held.values()) - min(held.values()) <= 9
    assert max(first.values()) - min(first.values()) <= 3


def test_the_secret_order_and_the_handles_come_from_the_entropy() -> None:
    orders = {plan([dense("one", 8, 64)], fleet(2), seed=seed, block=8).panels[0].order for seed in range(20)}
    assert len(orders) == 20
    made = make_plan([dense("one", 8, 64)], fleet(2), Options(block=8), Entropy(3))
    assert all(len(handle) == 16 for handle in made.panels[0].slice_handles + made.panels[0].row_handles)
