"""Sharings by name: what there is, and what a slip is told."""

import pytest

from awfulowl.errors import InputError
from awfulowl.veil.shares import MOST_SHARES, SHARINGS, InputShares, Replicated, sharing_of


def test_no_name_shares_nothing() -> None:
    sharing = sharing_of(None)
    assert (sharing.name, sharing.shares, sharing.lanes, sharing.threshold) == ("none", 1, 1, 1)
    assert sharing.matrices(0) == range(1)
    assert not sharing.hides_weights


@pytest.mark.parametrize("count", range(2, MOST_SHARES + 1))
def test_inputs_are_split_into_as_many_as_are_named(count: int) -> None:
    sharing = sharing_of(f"inputs:{count}")
    assert isinstance(sharing, InputShares)
    assert sharing.name == f"inputs:{count}"
    assert (sharing.shares, sharing.lanes, sharing.threshold) == (count, count, count)
    assert [sharing.matrices(lane) for lane in range(count)] == [range(lane, lane + 1) for lane in range(count)]
    assert not sharing.hides_weights


def test_replicated_shares_hide_weights_too() -> None:
    sharing = sharing_of("replicated")
    assert isinstance(sharing, Replicated)
    assert (sharing.shares, sharing.lanes, sharing.threshold) == (3, 3, 2)
    assert [sharing.matrices(lane) for lane in range(3)] == [range(2), range(2, 3), range(3, 5)]
    assert sharing.hides_weights


def test_every_name_of_the_catalogue_is_its_own() -> None:
    assert [sharing_of(name).name for name in SHARINGS] == list(SHARINGS)


@pytest.mark.parametrize("name", ["inputs:0", "inputs:1", "inputs:9", "inputs:999"])
def test_counts_that_hide_nothing_or_are_slips_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"sharing '{name}': between 2 and 8 shares make sense"):
        sharing_of(name)


@pytest.mark.parametrize(
    "name",
    [
        "inputs",
        "inputs:",
        "inputs:x",
        "inputs:²",
        "inputs:٢",
        "inputs:-2",
        "inputs:+2",
        "inputs: 2",
        "inputs:2 ",
        "inputs:2:2",
        "inputs:1_0",
        "inputs:1000",
        "inputs:" + "9" * 5000,
        "INPUTS:2",
        "Inputs:2",
        "input:2",
        "Replicated",
        "replicated:3",
        "none",
        "None",
        "",
        ":2",
    ],
)
def test_other_names_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(
        InputError, match=r"is none of inputs:2 to inputs:8 and replicated; leave it out to share nothing"
    ) as caught:
        sharing_of(name)
    assert repr(name) in str(caught.value)
