"""Verdicts: honest proofs are accepted, and nothing that a runner can write makes another one pass."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from awfulowl.errors import InputError
from awfulowl.jobs import proof, signing
from awfulowl.jobs.challenge import ANSWERS, OPENINGS, answer
from awfulowl.jobs.checks.catalogue import PRINTED, SOUND
from awfulowl.jobs.loop import Conduct, Row, Trainer, Work
from awfulowl.jobs.merkle import Tree
from awfulowl.jobs.proof import COMMITMENT, DIGESTS, LOG, STATES, Commitment, leaf, read_commitment, state_path
from awfulowl.jobs.state import State, decode, digest, encode
from awfulowl.jobs.verify import UNREADABLE, verify
from tests.unit.jobs.small import OTHERS, SIGNERS, STEPS, asked, everything, made, small_work, verdict


@pytest.fixture(scope="module")
def work() -> Work:
    return small_work()


@pytest.fixture(scope="module")
def whole(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(work, tmp_path_factory.mktemp("whole") / "proof")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def recommitted(work: Work, directory: Path, **changed: object) -> None:
    """Sign another commitment, as a runner can."""
    body: Commitment = msgspec.structs.replace(read_commitment(directory, work.job), **changed)
    (directory / COMMITMENT).write_bytes(signing.sign(body, SIGNERS.runner))


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("training", [{}, {"optimizer": "adam", "momentum": 0.0}, {"clip": 0.5}, {"threads": 2}])
def test_honest_proofs_are_accepted(tmp_path: Path, answered: bool, training: dict[str, Any]) -> None:
    work = small_work(**training)
    directory = made(work, tmp_path / "proof")
    one = everything(work, directory)
    assert one.exact
    answer(work, directory, one)
    found = verify(work, directory, one, answered=answered)
    assert (found.status, found.caught_by, found.reason) == ("accepted", None, None)
    assert [finding.check for finding in found.findings] == [check.name for check in SOUND]
    assert found.verification_cost is not None
    assert found.verification_cost > 0
    assert found.model == read_commitment(directory, work.job).final
    assert found.replayed_steps == STEPS if answered else found.replayed_steps > STEPS


def test_an_answered_challenge_costs_one_step(work: Work, copy: Path) -> None:
    one = asked(work, copy, drawn=(0, 3, 9, 22), largest=(9, 11))
    answer(work, copy, one)
    found = verify(work, copy, one, answered=True)
    assert found.status == "accepted"
    assert found.replayed_steps == 5
    assert found.evaluated_examples == 2 * 8


def test_all_checks_can_be_made(work: Work, whole: Path) -> None:
    found = verdict(work, whole, which="all", thorough=True)
    assert [one.check for one in found.findings] == [check.name for check in (*SOUND, *PRINTED)]
    assert [one.printed for one in found.findings] == [False] * len(SOUND) + [True] * len(PRINTED)
    assert found.status == "accepted"


class FakesOne(Conduct):
    """Makes one step on another batch."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, trainer: Trainer) -> Row:
        if trainer.step != self._step:
            return trainer.advance()
        row = trainer.descend(trainer.work.batch(trainer.step + 1), trainer.factor())
        return row._replace(rate=row.rate)


@pytest.mark.parametrize("step", [1, 4, 17, 29])
@pytest.mark.parametrize("answered", [True, False])
def test_one_faked_step_is_found_where_it_is_challenged(work: Work, tmp_path: Path, step: int, answered: bool) -> None:
    conduct = FakesOne(step)
    directory = made(work, tmp_path / "proof", conduct)
    one = everything(work, directory)
    answer(work, directory, one, conduct=conduct)
    found = verify(work, directory, one, answered=answered)
    assert (found.status, found.caught_by) == ("refused", "replay")
    spared = asked(work, directory, drawn=tuple(range(step)), largest=(), epochs=())
    answer(work, directory, spared, conduct=conduct)
    assert verify(work, directory, spared, answered=True).status == "accepted"


class OtherStart(Conduct):
    """Begins from weights of its own."""

    def start(self, trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.parameters[0].mul_(1.0001)


def test_another_start_is_found(work: Work, tmp_path: Path) -> None:
    directory = made(work, tmp_path / "proof", OtherStart())
    found = verdict(work, directory)
    assert (found.status, found.caught_by) == ("refused", "start")


class WrongLog(Conduct):
    """Trains honestly, and tells another loss for one step."""

    def step(self, trainer: Trainer) -> Row:
        row = trainer.advance()
        return row._replace(loss=row.loss * (1 + 1e-6)) if trainer.step == 9 else row


class WrongEvaluation(Conduct):
    """Trains honestly, and tells another evaluation."""

    def evaluate(self, trainer: Trainer, epoch: int) -> float:
        return super().evaluate(trainer, epoch) + (1e-6 if epoch == 2 else 0.0)


@pytest.mark.parametrize(("conduct", "check"), [(WrongLog(), "replay"), (WrongEvaluation(), "epochs")])
def test_logs_that_lie_in_the_last_digits(work: Work, tmp_path: Path, conduct: Conduct, check: str) -> None:
    found = verdict(work, made(work, tmp_path / "proof", conduct))
    assert (found.status, found.caught_by) == ("refused", check)


def changed(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state = decode(path.read_bytes(), 0, "there")
    path.write_bytes(encode(State(0, {**state.tensors, name: change(state.tensors[name])})))


@pytest.mark.parametrize(
    "name",
    ["model.0.weight", "model.1.running_mean", "model.1.num_batches_tracked", "optimizer.0.bias.momentum_buffer"],
)
@pytest.mark.parametrize("answered", [True, False])
def test_states_changed_after_the_commitment(work: Work, copy: Path, name: str, answered: bool) -> None:
    one = everything(work, copy)
    answer(work, copy, one)
    changed(state_path(copy / (ANSWERS if answered else STATES), 12), name, lambda tensor: tensor + 1)
    found = verify(work, copy, one, answered=answered)
    assert found.status == "refused"
    assert "not the one that the runner committed to" in (found.reason or "")


def test_a_last_state_swapped_after_the_commitment(work: Work, copy: Path) -> None:
    changed(state_path(copy / STATES, STEPS), "model.0.weight", torch.zeros_like)
    assert verdict(work, copy).caught_by == "final"


def test_a_last_state_named_otherwise(work: Work, copy: Path) -> None:
    recommitted(work, copy, final="0" * 64)
    assert verdict(work, copy).caught_by == "final"


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"steps": STEPS + 1}, UNREADABLE),
        ({"steps": 6}, UNREADABLE),
        ({"per_epoch": 5}, "start"),
        ({"root": "0" * 64}, UNREADABLE),
    ],
)
def test_commitments_that_say_something_else(work: Work, copy: Path, fields: dict[str, object], check: str) -> None:
    recommitted(work, copy, **fields)
    found = verdict(work, copy, everything(work, copy))
    assert (found.status, found.caught_by) == ("refused", check)


def test_digests_changed_after_the_commitment(work: Work, copy: Path) -> None:
    content = bytearray((copy / DIGESTS).read_bytes())
    content[40] ^= 1
    (copy / DIGESTS).write_bytes(content)
    found = verdict(work, copy)
    assert (found.status, found.caught_by) == ("refused", UNREADABLE)


@pytest.mark.parametrize("name", [COMMITMENT, LOG, DIGESTS])
@pytest.mark.parametrize("what", ["missing", "empty", "cut", "other"])
def test_files_that_cannot_be_read_refuse_the_proof(work: Work, copy: Path, name: str, what: str) -> None:
    one, path = everything(work, copy), copy / name
    content = path.read_bytes()
    path.unlink()
    if what != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "other": b"\x00" * len(content)}[what])
    found = verify(work, copy, one, answered=False)
    assert (found.status, found.caught_by) == ("refused", UNREADABLE)
    assert found.reason


def test_answers_that_are_missing_cut_or_to_others(work: Work, copy: Path) -> None:
    one = everything(work, copy)
    assert verify(work, copy, one, answered=True).caught_by == UNREADABLE
    answer(work, copy, asked(work, copy, drawn=(0, 3)))
    found = verify(work, copy, one, answered=True)
    assert found.reason == "the answer is to another challenge"
    answer(work, copy, one)
    state_path(copy / ANSWERS, 9).unlink()
    found = verify(work, copy, one, answered=True)
    assert (found.caught_by, found.status) == ("replay", "refused")
    (copy / ANSWERS / OPENINGS).write_bytes(b"x")
    assert verify(work, copy, one, answered=True).caught_by == UNREADABLE


def test_openings_under_another_root(work: Work, copy: Path) -> None:
    """The runner shows states of its choice under a tree that it makes only now."""
    one = everything(work, copy)
    answer(work, copy, one)
    digests = proof.read_digests(copy, STEPS)
    digests[7] = bytes(32)
    fresh = Tree([leaf(work, step, state) for step, state in enumerate(digests)])
    openings = msgspec.msgpack.decode((copy / ANSWERS / OPENINGS).read_bytes())
    for opening in openings[1]:
        opening[1], opening[2] = digests[opening[0]], list(fresh.path(opening[0]))
    (copy / ANSWERS / OPENINGS).write_bytes(msgspec.msgpack.encode(openings))
    found = verify(work, copy, one, answered=True)
    assert (found.status, found.caught_by) == ("refused", UNREADABLE)
    assert "committed root" in (found.reason or "")


def test_other_jobs_and_other_signers(work: Work, copy: Path) -> None:
    one = everything(work, copy)
    found = verify(small_work(seed=5), copy, msgspec.structs.replace(one), answered=False)
    assert (found.status, found.caught_by) == ("refused", UNREADABLE)
    (copy / COMMITMENT).write_bytes(signing.sign(read_commitment(copy, work.job), OTHERS.runner))
    assert verify(work, copy, one, answered=False).status == "refused"


def test_challenges_of_other_proofs_are_an_error(work: Work, copy: Path) -> None:
    with pytest.raises(InputError, match="another commitment"):
        verify(work, copy, asked(work, copy, commitment="0" * 64), answered=False)


def test_another_class_needs_answers(work: Work, copy: Path) -> None:
    with pytest.raises(InputError, match="let it answer"):
        verify(work, copy, asked(work, copy, exact=False), answered=False)


def test_states_of_another_form_are_refused_before_they_are_used(work: Work, copy: Path) -> None:
    """Everything is committed to anew, root and all; the verifier must not fall over what it loads."""
    state = decode(state_path(copy / STATES, 8).read_bytes(), 8, "there")
    odd = State(8, {**state.tensors, "optimizer.0.bias.momentum_buffer": torch.ones(1, 1, 2)})
    state_path(copy / STATES, 8).write_bytes(encode(odd))
    digests = proof.read_digests(copy, STEPS)
    digests[8] = digest(odd)
    (copy / DIGESTS).write_bytes(b"".join(digests))
    recommitted(work, copy, root=proof.tree(work, digests).root.hex())
    found = verdict(work, copy, asked(work, copy, drawn=(0, 8), largest=(), epochs=()))
    assert (found.status, found.caught_by) == ("refused", "replay")
    assert "form of this job's states" in (found.reason or "")


def test_a_refused_proof_costs_less(work: Work, tmp_path: Path) -> None:
    directory = made(work, tmp_path / "proof", FakesOne(1))
    assert verdict(work, directory).replayed_steps < 5
