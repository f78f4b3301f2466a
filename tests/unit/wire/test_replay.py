"""What a device remembers, so that nothing is done twice."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import LimitError, ProtocolError
from awfulowl.limits import DEFAULT
from awfulowl.wire.session.replay import Replay, Window


class Remembered:
    """The slow obvious window: every number ever seen."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()

    def is_past(self, number: int) -> bool:
        return bool(self.seen) and number <= max(self.seen) - self.size

    def __contains__(self, number: int) -> bool:
        return number in self.seen or self.is_past(number)

    def add(self, number: int) -> None:
        if not self.is_past(number):
            self.seen.add(number)


@given(
    st.sampled_from([*range(1, 11), 4096]),
    st.lists(
        st.integers(0, 60) | st.integers(4090, 4102) | st.integers(2**62, 2**62 + 30) | st.integers(0, 2**64 - 1),
        max_size=60,
    ),
)
def test_the_window_remembers_like_the_slow_obvious_one(size: int, numbers: list[int]) -> None:
    window, oracle = Window(size), Remembered(size)
    for number in numbers:
        assert window.is_past(number) == oracle.is_past(number)
        assert (number in window) == (number in oracle)
        window.add(number)
        oracle.add(number)
        assert number in window


def test_a_window_begins_where_the_numbers_begin() -> None:
    window = Window(4)
    assert not window.is_past(0)
    window.add(1000)
    assert 999 not in window
    assert 997 not in window
    assert 996 in window


def replay(**changed: int) -> Replay:
    return Replay(dataclasses.replace(DEFAULT, **changed))


def test_a_request_is_admitted_once() -> None:
    memory = replay()
    assert memory.admit(5, changes=False)
    assert not memory.admit(5, changes=False)
    memory.finish(5, [b"answer"])
    assert not memory.admit(5, changes=False)
    assert memory.admit(4, changes=False)


def test_older_than_the_window_is_a_replay() -> None:
    memory = replay(replay_window=10)
    memory.admit(100, changes=False)
    assert memory.admit(91, changes=False)
    with pytest.raises(ProtocolError, match="request 90 is older than the last 10: a replay"):
        memory.admit(90, changes=False)


def test_requests_in_progress_are_bounded_and_one_too_many_may_come_again() -> None:
    memory = replay(max_in_flight=2)
    assert memory.admit(1, changes=False)
    assert memory.admit(2, changes=True)
    with pytest.raises(LimitError, match="max_in_flight of 2"):
        memory.admit(3, changes=False)
    memory.finish(1, [b""])
    assert memory.admit(3, changes=False)


def test_answers_of_changes_are_kept_and_of_others_not() -> None:
    memory = replay()
    memory.admit(1, changes=True)
    memory.admit(2, changes=False)
    assert memory.kept(1) is None
    memory.finish(1, [b"do", b"ne"])
    memory.finish(2, [b"product"])
    assert memory.kept(1) == b"done"
    assert memory.kept(2) is None


def test_kept_answers_do_not_change_with_what_they_were_made_of() -> None:
    memory = replay()
    memory.admit(1, changes=True)
    weights = bytearray(b"before")
    memory.finish(1, [memoryview(weights)])
    weights[:] = b"after!"
    assert memory.kept(1) == b"before"


@pytest.mark.parametrize("limit", [{"remembered_replies": 3}, {"remembered_reply_bytes": 30}], ids=str)
def test_kept_answers_are_bounded_in_number_and_bytes(limit: dict[str, int]) -> None:
    memory = replay(**limit)
    for request_id in range(10):
        memory.admit(request_id, changes=True)
        memory.finish(request_id, [bytes(10)])
    assert [request_id for request_id in range(10) if memory.kept(request_id)] == [7, 8, 9]


def test_an_answer_over_the_limit_is_not_kept_and_the_request_not_done_again() -> None:
    memory = replay(remembered_reply_bytes=5)
    memory.admit(1, changes=True)
    memory.finish(1, [bytes(6)])
    assert memory.kept(1) is None
    assert not memory.admit(1, changes=True)


def test_a_pure_request_can_be_cancelled_and_a_change_is_finished() -> None:
    memory = replay()
    memory.admit(1, changes=False)
    memory.admit(2, changes=True)
    assert memory.cancel(1)
    assert not memory.cancel(1)
    assert not memory.cancel(2)
    assert not memory.cancel(3)
    assert [memory.is_in_progress(request_id) for request_id in (1, 2, 3)] == [False, True, False]
