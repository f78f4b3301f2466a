"""Signatures for what the sandbox wrote: of this job's log and commitment, and of nothing else."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import signing
from awfulowl.jobs.countersign import BLANK, countersign
from awfulowl.jobs.job import Job
from awfulowl.jobs.machine import Machine
from awfulowl.jobs.proof import COMMITMENT, LOG, Commitment, read
from awfulowl.jobs.records import Iteration, RecordBatch, encode_frame, genesis, read_log
from awfulowl.jobs.worker import BlankKey
from tests.orders import People, ordered

PEOPLE = People()
JOB = ordered(PEOPLE).job
KEY = PEOPLE.runner.signing_key
BLANKS = BlankKey(KEY.public_key())
MACHINE = Machine(architecture="a", instructions="i", torch="t", numpy="n", build="b", threads=1)


def frames(job: Job = JOB, count: int = 3) -> Iterator[tuple[bytes, bytes]]:
    """Unsigned frames of a log, each with its digest."""
    before = genesis(job)
    for number in range(count):
        rows = (Iteration(number, 1.0, 0.1, 1.0, 100.0 + number),)
        batch = RecordBatch(
            before=before, first=number, last=number + 1, resumed=False, iterations=rows, samples=(), evaluations=()
        )
        frame, before = encode_frame(batch, BLANKS)
        yield frame, before


def commitment(**changes: object) -> bytes:
    """An unsigned commitment to that log."""
    body = Commitment(
        version=1,
        job=JOB.digest.hex(),
        steps=3,
        per_epoch=3,
        root="0" * 64,
        final="1" * 64,
        log=list(frames())[-1][1].hex(),
        machine=MACHINE,
        state_bytes=8,
    )
    return signing.sign(msgspec.structs.replace(body, **changes), BLANKS)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What a run left that has come to its end."""
    (tmp_path / LOG).write_bytes(b"".join(frame for frame, _ in frames()))
    (tmp_path / COMMITMENT).write_bytes(commitment())
    return tmp_path


def test_the_worker_has_no_key() -> None:
    assert BLANKS.sign(b"anything") == BLANK
    assert BLANKS.public_key() == KEY.public_key()
    for secret in (BLANKS.private_bytes, BLANKS.private_bytes_raw):
        with pytest.raises(InputError, match="elsewhere"):
            secret()


def test_blanks_are_filled_and_the_proof_is_the_runner_s(directory: Path) -> None:
    with pytest.raises(ProofError, match="not signed"):
        read(directory, JOB)
    countersign(JOB, directory, KEY)
    assert len(read(directory, JOB).log.iterations) == 3
    content = [(directory / name).read_bytes() for name in (LOG, COMMITMENT)]
    countersign(JOB, directory, KEY)
    assert [(directory / name).read_bytes() for name in (LOG, COMMITMENT)] == content
    assert sorted(path.name for path in directory.iterdir()) == [COMMITMENT, LOG]


def test_a_run_that_was_ended_is_signed_as_far_as_it_came(tmp_path: Path) -> None:
    whole = b"".join(frame for frame, _ in frames())
    last = len(list(frames())[-1][0])
    (tmp_path / LOG).write_bytes(whole[:-3])
    countersign(JOB, tmp_path, KEY)
    content = (tmp_path / LOG).read_bytes()
    assert content[-last + 3 :] == whole[-last:-3]
    (tmp_path / LOG).write_bytes(content[: -last + 3])
    assert len(read_log(tmp_path / LOG, JOB).iterations) == 2


def test_nothing_at_all_is_fine(tmp_path: Path) -> None:
    countersign(JOB, tmp_path, KEY)
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_another_job_is_not_signed(tmp_path: Path) -> None:
    other = ordered(PEOPLE, seed=6).job
    unsigned = b"".join(frame for frame, _ in frames(other))
    (tmp_path / LOG).write_bytes(unsigned)
    countersign(JOB, tmp_path, KEY)
    assert (tmp_path / LOG).read_bytes() == unsigned


@pytest.mark.parametrize(
    "changes",
    [
        {"job": "a" * 64},
        {"log": "b" * 64},
        {"log": list(frames())[1][1].hex()},
    ],
)
def test_a_commitment_to_something_else_is_not_signed(directory: Path, changes: dict[str, str]) -> None:
    (directory / COMMITMENT).write_bytes(commitment(**changes))
    with pytest.raises(ProofError, match="another"):
        countersign(JOB, directory, KEY)
    assert BLANK.hex().encode() in (directory / COMMITMENT).read_bytes()


def test_statements_of_other_kinds_are_not_signed(directory: Path) -> None:
    (directory / COMMITMENT).write_bytes(signing.sign(MACHINE, BLANKS))
    with pytest.raises(ProofError, match="is no commitment"):
        countersign(JOB, directory, KEY)


def test_more_behind_the_log_is_not_committed_to(directory: Path) -> None:
    with (directory / LOG).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ProofError, match="another log"):
        countersign(JOB, directory, KEY)


def test_a_last_batch_that_announces_more_than_there_is_is_not_put_right(directory: Path) -> None:
    content = bytearray((directory / LOG).read_bytes())
    last = len(content) - len(list(frames())[-1][0])
    content[last + 1] ^= 1
    (directory / LOG).write_bytes(content)
    with pytest.raises(ProofError):
        countersign(JOB, directory, KEY)
    assert (directory / LOG).read_bytes()[last:] == bytes(content)[last:]


def test_a_signature_of_somebody_else_is_not_replaced(directory: Path) -> None:
    content = bytearray((directory / LOG).read_bytes())
    content[10] = 1
    (directory / LOG).write_bytes(content)
    with pytest.raises(ProofError):
        countersign(JOB, directory, KEY)
    assert (directory / LOG).read_bytes() == bytes(content)


@pytest.mark.parametrize("name", [LOG, COMMITMENT])
def test_links_that_the_code_inside_has_put_there_are_not_followed(directory: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((directory / name).read_bytes())
    before = secret.read_bytes()
    (directory / name).unlink()
    (directory / name).symlink_to(secret)
    with pytest.raises(ProofError):
        countersign(JOB, directory, KEY)
    assert secret.read_bytes() == before


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_altered_the_signed_log_is_one_that_readers_take(directory: Path, data: st.DataObject) -> None:
    whole = b"".join(frame for frame, _ in frames())
    changed = bytearray(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    (directory / LOG).write_bytes(changed)
    (directory / COMMITMENT).write_bytes(commitment())
    with pytest.raises(ProofError):
        countersign(JOB, directory, KEY)
