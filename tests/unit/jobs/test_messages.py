"""What passes between the sandbox and the outside: whole messages, or an error."""

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import ProtocolError
from awfulowl.jobs.messages import (
    MAX_EVENT_BYTES,
    Event,
    Failed,
    Finished,
    Order,
    Progress,
    Stage,
    read_events,
    read_exactly,
    read_order,
    write,
)

ORDER = Order(action="run", job=b"job", code=b"code", files={"a.bin": 3}, directory="proof")
EVENTS: list[Event] = [Stage("training"), Progress(3, 9, 0.5), Finished(b"result"), Failed("raised", "why")]


def written(*values: msgspec.Struct) -> io.BytesIO:
    """A pipe with messages in it."""
    pipe = io.BytesIO()
    for value in values:
        write(pipe, value)
    pipe.seek(0)
    return pipe


def test_messages_come_as_they_went() -> None:
    assert read_order(written(ORDER)) == ORDER
    assert list(read_events(written(*EVENTS))) == EVENTS


@given(st.integers(0, 60))
def test_a_message_that_is_cut_short_is_refused(length: int) -> None:
    content = written(ORDER).getvalue()
    with pytest.raises(ProtocolError):
        read_order(io.BytesIO(content[: min(length, len(content) - 1)]))


@given(st.binary(max_size=80))
def test_any_bytes_are_events_or_refused(content: bytes) -> None:
    for framed in (content, len(content).to_bytes(4, "big") + content):
        try:
            found = list(read_events(io.BytesIO(framed)))
        except ProtocolError:
            continue
        assert all(isinstance(event, Event) for event in found)


def test_a_message_that_claims_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="more than"):
        list(read_events(io.BytesIO((MAX_EVENT_BYTES + 1).to_bytes(4, "big"))))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "Failed", "reason": "bored", "text": ""},
        {"type": "Failed", "reason": "raised", "text": "x" * 5000},
        {"type": "Other"},
        {"type": "Stage", "text": "a", "more": 1},
        [],
    ],
)
def test_events_that_there_are_not_are_refused(value: object) -> None:
    content = msgspec.msgpack.encode(value)
    with pytest.raises(ProtocolError):
        list(read_events(io.BytesIO(len(content).to_bytes(4, "big") + content)))


def test_data_that_does_not_come_is_missed() -> None:
    assert read_exactly(io.BytesIO(b"abc"), 3) == b"abc"
    with pytest.raises(ProtocolError, match="cut short"):
        read_exactly(io.BytesIO(b"ab"), 3)
