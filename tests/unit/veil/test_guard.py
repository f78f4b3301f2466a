"""The owner's guard: no domain gets two shares of the same inputs, whoever asks and how often."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Dense
from awfulowl.errors import LocalError
from awfulowl.randomness import Entropy, Seeded
from awfulowl.veil.base import SharedInputs, Sharing, Unshared
from awfulowl.veil.shares import InputShares, Replicated

GRID = make_grid((4, 24), Dense(), 1, block=4)
COLUMNS = len(GRID.columns)
SHARINGS = [InputShares(2), InputShares(3), InputShares(8), Replicated()]

each_sharing = pytest.mark.parametrize("sharing", SHARINGS, ids=lambda sharing: sharing.name)


def shared(sharing: Sharing, seed: int = 0) -> SharedInputs:
    x = torch.randint(-127, 128, (3, 24), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    return SharedInputs(sharing, x, GRID, torch.int32, Entropy(seed))


def content(pieces: list[torch.Tensor | Seeded]) -> list[object]:
    return [piece if isinstance(piece, Seeded) else piece.tolist() for piece in pieces]


@each_sharing
def test_a_second_lane_of_a_column_is_refused_for_ever(sharing: Sharing) -> None:
    inputs = shared(sharing)
    inputs.inputs(0, [0, 1], "alice")
    for _ in range(3):
        with pytest.raises(LocalError, match=r"domain 'alice' would get two shares of the same inputs.*column 1"):
            inputs.inputs(1, [1, 2], "alice")
    with pytest.raises(LocalError, match="'alice'"):
        inputs.inputs(sharing.lanes - 1, [0], "alice")


@each_sharing
def test_a_refusal_says_whose_defect_it_is_and_shows_no_number(sharing: Sharing) -> None:
    inputs = shared(sharing)
    (piece,) = [one for one in inputs.inputs(0, [0], "alice") if isinstance(one, Seeded)][:1]
    with pytest.raises(LocalError, match=r"nothing was sent to it.*defect of the placement: please report") as caught:
        inputs.inputs(1, [0], "alice")
    assert piece.seed.hex() not in str(caught.value)
    assert repr(piece.seed) not in str(caught.value)


@each_sharing
def test_a_failover_within_the_domain_gets_the_same_numbers(sharing: Sharing) -> None:
    inputs = shared(sharing)
    for lane in range(sharing.lanes):
        first = content(inputs.inputs(lane, [2, 0], f"party{lane}"))
        assert content(inputs.inputs(lane, [2, 0], f"party{lane}")) == first
    with pytest.raises(LocalError):
        inputs.inputs(1, [0], "party0")
    assert len(inputs.inputs(0, [0], "party0")) == len(sharing.matrices(0))


@each_sharing
def test_a_failover_to_another_domain_gets_the_same_numbers(sharing: Sharing) -> None:
    inputs = shared(sharing)
    assert content(inputs.inputs(1, [0, 3], "alice")) == content(inputs.inputs(1, [0, 3], "bob"))


@each_sharing
def test_other_columns_may_be_of_other_lanes(sharing: Sharing) -> None:
    inputs = shared(sharing)
    for column in range(COLUMNS):
        assert inputs.inputs(column % sharing.lanes, [column], "alice")


@each_sharing
def test_other_batches_are_guarded_by_themselves(sharing: Sharing) -> None:
    """Each batch has pads of its own: two of its shares are unrelated to those of the next."""
    shared(sharing).inputs(0, [0], "alice")
    assert shared(sharing, seed=1).inputs(1, [0], "alice")


@each_sharing
@pytest.mark.parametrize("ring", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_floats_are_not_shared(sharing: Sharing, ring: torch.dtype) -> None:
    """Their shares are not uniform: most of the inputs would stand in them as they are."""
    with pytest.raises(LocalError, match=rf"'{sharing.name}' of {ring} would show the inputs; nothing was split"):
        SharedInputs(sharing, torch.zeros(3, 24), GRID, ring, Entropy(0))
    assert SharedInputs(Unshared(), torch.zeros(3, 24), GRID, ring, Entropy(0)).inputs(0, [0], "alice")


def test_names_of_domains_are_told_apart() -> None:
    inputs = shared(InputShares(2))
    for number, name in enumerate(["alice", "Alice", "alice ", "", "ál"]):
        assert inputs.inputs(number % 2, [0], name)


def test_without_a_sharing_everybody_may_have_everything() -> None:
    inputs = shared(Unshared())
    for domain in ("alice", "bob", "alice"):
        (x,) = inputs.inputs(0, range(COLUMNS), domain)
        assert isinstance(x, torch.Tensor)
        assert x.dtype is torch.int8


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.lists(st.integers(0, COLUMNS - 1), min_size=1, max_size=4),
        st.sampled_from(["alice", "bob", "carol"]),
    ),
    max_size=25,
)


@each_sharing
@settings(max_examples=50, deadline=None)
@given(REQUESTS)
def test_whatever_is_asked_no_domain_has_two_lanes_of_a_column(
    sharing: Sharing, requests: list[tuple[int, list[int], str]]
) -> None:
    inputs = shared(sharing)
    handed: dict[tuple[str, int], set[int]] = {}
    for number, columns, domain in requests:
        lane = number % sharing.lanes
        try:
            inputs.inputs(lane, columns, domain)
        except LocalError:
            # Refused for a reason: it would have been a second lane, or a request with one was refused before.
            continue
        for column in columns:
            handed.setdefault((domain, column), set()).add(lane)
    assert all(len(lanes) == 1 for lanes in handed.values())


@each_sharing
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, COLUMNS - 1)), min_size=1, max_size=12))
def test_nothing_is_refused_without_a_reason(sharing: Sharing, asked: list[tuple[int, int]]) -> None:
    inputs = shared(sharing)
    first: dict[int, int] = {}
    for number, column in asked:
        lane = number % sharing.lanes
        if first.setdefault(column, lane) == lane:
            assert inputs.inputs(lane, [column], "alice")
        else:
            with pytest.raises(LocalError):
                inputs.inputs(lane, [column], "alice")
