"""The log is a chain of signed batches: nothing can be left out, repeated, put in, or taken from another job."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.errors import ProofError
from awfulowl.jobs.job import Job
from awfulowl.jobs.records import (
    MOST_FRAME_BYTES,
    Evaluation,
    Iteration,
    RecordBatch,
    Sample,
    encode_frame,
    finite,
    frames,
    genesis,
    read_bounded,
    read_log,
)
from tests.unit.jobs.small import OTHERS, SIGNERS, small_work

JOB = small_work().job
OTHER_JOB = small_work(seed=99).job


def batch(before: bytes, first: int, last: int, *, resumed: bool = False) -> RecordBatch:
    return RecordBatch(
        before=before,
        first=first,
        last=last,
        resumed=resumed,
        iterations=tuple(Iteration(step, 1.0, 0.1, 2.0, 100.0 + step) for step in range(first, last)),
        samples=(Sample(100.0 + first, 0.5, 1000),),
        evaluations=(Evaluation(last, 0.5),),
    )


def log(job: Job = JOB, count: int = 3) -> list[bytes]:
    """Frames of four steps each."""
    found, before = [], genesis(job)
    for number in range(count):
        frame, before = encode_frame(batch(before, 4 * number, 4 * number + 4, resumed=number == 2), SIGNERS.runner)
        found.append(frame)
    return found


def read(tmp_path: Path, content: bytes, job: Job = JOB) -> int:
    path = tmp_path / "records.bin"
    path.write_bytes(content)
    return len(read_log(path, job).iterations)


def test_a_whole_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "records.bin"
    path.write_bytes(b"".join(log()))
    found = read_log(path, JOB)
    assert [row.step for row in found.iterations] == list(range(12))
    assert [one.step for one in found.evaluations] == [4, 8, 12]
    assert len(found.samples) == 3
    assert found.resumed == [8]
    assert found.head == list(frames(b"".join(log()), JOB, SIGNERS.runner.public_key()))[-1].digest


def test_an_empty_log_has_the_jobs_head(tmp_path: Path) -> None:
    (tmp_path / "records.bin").write_bytes(b"")
    assert read_log(tmp_path / "records.bin", JOB).head == genesis(JOB)


@pytest.mark.parametrize("places", [(0, 2), (1, 2), (0, 1, 1, 2), (1, 0, 2), (0, 0)])
def test_batches_left_out_doubled_or_moved(tmp_path: Path, places: tuple[int, ...]) -> None:
    own = log()
    with pytest.raises(ProofError, match="does not follow"):
        read(tmp_path, b"".join(own[place] for place in places))


def test_another_jobs_log(tmp_path: Path) -> None:
    assert read(tmp_path, b"".join(log(OTHER_JOB)), OTHER_JOB) == 12
    with pytest.raises(ProofError, match="another job"):
        read(tmp_path, b"".join(log(OTHER_JOB)))


def test_another_signer(tmp_path: Path) -> None:
    frame, _ = encode_frame(batch(genesis(JOB), 0, 4), OTHERS.runner)
    with pytest.raises(ProofError, match="not signed"):
        read(tmp_path, frame)


@settings(max_examples=60)
@given(st.data())
def test_every_changed_or_missing_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = b"".join(log(count=2))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        changed = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    else:
        changed = whole[:place]
    boundary = changed in {b"", log()[0]}
    path = tmp_path_factory.getbasetemp() / "changed.bin"
    path.write_bytes(changed)
    if boundary:  # whole batches missing at the end are found by the head that the commitment names
        assert len(read_log(path, JOB).iterations) in {0, 4}
    else:
        with pytest.raises(ProofError):
            read_log(path, JOB)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_a_torn_log_is_read_as_far_as_it_is_whole(place: int) -> None:
    whole = log()
    content = b"".join(whole)[:place]
    ends = [len(b"".join(whole[:number])) for number in range(1, 4)]
    found = list(frames(content, JOB, SIGNERS.runner.public_key(), torn=True))
    assert [frame.end for frame in found] == [end for end in ends if end <= place]


def test_lengths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="cut short"):
        read(tmp_path, (MOST_FRAME_BYTES + 1).to_bytes(4, "big") + bytes(100))
    with pytest.raises(ProofError, match="larger"):
        read_bounded(tmp_path / "records.bin", 10)


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"x")
    assert read_bounded(tmp_path / "file", 1) == b"x"
    os.mkfifo(tmp_path / "pipe")
    for wrong in ("link", "missing", ".", "pipe", "file/below"):
        with pytest.raises(ProofError, match="no plain file"):
            read_bounded(tmp_path / wrong, 10)


def test_a_pipe_put_in_the_place_of_a_file_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write there swaps them between a look at the name and the opening."""
    os.mkfifo(tmp_path / "file")
    for look in ("is_file", "exists"):
        monkeypatch.setattr(Path, look, lambda *_: True)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a pipe is opened as a file is"))
    with pytest.raises(ProofError, match="no plain file"):
        read_bounded(tmp_path / "file", 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(value: float) -> None:
    assert finite(Iteration(0, 1.0, 1.0, 1.0, 1.0))
    for place in range(4):
        numbers = [1.0] * 4
        numbers[place] = value
        assert not finite(Iteration(0, *numbers))
