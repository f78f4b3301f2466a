"""Blocks that come apart, by seeds or as numbers: held like those that come whole, and refused before they are made."""

import itertools
from typing import NoReturn

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.packing import unpack
from awfulowl.arithmetic.products import BACKENDS, Backend
from awfulowl.blocks.kernels import Dense
from awfulowl.device.store import Store
from awfulowl.errors import LimitError, RefusedError
from awfulowl.limits import DEFAULT
from awfulowl.randomness import Seeded, expanded
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Apply, Load
from awfulowl.wire.parts import Sheet, Term
from tests.unit.device.test_store import CONV, sheet, store
from tests.unit.device.test_store_exact import asked, some_integers


def apart(layout: Sheet) -> Sheet:
    return msgspec.structs.replace(layout, apart=True)


def seeds_for(layout: Sheet, dtype: torch.dtype, *size: int) -> list[Tensor | Seeded]:
    """A seed for each block, row by row."""
    return [
        Seeded(bytes([number]) * 32, dtype, (outputs, inputs // layout.groups, *size))
        for number, (outputs, inputs) in enumerate(layout.cut)
    ]


def put_together(layout: Sheet, blocks: list[Tensor | Seeded]) -> Tensor:
    """The matrix of blocks, written out."""
    first = expanded(blocks[0])
    shape = (sum(layout.row_sizes), sum(layout.slice_sizes) // layout.groups, *first.shape[2:])
    whole = torch.empty(shape, dtype=first.dtype)
    tops, lefts = ([0, *itertools.accumulate(sizes)] for sizes in (layout.row_sizes, layout.slice_sizes))
    places = itertools.product(range(len(layout.rows)), range(len(layout.slices)))
    for (row, column), block in zip(places, blocks, strict=True):
        left, right = lefts[column] // layout.groups, lefts[column + 1] // layout.groups
        whole[tops[row] : tops[row + 1], left:right] = expanded(block)
    return whole


@pytest.mark.parametrize("backend", BACKENDS, ids=[backend.name for backend in BACKENDS])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_device_with_seeds_is_one_with_their_numbers(
    backend: Backend, dtype: torch.dtype, data: st.DataObject
) -> None:
    sizes = st.lists(st.integers(1, 5), min_size=1, max_size=3)
    layout = apart(sheet(data.draw(sizes), data.draw(sizes)))
    blocks = [
        seed if data.draw(st.booleans()) else some_integers(dtype, *seed.shape) for seed in seeds_for(layout, dtype)
    ]
    whole = put_together(layout, blocks)
    one, other = store(), store()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("awfulowl.device.store.fastest", lambda _: backend)
        one.load(Load((layout,)), blocks)
        other.load(Load((msgspec.structs.replace(layout, apart=False),)), [whole])
        assert one.held_bytes == other.held_bytes
        assert len(one) == len(other) == len(blocks)
        x = some_integers(dtype, 3, sum(layout.slice_sizes))
        terms = tuple(Term((row,), layout.slices) for row in layout.rows)
        request = Apply(layout.slices, terms, width=dtype.itemsize)
        assert all(map(torch.equal, one.apply(request, x), other.apply(request, x)))
        (held,) = one.fetch(layout.rows, layout.slices)
        assert torch.equal(held, whole)
        assert torch.equal(digest([held]), digest(other.fetch(layout.rows, layout.slices)))


@pytest.mark.parametrize("groups", [1, 4])
def test_seeds_of_convolutions(groups: int) -> None:
    layout = apart(sheet([8], [8], CONV, groups=groups) if groups > 1 else sheet([3, 5], [6, 2], CONV))
    blocks = seeds_for(layout, torch.int8, 3, 3)
    held = store()
    held.load(Load((layout,)), blocks)
    x = some_integers(torch.int8, 2, 8, 5, 6)
    y = unpack(held.apply(asked(layout, 4), x), 4)
    whole = put_together(layout, blocks).double()
    exact = torch.nn.functional.conv2d(x.double(), whole, padding=1, groups=groups)
    assert torch.equal(y.double(), exact)


def test_blocks_of_floats_may_come_apart_with_all_their_parts() -> None:
    layout = apart(sheet([2, 1], [3, 2]))
    parts = [[torch.randn(shape) for shape in layout.cut] for _ in range(3)]
    held = store()
    held.load(Load((layout,), 3, 5), [block for part in parts for block in part])
    for found, part in zip(held.fetch(layout.rows, layout.slices, 3), parts, strict=True):
        assert torch.equal(found, put_together(layout, [*part]))


@pytest.mark.parametrize("rows", [[3], [2, 1]])
def test_what_is_held_is_a_copy_of_what_came(rows: list[int]) -> None:
    layout = apart(sheet(rows, [3]))
    blocks: list[Tensor | Seeded] = [some_integers(torch.int32, *shape) for shape in layout.cut]
    held = store()
    held.load(Load((layout,)), blocks)
    before = put_together(layout, blocks)
    for block in blocks:
        expanded(block).zero_()
    assert torch.equal(held.fetch(layout.rows, layout.slices)[0], before)


@pytest.fixture
def nothing_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    def expand(self: Seeded) -> NoReturn:
        pytest.fail(f"{self} was expanded")

    monkeypatch.setattr(Seeded, "expand", expand)


@pytest.mark.usefixtures("nothing_is_expanded")
def test_seeds_for_more_than_a_device_offers_are_refused_before_they_are_expanded() -> None:
    layout = apart(sheet([500, 500], [500, 501]))
    held = Store(DEFAULT, 4_000_000)
    with pytest.raises(LimitError, match="4004000 bytes of blocks asked for, 4000000 offered"):
        held.load(Load((layout,)), seeds_for(layout, torch.int32))
    assert len(held) == held.held_bytes == 0


def test_seeds_for_more_than_there_is_room_for_leave_what_is_held() -> None:
    first, second = sheet([500], [500]), sheet([500], [501], slice_offset=1)
    held = Store(DEFAULT, 2_000_000)
    held.load(Load((first,)), seeds_for(first, torch.int32))
    with pytest.raises(LimitError, match="2002000 bytes of blocks asked for, 2000000 offered"):
        held.load(Load((second,)), seeds_for(second, torch.int32))
    assert held.held_bytes == 1_000_000
    held.release(first.slices)
    held.load(Load((second,)), seeds_for(second, torch.int32))
    assert held.held_bytes == 1_002_000


SEEDED = Seeded(bytes(32), torch.int32, (2, 3))


@pytest.mark.parametrize(
    ("layout", "tensors", "said"),
    [
        (apart(sheet([2, 1], [3])), [SEEDED], "takes 2 tensors, got 1"),
        (sheet([2, 1], [3]), [SEEDED, SEEDED._replace(shape=(1, 3))], "takes 1 tensors, got 2"),
        (apart(sheet([2, 1], [3])), [SEEDED, SEEDED], "of shape"),
        (apart(sheet([1, 2], [3])), [SEEDED, SEEDED._replace(shape=(1, 3))], "of shape"),
        (apart(sheet([2, 2], [3])), [SEEDED, SEEDED._replace(dtype=torch.int64)], "int64"),
        (apart(sheet([2, 2], [3])), [SEEDED, SEEDED._replace(shape=(2, 3, 1))], "of shape"),
        (apart(sheet([2], [3], CONV)), [SEEDED], "of shape"),
        (apart(sheet([2], [3])), [SEEDED._replace(dtype=torch.uint8)], "uint8"),
        (apart(Sheet((), (), (), (), Dense())), [], "a sheet without blocks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("nothing_is_expanded")
def test_blocks_that_do_not_fit_their_sheet_are_refused(layout: Sheet, tensors: list[Seeded], said: str) -> None:
    held = store()
    with pytest.raises(RefusedError, match=said):
        held.load(Load((layout,)), tensors)
    assert len(held) == 0
