"""What a runner writes: one commitment to every step, whatever happens to the runner on the way."""

import shutil
from pathlib import Path

import msgspec
import pytest

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import proof, signing
from awfulowl.jobs.job import Proving
from awfulowl.jobs.loop import Conduct, Row, Trainer, Work
from awfulowl.jobs.merkle import Tree, belongs
from awfulowl.jobs.proof import (
    COMMITMENT,
    DIGESTS,
    JOB,
    LOG,
    STATES,
    leaf,
    order_digest,
    read,
    read_commitment,
    read_digests,
    read_state,
    state_path,
    tree,
)
from awfulowl.jobs.state import digest
from tests.unit.jobs.small import EXAMPLES, OTHERS, SIGNERS, STEPS, made, no_probe, small_work, verdict


class EndedError(Exception):
    """Stands for the end of the process."""


class EndsBefore(Conduct):
    """An honest runner that ends before a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, trainer: Trainer) -> Row:
        if trainer.step == self._step:
            raise EndedError
        return trainer.advance()


@pytest.fixture(scope="module")
def work() -> Work:
    return small_work()


@pytest.fixture(scope="module")
def whole(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(work, tmp_path_factory.mktemp("whole") / "proof")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_proof_has_all_its_parts(work: Work, whole: Path) -> None:
    found = read(whole, work.job)
    assert found.commitment.steps == STEPS
    assert found.commitment.per_epoch == 6
    assert found.commitment.machine.threads == 1
    assert [row.step for row in found.log.iterations] == list(range(STEPS))
    assert [one.step for one in found.log.evaluations] == [6, 12, 18, 24, 30]
    digests = read_digests(whole, STEPS)
    assert found.commitment.root == tree(work, digests).root.hex()
    assert found.commitment.final == digests[-1].hex()
    stored = {int(path.stem) for path in (whole / STATES).iterdir()}
    assert stored == {step for step in range(STEPS + 1) if work.kept(step)}
    for step in stored:
        assert digest(read_state(whole / STATES, step, found.commitment.state_bytes)) == digests[step]


def test_equal_jobs_give_equal_roots(work: Work, whole: Path, tmp_path: Path) -> None:
    again = made(work, tmp_path / "again")
    assert read_commitment(again, work.job).root == read_commitment(whole, work.job).root


def test_a_finished_proof_is_left_alone(work: Work, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert proof.make(work, copy, SIGNERS.runner) == read_commitment(copy, work.job)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 6, 13, 24, 29])
def test_a_runner_goes_on_where_it_was_ended(work: Work, whole: Path, tmp_path: Path, step: int) -> None:
    directory = tmp_path / "proof"
    with pytest.raises(EndedError):
        made(work, directory, EndsBefore(step))
    assert not (directory / COMMITMENT).exists()
    with pytest.raises(ProofError):
        read(directory, work.job)
    made(work, directory)
    assert read_commitment(directory, work.job).root == read_commitment(whole, work.job).root
    found = read(directory, work.job)
    assert [row.step for row in found.log.iterations] == list(range(STEPS))
    assert list(found.log.resumed) == ([work.nearest(step)] if work.nearest(step) else [])
    assert verdict(work, directory).status == "accepted"


@pytest.mark.parametrize("name", [DIGESTS, LOG, "state", "all states", "aside"])
def test_what_a_crash_left_half_written_is_not_gone_on_from(work: Work, whole: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "proof"
    with pytest.raises(EndedError):
        made(work, directory, EndsBefore(22))
    if name in {DIGESTS, LOG}:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) - 45])
    elif name == "aside":
        (directory / STATES / ".0000000024.safetensors.new").write_bytes(b"half")
    else:
        for path in sorted((directory / STATES).iterdir())[-1 if name == "state" else 0 :]:
            path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    made(work, directory)
    assert read_commitment(directory, work.job).root == read_commitment(whole, work.job).root
    assert verdict(work, directory).status == "accepted"


def test_ended_again_and_again(work: Work, whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "proof"
    for step in (7, 9, 9, 17, 18):
        with pytest.raises(EndedError):
            made(work, directory, EndsBefore(step))
    made(work, directory)
    assert read_commitment(directory, work.job).root == read_commitment(whole, work.job).root
    assert list(read(directory, work.job).log.resumed) == [6, 8, 16, 18]  # from 8 nothing new was kept the first time


def test_ended_just_before_the_commitment(work: Work, whole: Path, copy: Path) -> None:
    (copy / COMMITMENT).unlink()
    made(work, copy)
    assert read_commitment(copy, work.job).root == read_commitment(whole, work.job).root
    assert verdict(work, copy).status == "accepted"


def test_long_stretches_without_a_stored_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is written between stored states too, and a runner goes on from the last stored one."""
    monkeypatch.setattr("awfulowl.jobs.monitor.FULL", 2)
    own = small_work(proving=Proving(checkpoint_every=1000))
    with pytest.raises(EndedError):
        made(own, tmp_path / "proof", EndsBefore(11))
    made(own, tmp_path / "proof")
    found = read(tmp_path / "proof", own.job)
    assert [row.step for row in found.log.iterations] == list(range(STEPS))
    assert list(found.log.resumed) == [6]
    assert verdict(own, tmp_path / "proof").status == "accepted"


def test_other_jobs_directories_are_left_alone(work: Work, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another job"):
        proof.make(small_work(seed=9), copy, SIGNERS.runner)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="not empty"):
        proof.make(work, tmp_path / "mine", SIGNERS.runner)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        proof.make(work, tmp_path / "file", SIGNERS.runner)


def test_only_the_named_runner_can_prove(work: Work, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another runner"):
        proof.make(work, tmp_path / "proof", OTHERS.runner)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", [COMMITMENT, LOG])
def test_every_edited_part_is_found(work: Work, copy: Path, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        if content[place : place + 1].isspace():
            continue
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ProofError):
            read(copy, work.job)
    path.write_bytes(content[:-30])
    with pytest.raises(ProofError):
        read(copy, work.job)
    path.unlink()
    with pytest.raises(ProofError, match="missing"):
        read(copy, work.job)


def test_a_log_cut_at_a_batch_is_not_the_committed_one(work: Work, copy: Path) -> None:
    content = (copy / LOG).read_bytes()
    first = int.from_bytes(content[:4], "big") + 68
    (copy / LOG).write_bytes(content[:first])
    with pytest.raises(ProofError, match="not the log that the runner committed to"):
        read(copy, work.job)


def test_proofs_of_others(work: Work, copy: Path) -> None:
    with pytest.raises(ProofError, match="another job"):
        read(copy, small_work(seed=4).job)
    commitment = read_commitment(copy, work.job)
    (copy / COMMITMENT).write_bytes(signing.sign(commitment, OTHERS.runner))
    with pytest.raises(ProofError, match="not signed"):
        read(copy, work.job)


def test_digests_have_to_be_all_there(copy: Path) -> None:
    content = (copy / DIGESTS).read_bytes()
    for wrong in (content[:-1], content[:-32], content + bytes(32)):
        (copy / DIGESTS).write_bytes(wrong)
        with pytest.raises(ProofError):
            read_digests(copy, STEPS)


def test_states_are_bounded_before_they_are_read(copy: Path) -> None:
    path = state_path(copy / STATES, 4)
    with path.open("ab") as file:
        file.truncate(1 << 26)
    with pytest.raises(ProofError, match="larger"):
        read_state(copy / STATES, 4, 1000)
    with pytest.raises(ProofError, match="missing"):
        read_state(copy / STATES, 5, 1000)


def test_a_leaf_is_bound_to_job_step_state_and_order(work: Work) -> None:
    own = leaf(work, 3, bytes(32))
    other_data = work._replace(job=msgspec.structs.replace(work.job, data={**work.job.data, "labels": "0" * 64}))
    others = [
        leaf(work, 4, bytes(32)),
        leaf(work, 3, bytes(31) + b"\x01"),
        leaf(small_work(seed=4), 3, bytes(32)),
        leaf(small_work(lr=0.2), 3, bytes(32)),
        leaf(other_data, 3, bytes(32)),
    ]
    assert len({own, *others}) == 6
    assert order_digest(3, 0, EXAMPLES) != order_digest(3, 1, EXAMPLES)


def test_the_tree_opens_every_step(work: Work, whole: Path) -> None:
    digests = read_digests(whole, STEPS)
    found: Tree = tree(work, digests)
    for step, state in enumerate(digests):
        assert belongs(leaf(work, step, state), step, found.path(step), STEPS + 1, found.root)


def test_progress_is_told(work: Work, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    proof.make(
        work, tmp_path / "p", SIGNERS.runner, progress=lambda done, of, _: seen.append((done, of)), probe=no_probe
    )
    assert seen == [(step, STEPS) for step in range(1, STEPS + 1)]


def test_a_job_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="diverges"):
        made(small_work(lr=1e6, momentum=0.0), tmp_path / "p")


def test_the_mark_is_the_jobs_digest(work: Work, whole: Path) -> None:
    assert (whole / JOB).read_text() == work.job.digest.hex()
