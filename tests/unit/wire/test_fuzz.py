"""The fuzzing of the wire, in short: the kept corpus, and random changes to it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awfulowl.errors import ProtocolError
from awfulowl.wire.codec import decode
from awfulowl.wire.frames import Assembler
from awfulowl.wire.session import Violation
from fuzz.wire import CORPUS, kept, mutants, survive
from fuzz.wire_corpus import LIMITS, Ends, corpus, resealed

NAMES = sorted(path.stem for path in CORPUS.glob("*.bin"))
BUSY = settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def read(name: str) -> bytes:
    return (CORPUS / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_survived(name: str) -> None:
    survive(read(name))


def test_the_corpus_is_what_is_made_and_what_was_found() -> None:
    made = corpus()
    assert made.keys() <= set(NAMES), "write it anew: python -m fuzz.wire"
    assert [name for name, data in made.items() if read(name) != data] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("message-")])
def test_good_messages_parse_and_bad_ones_do_not(name: str) -> None:
    if "-good-" in name:
        decode(read(name), LIMITS, seeds=True)
        return
    with pytest.raises(ProtocolError):
        decode(read(name), LIMITS, seeds=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("frame-")])
def test_good_frames_are_taken_and_bad_ones_are_not(name: str) -> None:
    if "-good-" in name:
        Assembler(LIMITS).feed(read(name))
        return
    with pytest.raises(ProtocolError):
        Assembler(LIMITS).feed(read(name))


@pytest.mark.parametrize("name", [name for name in NAMES if "-bad-" in name])
def test_what_is_bad_is_a_violation_at_both_ends(name: str) -> None:
    for end in (Ends().owner, Ends().device):
        hear = end.receive_beat if name.startswith("beat-") else end.receive
        events = hear(read(name), 1.0)
        assert [type(event) for event in events] == [Violation]


def test_resealing_gets_a_change_past_the_digest() -> None:
    frame = read("frame-good-release")
    changed = frame.replace(b"s" * 16, b"t" * 16)
    with pytest.raises(ProtocolError, match="digest"):
        Assembler(LIMITS).feed(changed)
    assert Assembler(LIMITS).feed(resealed(changed)) is not None
    assert resealed(frame) == frame


@BUSY
@given(mutants(kept()))
def test_mutants_are_survived(data: bytes) -> None:
    survive(data)


@BUSY
@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    survive(data)
