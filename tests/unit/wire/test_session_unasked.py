"""An owner tells late answers, which are owed to it, from what it never asked for."""

from dataclasses import replace

from awfulowl.limits import DEFAULT
from awfulowl.wire.messages import Answer
from awfulowl.wire.session import Answered
from tests.unit.wire.linked import APPLY, STEP, Linked, forged


def answer(linked: Linked, request_id: int, number: int) -> int:
    """Let somebody answer a request; return what is known to be unasked by then."""
    assert linked.owner.handle is not None
    linked.owner.receive(forged(linked.owner.handle, Answer(to=request_id), number=number), linked.now)
    return linked.owner.unasked


def test_answers_to_what_was_cancelled_or_is_over_time_are_owed_once() -> None:
    linked = Linked().opened()
    cancelled, expired = linked.ask(APPLY), linked.ask(APPLY)
    linked.owner.cancel(cancelled)
    linked.tick(3.0)
    assert [answer(linked, cancelled, 1), answer(linked, expired, 2)] == [0, 0]
    assert linked.owner.ignored == 2
    assert [answer(linked, cancelled, 3), answer(linked, expired, 4)] == [1, 2]


def test_answers_to_nothing_and_to_what_is_to_come_are_unasked() -> None:
    linked = Linked().opened()
    request_id = linked.ask(STEP)
    assert answer(linked, request_id + 1, 1) == 1
    assert answer(linked, 0, 2) == 2
    assert linked.ask(STEP) == request_id + 1


def test_an_answer_is_owed_for_each_time_that_something_was_asked() -> None:
    linked = Linked().opened()
    request_id = linked.ask(STEP)
    linked.ask(STEP, repeat_of=request_id)
    assert linked.owner.handle is not None
    frames = [forged(linked.owner.handle, Answer(to=request_id), number=number) for number in (1, 2, 3)]
    (first,) = linked.owner.receive(frames[0], linked.now)
    assert isinstance(first, Answered)
    assert linked.owner.receive(frames[1], linked.now) == []
    assert linked.owner.unasked == 0
    assert linked.owner.receive(frames[2], linked.now) == []
    assert linked.owner.unasked == 1


def test_what_is_owed_is_forgotten_in_the_end_and_with_the_session() -> None:
    linked = Linked(limits=replace(DEFAULT, replay_window=4)).opened()
    ids = [linked.ask(STEP) for _ in range(6)]
    for request_id in ids:
        linked.owner.cancel(request_id)
    assert [answer(linked, request_id, turn + 1) for turn, request_id in enumerate(ids)] == [1, 2, 2, 2, 2, 2]
    owed = linked.ask(STEP)
    linked.device = linked.new_device(9)
    linked.to_owner += linked.device.hello(linked.now)
    linked.to_device.clear()
    linked.settle()
    assert answer(linked, owed, 20) == 3
