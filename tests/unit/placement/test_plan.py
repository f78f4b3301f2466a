"""The plan as a value: msgpack and back, digests, weights of blocks, and that nothing secret is ever shown."""

import io
import math

import msgspec
import pytest
import torch
from hypothesis import given
from rich.console import Console
from rich.pretty import Pretty
from torch import nn

from awfulowl.blocks.grid import rectangle
from awfulowl.placement.cutting import Layer
from awfulowl.placement.plan import PLAN_VERSION, Cell, Plan, model_digest, weights
from tests.unit.placement.fleets import fleet, plan, small_plan, some, some_layers


@some
@given(some_layers())
def test_a_plan_survives_msgpack(layers: list[Layer]) -> None:
    made = plan(layers, fleet(5), block=8)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Plan) == made


def test_unknown_fields_are_refused() -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(small_plan()))
    fields["surprise"] = 1
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Plan)


def test_a_plan_has_what_later_versions_need() -> None:
    made = small_plan()
    assert (made.version, made.arithmetic, made.sharing) == (PLAN_VERSION, "float32", None)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        small_plan().unsafe = False  # type: ignore[misc]


def shown(value: object) -> str:
    """What people get to see of a value, in every way that is common."""
    out = io.StringIO()
    Console(file=out, width=1000).print(Pretty(value, expand_all=True))
    return "\n".join([repr(value), str(value), f"{value}", out.getvalue()])


def test_no_repr_shows_positions_handles_or_holders() -> None:
    made = small_plan()
    for value in (made, *made.panels, *made.panels[0].cells, made.ledger):
        text = shown(value)
        assert not any(device.name in text for device in made.devices)
        assert not any(
            repr(handle)[2:-1] in text or handle.hex() in text
            for panel in made.panels
            for handle in panel.row_handles + panel.slice_handles
        )
        assert "order" not in text
        assert "holders" not in text


def test_a_repr_shows_counts() -> None:
    made = small_plan()
    assert repr(made.panels[0]) == "Panel(name='conv', rows=2, columns=3, blocks=6)"
    assert repr(made).startswith("Plan(panels=3, blocks=")
    assert repr(made).endswith("unsafe=True)")
    assert repr(Cell(3, (1, 2), ("d5",))) == "Cell()"


def test_what_surrounds_a_secret_hides_it_too() -> None:
    made = small_plan()
    assert "d5" not in repr([made.panels[0].cells, {"plan": made}])


@some
@given(some_layers())
def test_weights_are_those_of_the_rectangle_that_is_cut(layers: list[Layer]) -> None:
    for panel in plan(layers, fleet(3), block=8).panels:
        whole = torch.zeros(panel.grid.shape)
        counted = 0
        for cell in panel.cells:
            counted += weights(panel.grid, cell.column, cell.rows)
            piece = rectangle([whole], panel.grid, cell.rows, [cell.column])
            assert weights(panel.grid, cell.column, cell.rows) == piece.numel()
        assert counted == math.prod(panel.grid.shape)


def digest(model: nn.Module) -> bytes:
    return model_digest(model.named_parameters())


def test_a_digest_knows_names_shapes_and_types_but_not_values() -> None:
    one = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert digest(one) == digest(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert len(digest(one)) == 32
    others = [
        nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)),
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double(),
    ]
    assert len({digest(one), *map(digest, others)}) == 5


def test_a_digest_does_not_depend_on_the_order_of_parameters() -> None:
    named = list(nn.Linear(4, 3).named_parameters())
    assert model_digest(named) == model_digest(reversed(named))


def test_a_digest_is_unambiguous() -> None:
    assert model_digest([("ab", torch.zeros(1))]) != model_digest([("a", torch.zeros(1)), ("b", torch.zeros(1))])
    assert model_digest([("a", torch.zeros(1, 2))]) != model_digest([("a", torch.zeros(2, 1))])
