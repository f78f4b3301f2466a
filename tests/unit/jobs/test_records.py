"""The log is a chain of signed batches: nothing can be left out, repeated, put in, or taken from another job."""

import io
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import records
from awfulowl.jobs.job import Job
from awfulowl.jobs.records import (
    MOST_FRAME_BYTES,
    Evaluation,
    Iteration,
    RecordBatch,
    Sample,
    check_length,
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
    assert list(found.resumed) == [8]
    assert [len(rows) for rows in found[:4]] == [12, 3, 3, 1]
    assert next(iter(found.iterations)) in found.iterations
    assert 4 not in found.resumed
    with path.open("rb") as file:
        assert found.head == list(frames(file, JOB, SIGNERS.runner.public_key()))[-1].digest


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
def test_a_torn_log_is_read_as_far_as_it_is_whole(tmp_path_factory: pytest.TempPathFactory, place: int) -> None:
    whole = log()
    path = tmp_path_factory.getbasetemp() / "torn.bin"
    path.write_bytes(b"".join(whole)[:place])
    ends = [len(b"".join(whole[:number])) for number in range(1, 4)]
    with path.open("rb") as file:
        found = list(frames(file, JOB, SIGNERS.runner.public_key(), torn=True))
    assert [frame.end for frame in found] == [end for end in ends if end <= place]


def test_lengths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="cut short"):
        read(tmp_path, (MOST_FRAME_BYTES + 1).to_bytes(4, "big") + bytes(100))
    with pytest.raises(ProofError, match="larger"):
        read_bounded(tmp_path / "records.bin", 10)


def test_a_log_has_a_bound_on_bytes_and_on_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_BATCHES", 3)
    assert read(tmp_path, b"".join(log(count=3))) == 12
    with pytest.raises(ProofError, match="more than 3 batches"):
        read(tmp_path, b"".join(log(count=4)))
    monkeypatch.setattr(records, "MOST_LOG_BYTES", 100)
    with pytest.raises(ProofError, match="larger than 100 bytes"):
        read(tmp_path, b"".join(log(count=3)))


class Counted:
    """A batch, or a record, that counts how many of its kind are alive."""

    alive = 0
    most = 0

    def __init__(self, value: object) -> None:
        self._value = value
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __getattr__(self, name: str) -> object:
        return getattr(self._value, name)

    def __del__(self) -> None:
        Counted.alive -= 1


def test_one_batch_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, and the next while it is decoded, however long the log is."""
    path = tmp_path / "records.bin"
    path.write_bytes(b"".join(log(count=40)))
    decode = msgspec.msgpack.decode
    monkeypatch.setattr(msgspec.msgpack, "decode", lambda content, type: Counted(decode(content, type=type)))  # noqa: A006
    Counted.most = 0
    found = read_log(path, JOB)
    assert [sum(1 for _ in rows) for rows in found[:4]] == [160, 40, 40, 1]
    assert Counted.most <= 3
    assert Counted.alive == 0


def test_a_file_is_read_frame_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "records.bin"
    path.write_bytes(b"".join(log(count=40)))
    asked: list[int] = []

    class Watched(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(-1 if size is None else size)
            return super().read(size) or b""

    with Watched(path) as file:
        assert len(list(frames(file, JOB, None))) == 40
    assert 0 < max(asked) < 1000
    assert min(asked) > 0


def test_a_log_that_changes_between_two_readings_is_found(tmp_path: Path) -> None:
    path = tmp_path / "records.bin"
    whole = log()
    path.write_bytes(b"".join(whole))
    found = read_log(path, JOB)
    path.write_bytes(b"".join(whole[:2]))
    with pytest.raises(ProofError, match="changed while"):
        list(found.iterations)
    frame, _ = encode_frame(batch(genesis(OTHER_JOB), 0, 4), SIGNERS.runner)
    path.write_bytes(frame)
    with pytest.raises(ProofError, match="does not follow"):
        list(found.samples)


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


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_the_length_of_a_log_is_known_before(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of one batch takes what it is said to take, at most, and not much less."""
    first = 1 << 29  # numbers of steps that take as many bytes as any
    frame, _ = encode_frame(batch(genesis(JOB), first, first + steps), SIGNERS.runner)
    monkeypatch.setattr(records, "MOST_LOG_BYTES", int(1.3 * len(frame)))
    check_length(steps, 1)
    monkeypatch.setattr(records, "MOST_LOG_BYTES", len(frame) - 1)
    with pytest.raises(InputError, match="bytes"):
        check_length(steps, 1)


def test_batches_are_counted_before_with_those_that_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_BATCHES", 5)
    check_length(2 * records.FULL, 3)
    for steps, kept in [(2 * records.FULL, 4), (3 * records.FULL, 3), (6, 6)]:
        with pytest.raises(InputError, match="checkpoint_every or batch"):
            check_length(steps, kept)
