"""Requests and their ends: both ends, linked; nothing is done twice, and nothing ends twice."""

import dataclasses
from collections.abc import Callable

import msgspec
import pytest
import torch

from awfulowl.errors import (
    GoneError,
    InputError,
    LimitError,
)
from awfulowl.limits import DEFAULT
from awfulowl.randomness import Entropy, expanded
from awfulowl.wire.frames import Frame
from awfulowl.wire.messages import (
    Answer,
    Body,
    Error,
    Refuse,
    Request,
)
from awfulowl.wire.session import (
    Answered,
    Cancelled,
    DeviceSession,
    Evicted,
    Expired,
    Failed,
    OwnerSession,
    Refused,
    Repeat,
    Requested,
    Timing,
)
from tests.unit.wire.linked import (
    APPLY,
    COMMIT,
    FETCH,
    FREEZE,
    LOAD,
    MEASURE,
    RELEASE,
    SLICE,
    STEP,
    TERM,
    TRANSPOSED,
    Linked,
    X,
    asked,
    forged,
    violation,
)

IN_PARTS = msgspec.structs.replace(APPLY, terms=(TERM, TERM), width=7)
STATE = msgspec.structs.replace(FETCH, parts=3, frozen=2)


@pytest.mark.parametrize(
    "body",
    [LOAD, APPLY, IN_PARTS, TRANSPOSED, STEP, MEASURE, FREEZE, RELEASE, FETCH, STATE, COMMIT],
    ids=lambda body: type(body).__name__,
)
def test_a_request_goes_there_and_its_answer_comes_back(body: Request) -> None:
    linked = Linked().opened()
    request_id = linked.ask(body)
    request = asked(linked)
    assert (request.id, request.body) == (request_id, body)
    answer = [X * 2] * body.answer_tensors()
    linked.to_owner += linked.device.answer(request_id, answer)
    (answered,) = linked.hear_device()
    assert isinstance(answered, Answered)
    assert answered.id == request_id
    assert all(torch.equal(tensor, X * 2) for tensor in answered.tensors)
    assert len(answered.tensors) == len(answer)


def test_the_tensors_of_a_request_arrive_with_it() -> None:
    linked = Linked().opened()
    linked.ask(APPLY)
    (x,) = asked(linked).tensors
    assert torch.equal(expanded(x), X)


def test_texts_of_events_show_no_tensor_and_no_frame() -> None:
    linked = Linked().opened()
    linked.ask(APPLY)
    request = asked(linked)
    linked.to_owner += linked.device.answer(request.id, [X])
    (answered,) = linked.hear_device()
    for shown in (repr(request), repr(answered), repr(Repeat([b"frame"]))):
        assert "tensor" not in shown
        assert "frame" not in shown


def test_ids_count_up_and_never_come_again() -> None:
    linked = Linked().opened()
    first = linked.ask(APPLY)
    assert linked.ask(STEP) == first + 1
    linked.device = linked.new_device(3)
    linked.opened()
    assert linked.ask(APPLY) == first + 2
    assert OwnerSession("device-1", DEFAULT, Entropy(5), Timing())._next_id != linked.owner._first_id


def test_a_refusal_and_an_error_arrive_short_and_printable() -> None:
    linked = Linked().opened()
    requests = [linked.ask(APPLY), linked.ask(APPLY)]
    linked.hear_owner()
    linked.to_owner += linked.device.refuse(requests[0], "no\x1b[31m room" + "!" * 5000)
    linked.to_owner += linked.device.error(requests[1], "out of\nmemory")
    refused, failed = linked.hear_device()
    assert refused == Refused(requests[0], ("no?[31m room" + "!" * 5000)[:1024])
    assert failed == Failed(requests[1], "out of?memory")


def test_an_owner_cuts_what_a_device_did_not() -> None:
    linked = Linked(limits=dataclasses.replace(DEFAULT, max_text_chars=4)).opened()
    request_id = linked.ask(APPLY)
    handle = linked.device.handle
    assert handle is not None
    events = linked.owner.receive(forged(handle, Refuse(to=request_id, reason="\tlonger")), linked.now)
    assert events == [Refused(request_id, "?lon")]


def test_an_evicted_slice_is_told() -> None:
    linked = Linked().opened()
    linked.to_owner += linked.device.evict([SLICE], "no\0room")
    assert linked.hear_device() == [Evicted((SLICE,), "no?room")]


def test_an_answer_nobody_waits_for_is_ignored_and_counted() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY)
    linked.hear_owner()
    linked.to_owner += linked.device.answer(request_id, [X])
    assert len(linked.hear_device()) == 1
    handle = linked.owner.handle
    assert handle is not None
    late: list[Body] = [Answer(to=request_id), Refuse(to=request_id, reason=""), Error(to=5, reason="")]
    for number, body in enumerate(late):
        assert linked.owner.receive(forged(handle, body, number=number), linked.now) == []
    assert linked.owner.ignored == 3


@pytest.mark.parametrize(
    ("body", "wanted", "came"), [(APPLY, 1, 2), (APPLY, 1, 0), (IN_PARTS, 6, 2), (IN_PARTS, 6, 5), (IN_PARTS, 6, 7)]
)
def test_an_answer_with_the_wrong_number_of_tensors_is_a_violation_and_ends_the_request(
    body: Request, wanted: int, came: int
) -> None:
    linked = Linked().opened()
    request_id = linked.ask(body)
    linked.hear_owner()
    linked.to_owner += linked.device.answer(request_id, [X] * came)
    refused, failed = linked.hear_device()
    fault = f"an answer of {came} tensors where {wanted} were asked for"
    assert fault in str(violation([refused]))
    assert failed == Failed(request_id, fault)
    assert linked.owner.free_credit_bytes == DEFAULT.credit_bytes


def test_an_answer_that_cannot_be_sent_leaves_the_request_open() -> None:
    linked = Linked(limits=dataclasses.replace(DEFAULT, max_message_bytes=1000)).opened()
    request_id = linked.ask(APPLY)
    linked.hear_owner()
    with pytest.raises(LimitError, match="max_message_bytes is 1000"):
        linked.device.answer(request_id, [torch.zeros(1000)])
    with pytest.raises(InputError, match="complex"):
        linked.device.answer(request_id, [torch.zeros(1, dtype=torch.complex64)])
    linked.to_owner += linked.device.error(request_id, "too large")
    assert linked.hear_device() == [Failed(request_id, "too large")]
    assert linked.device.answer(request_id, [X]) == []


def test_a_request_over_a_limit_is_not_sent() -> None:
    linked = Linked(limits=dataclasses.replace(DEFAULT, max_message_bytes=600, max_in_flight=2)).opened()
    with pytest.raises(LimitError, match="max_message_bytes"):
        linked.owner.request(APPLY, [torch.zeros(1000, 3)], deadline=1.0)
    assert linked.owner.free_credit_bytes == DEFAULT.credit_bytes
    requests = [linked.ask(APPLY), linked.ask(STEP)]
    with pytest.raises(LimitError, match="max_in_flight of 2"):
        linked.ask(APPLY)
    assert linked.ask(STEP, repeat_of=requests[1]) == requests[1]


def test_the_device_bounds_what_is_in_progress_too() -> None:
    few = dataclasses.replace(DEFAULT, max_in_flight=1)
    linked = Linked().opened()
    linked.device = DeviceSession("device-1", few, Entropy(7), 1, 1)
    linked.opened()
    first, second = linked.ask(APPLY), linked.ask(APPLY)
    request, refused = linked.hear_owner()
    assert isinstance(request, Requested)
    assert isinstance(violation([refused]), LimitError)
    linked.to_owner += linked.device.answer(first, [X])
    linked.hear_device()
    assert second in linked.owner._open


def test_credit_is_taken_by_requests_and_given_back_when_they_end() -> None:
    linked = Linked().opened()
    whole = linked.owner.free_credit_bytes
    assert whole == DEFAULT.credit_bytes
    x = torch.zeros(1000)
    request_id, sent = linked.owner.request(APPLY, [x], deadline=200.0, answer_bytes=5000)
    taken = whole - linked.owner.free_credit_bytes
    assert x.nbytes + 5000 < taken <= sum(map(len, sent)) + 5000
    linked.owner.cancel(request_id)
    assert linked.owner.free_credit_bytes == whole


def test_a_request_larger_than_all_credit_goes_below_zero() -> None:
    linked = Linked(limits=dataclasses.replace(DEFAULT, credit_bytes=100)).opened()
    linked.ask(APPLY)
    assert linked.owner.free_credit_bytes < 0
    linked.tick(3.0)
    assert linked.owner.free_credit_bytes == 100


def test_a_repeated_request_takes_its_credit_once() -> None:
    linked = Linked().opened()
    request_id = linked.ask(STEP)
    once = linked.owner.free_credit_bytes
    linked.ask(STEP, repeat_of=request_id)
    assert linked.owner.free_credit_bytes == once


def test_a_doubled_request_is_done_once() -> None:
    linked = Linked().opened()
    linked.ask(APPLY)
    linked.to_device *= 2
    asked(linked)


@pytest.mark.parametrize("body", [LOAD, STEP, FREEZE, RELEASE], ids=lambda body: type(body).__name__)
@pytest.mark.parametrize("outcome", ["answered", "refused", "failed"])
def test_a_change_asked_for_again_gets_its_outcome_again(body: Request, outcome: str) -> None:
    linked = Linked().opened()
    request_id = linked.ask(body)
    asked(linked)
    tell: Callable[[], list[Frame]] = {
        "answered": lambda: linked.device.answer(request_id, []),
        "refused": lambda: linked.device.refuse(request_id, "full"),
        "failed": lambda: linked.device.error(request_id, "broken"),
    }[outcome]
    tell()  # and the network loses it
    assert linked.tick(3.0)[0] == [Expired(request_id)]
    assert linked.ask(body, repeat_of=request_id) == request_id
    (repeat,) = linked.hear_owner()
    assert isinstance(repeat, Repeat)
    (event,) = linked.hear_device()
    assert type(event) is {"answered": Answered, "refused": Refused, "failed": Failed}[outcome]
    for _ in range(2):
        linked.ask(body, repeat_of=request_id)
        linked.hear_owner()
        assert len(linked.hear_device()) == 1


def test_a_change_asked_for_again_while_in_progress_is_answered_once() -> None:
    linked = Linked().opened()
    request_id = linked.ask(STEP)
    asked(linked)
    linked.ask(STEP, repeat_of=request_id)
    assert linked.hear_owner() == []
    linked.to_owner += linked.device.answer(request_id, [])
    assert [type(event) for event in linked.hear_device()] == [Answered]


def test_a_change_that_never_arrived_is_done_when_asked_for_again() -> None:
    linked = Linked().opened()
    request_id = linked.ask(STEP)
    linked.to_device.clear()
    linked.tick(3.0)
    linked.ask(STEP, repeat_of=request_id)
    assert asked(linked).id == request_id


def test_a_change_whose_answer_is_no_longer_kept_is_still_not_done_again() -> None:
    linked = Linked(limits=dataclasses.replace(DEFAULT, remembered_replies=1)).opened()
    requests = [linked.ask(STEP), linked.ask(STEP)]
    linked.hear_owner()
    for request_id in requests:
        linked.device.answer(request_id, [])
    linked.ask(STEP, repeat_of=requests[0])
    assert linked.hear_owner() == []
    assert linked.device.ignored == 1


def test_only_changes_are_repeated_and_only_those_of_this_session() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY)
    with pytest.raises(InputError, match="apply changes nothing: ask again under a new id"):
        linked.ask(APPLY, repeat_of=request_id)
    for other in (request_id - 1, request_id + 1):
        with pytest.raises(GoneError, match="not of the open session"):
            linked.ask(STEP, repeat_of=other)


def test_a_request_replayed_under_another_message_number_is_ignored() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY)
    asked(linked)
    linked.device.answer(request_id, [X])
    handle = linked.owner.handle
    assert handle is not None
    replayed = forged(handle, APPLY, request_id, number=99, tensors=[X])
    assert linked.device.receive(replayed, linked.now) == []
    assert linked.device.ignored == 1


def test_a_request_older_than_the_window_is_a_violation() -> None:
    linked = Linked(limits=dataclasses.replace(DEFAULT, replay_window=8)).opened()
    old = linked.ask(APPLY)
    linked.to_device.clear()
    for _ in range(8):
        linked.ask(APPLY)
        linked.hear_owner()
    handle = linked.owner.handle
    assert handle is not None
    refused = violation(linked.device.receive(forged(handle, APPLY, old, number=99, tensors=[X]), linked.now))
    assert "older than the last 8: a replay" in str(refused)


def test_a_cancelled_request_is_forgotten_at_both_ends() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY)
    asked(linked)
    linked.to_device += linked.owner.cancel(request_id)
    assert linked.hear_owner() == [Cancelled(request_id)]
    assert linked.device.answer(request_id, [X]) == []
    assert linked.owner.cancel(request_id) == []
    assert linked.tick(3.0)[0] == []


def test_a_cancelled_change_is_finished_all_the_same() -> None:
    linked = Linked().opened()
    request_id = linked.ask(STEP)
    asked(linked)
    linked.to_device += linked.owner.cancel(request_id)
    assert linked.hear_owner() == []
    linked.to_owner += linked.device.answer(request_id, [])
    assert linked.hear_device() == []
    assert linked.owner.ignored == 1
