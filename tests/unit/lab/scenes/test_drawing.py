"""What a pirate gets, with and without a plan, and what it does not."""

import pytest
import torch

from awfulowl.errors import InputError
from awfulowl.lab.scenes.drawing import Cut, attackable, draw, grids_of, largest_layer
from awfulowl.lab.scenes.loot import assemble, cut_blocks, held_share, positions
from awfulowl.lab.scenes.threat import make_threat
from awfulowl.placement.naming import name_devices
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.randomness import Entropy
from tests.scenes import digits, tiny_scene, tiny_victim, whole_scene


def plan(shape: str = "columns", **options: object) -> Plan:
    chosen = Options(block=16, replicas=1, shape=shape, **options)  # type: ignore[arg-type]
    return plan_model(tiny_victim().model, digits().test.inputs[:1], name_devices(10), chosen, Entropy(3))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_share_of_the_blocks_is_held_and_their_places_are_the_truth(share: float) -> None:
    scene, truth = tiny_scene(share=share)
    spoils = scene.layers["hidden"]
    assert len(spoils) == round(share * spoils.grid.blocks)
    weight = tiny_victim().model.get_submodule("hidden").get_parameter("weight")
    places = truth.positions["hidden"]
    assert all(torch.equal(*pair) for pair in zip(spoils.blocks, cut_blocks(weight, spoils.grid, places), strict=True))
    assert len(set(map(tuple, places.tolist()))) == len(places)
    if share == 1.0:
        assert torch.equal(assemble(spoils, places), weight)


def test_layers_are_cut_in_order_and_unknown_ones_refused() -> None:
    layers = ("conv", "inner", "hidden", "head")
    grids = grids_of(tiny_victim().model, layers[::-1], 8)
    assert list(grids) == list(layers)
    assert {grid.rows[0].size for grid in grids.values()} == {8}
    assert grids_of(tiny_victim().model, (), 8) == {}
    with pytest.raises(InputError, match="no layer 'hidde' that can be attacked; did you mean 'hidden'"):
        grids_of(tiny_victim().model, ("hidde",), 8)


def test_the_order_of_blocks_says_nothing() -> None:
    places = tiny_scene(share=1.0)[1].positions["hidden"]
    assert not torch.equal(places, positions(tiny_scene(share=1.0)[0].layers["hidden"].grid))


def test_equal_seeds_draw_equal_loot_and_others_other_loot() -> None:
    data, victim, threat = digits(), tiny_victim(), make_threat({"share": 0.5})
    first, again, other = (
        draw(victim, data, threat, Cut(layers=("hidden",), block=16), seed=seed)[1].positions["hidden"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_attacked_weights_are_not_in_the_scene_and_the_rest_is() -> None:
    scene, truth = tiny_scene()
    state, known = truth.victim.state_dict(), scene.model.state_dict()
    assert scene.unknown == {"hidden.weight"}
    assert not known["hidden.weight"].any()
    assert all(torch.equal(known[name], state[name]) for name in state if name != "hidden.weight")
    assert torch.equal(scene.layers["hidden"].bias, state["hidden.bias"])  # type: ignore[arg-type]


def test_what_is_not_known_is_not_there() -> None:
    scene, _ = tiny_scene(knows_biases=False, knows_labels=False, sees_inputs=False)
    assert scene.unknown == {"hidden.weight", "hidden.bias"}
    assert not scene.model.state_dict()["hidden.bias"].any()
    assert scene.layers["hidden"].bias is None
    assert scene.public.labels.eq(-1).all()
    assert scene.validation.labels.eq(-1).all()
    assert scene.layers["hidden"].together is scene.layers["hidden"].columns is None
    assert not scene.service.seen
    blind, truth = tiny_scene(knows_inputs=False)
    assert len(blind.public.labels) == len(blind.validation.labels) == 0
    assert len(truth.validation.labels) > 0


def test_of_a_whole_model_nothing_is_in_clear_and_no_seed_is_the_victim_s() -> None:
    scene, truth = whole_scene()
    assert scene.unknown == set(truth.victim.state_dict())
    assert set(scene.layers) == set(attackable(truth.victim))
    for name, tensor in scene.model.state_dict().items():
        assert not torch.equal(tensor, truth.victim.state_dict()[name])
        assert not torch.equal(tensor, scene.build(truth.seed).state_dict()[name])
    assert all(spoils.columns is None and spoils.bias is None for spoils in scene.layers.values())


def test_blocks_with_equal_inputs_are_known_by_them() -> None:
    scene, truth = tiny_scene(share=1.0)
    spoils, columns = scene.layers["hidden"], truth.positions["hidden"][:, 1]
    assert spoils.together is not None
    assert torch.equal(spoils.together[:, None] == spoils.together, columns[:, None] == columns)
    assert spoils.columns is not None
    assert torch.equal(spoils.columns, columns)
    seen = scene.service.seen["hidden"]
    assert seen.all()


@pytest.mark.parametrize("shape", ["columns", "rows", "rectangles", "scattered"])
def test_loot_of_a_plan_is_what_its_devices_hold(shape: str) -> None:
    made = plan(shape)
    threat = make_threat({"share": 0.3})
    scene, truth = draw(tiny_victim(), digits(), threat, Cut(layers=("hidden",), plan=made), seed=4)
    spoils = scene.layers["hidden"]
    panel = next(panel for panel in made.panels if panel.members[0].product == "hidden")
    assert spoils.grid == panel.grid
    assert 0.1 < held_share(spoils) <= 0.5
    holders = {(row, cell.column): cell.holders for cell in panel.cells for row in cell.rows}
    taken = {tuple(place) for place in truth.positions["hidden"].tolist()}
    pirates = {device for place in taken for device in holders[place]}
    assert len(pirates) <= 3
    if shape == "columns":
        assert {place for place in holders if pirates & set(holders[place])} == taken


def test_plans_that_attacks_do_not_know_are_refused() -> None:
    threat = make_threat({"share": 0.3})
    kept = plan(keep=("hidden",))
    with pytest.raises(InputError, match="does not scatter 'hidden'"):
        draw(tiny_victim(), digits(), threat, Cut(layers=("hidden",), plan=kept), seed=4)
    exact = plan(arithmetic="int8")
    with pytest.raises(InputError, match="shares or quantises"):
        draw(tiny_victim(), digits(), threat, Cut(layers=("hidden",), plan=exact), seed=4)


def test_controls_get_another_network_s_blocks_and_the_victim_s_service() -> None:
    foreign = tiny_victim(1).model
    cut, threat = Cut(layers=("hidden",), block=16), make_threat({"share": 0.5})
    scene, truth = draw(tiny_victim(), digits(), threat, cut, seed=1, source=foreign)
    weight = foreign.get_submodule("hidden").get_parameter("weight")
    expected = cut_blocks(weight, scene.layers["hidden"].grid, truth.positions["hidden"])
    assert all(torch.equal(*pair) for pair in zip(scene.layers["hidden"].blocks, expected, strict=True))
    assert truth.victim is tiny_victim().model
    own = tiny_scene(share=0.5)[1].positions["hidden"]
    assert torch.equal(truth.positions["hidden"], own)


@pytest.mark.parametrize(
    ("fields", "cut", "complaint"),
    [
        ({}, Cut(layers=("nose",)), "no layer 'nose' that can be attacked; there are conv, inner, hidden, head"),
        ({"public": 5000}, Cut(layers=("hidden",)), "public = 5000, and the data leave 300 images"),
        ({"share": 0.001}, Cut(layers=("hidden",), block=64), "is no block at all"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], cut: Cut, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        draw(tiny_victim(), digits(), make_threat({"share": 0.3, **fields}), cut, seed=1)


def test_the_largest_layer_and_the_automatic_block() -> None:
    assert largest_layer(tiny_victim().model) == "hidden"
    scene, _ = draw(tiny_victim(), digits(), make_threat({"share": 1.0}), Cut(layers=("hidden",)), seed=0)
    assert scene.layers["hidden"].blocks[0].shape == (16, 16)
