"""Challenges are drawn after the commitment, uniformly, and answered with states under its root."""

import shutil
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import challenge, proof
from awfulowl.jobs.challenge import ANSWERS, OPENINGS, Challenge, Rebuilder, answer, draw, read_openings
from awfulowl.jobs.job import Proving
from awfulowl.jobs.loop import EVALUATED_PARTS, Work, repeatable
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.merkle import belongs
from awfulowl.jobs.proof import Proof, leaf, read_digests, state_path
from awfulowl.jobs.state import digest
from awfulowl.randomness import Entropy
from tests.unit.jobs.small import SIGNERS, STEPS, asked, made, small_work

MACHINE = this_machine(1)
OTHER_MACHINE = msgspec.structs.replace(MACHINE, instructions="another")


@pytest.fixture(scope="module")
def work() -> Work:
    return small_work()


@pytest.fixture(scope="module")
def whole(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(work, tmp_path_factory.mktemp("whole") / "proof")


@pytest.fixture(scope="module")
def found(work: Work, whole: Path) -> Proof:
    return proof.read(whole, work.job)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_what_is_drawn(found: Proof) -> None:
    one = draw(found, MACHINE)
    assert one.exact
    assert 0 in one.drawn
    assert len(set(one.drawn)) == len(one.drawn)
    assert len(one.drawn) in {12, 13}
    assert set(one.drawn) <= set(range(STEPS))
    assert len(one.epochs) == 2
    assert one.epochs[-1] == STEPS
    assert set(one.epochs) <= {6, 12, 18, 24, 30}
    assert one.parts == tuple(range(EVALUATED_PARTS))
    assert one.commitment == found.commitment.digest.hex()
    assert not draw(found, OTHER_MACHINE).exact


def test_the_largest_updates_are_those_of_the_log(found: Proof) -> None:
    ranked = sorted(found.log.iterations, key=lambda row: row.rate * row.norm)
    assert set(draw(found, MACHINE).largest) == {row.step for row in ranked[-2:]}


def test_draws_are_uniform_and_fresh(found: Proof) -> None:
    entropy = Entropy(1)
    draws = [draw(found, MACHINE, entropy).drawn for _ in range(400)]
    assert len(set(draws)) == len(draws)
    counts = Counter(step for drawn in draws for step in drawn if step)
    expected = 400 * 12 / STEPS
    deviation = (400 * (12 / STEPS) * (1 - 12 / STEPS)) ** 0.5
    assert all(abs(counts[step] - expected) < 5 * deviation for step in range(1, STEPS))
    assert draw(found, MACHINE).drawn != draw(found, MACHINE).drawn


def test_more_challenges_than_steps_are_all_steps(found: Proof) -> None:
    everything = found._replace(
        job=msgspec.structs.replace(found.job, proving=Proving(challenges=1000, largest=1000, epochs=1000, parts=3))
    )
    one = draw(everything, MACHINE)
    assert one.drawn == one.largest == tuple(range(STEPS))
    assert one.epochs == (6, 12, 18, 24, 30)
    assert len(one.parts) == 3


def test_huge_commitments_cost_nothing_to_challenge(found: Proof) -> None:
    huge = msgspec.structs.replace(found.commitment, steps=1 << 30, per_epoch=1)
    one = draw(found._replace(commitment=huge), MACHINE)
    assert max(one.epochs) == 1 << 30


def test_a_challenge_is_signed_by_the_verifier(work: Work, found: Proof) -> None:
    one = draw(found, MACHINE)
    content = challenge.sign(one, SIGNERS.verifier)
    assert challenge.read(content, work.job) == one
    with pytest.raises(ProofError, match="not signed"):
        challenge.read(challenge.sign(one, SIGNERS.runner), work.job)
    with pytest.raises(ProofError, match="another job"):
        challenge.read(content, small_work(seed=8).job)
    with pytest.raises(ProofError):
        challenge.read(content[:-20], work.job)
    with pytest.raises(ProofError, match="not signed"):
        challenge.read(content.replace(b'"exact": true', b'"exact": false'), work.job)


@pytest.mark.parametrize("machine", [MACHINE, OTHER_MACHINE], ids=["exact", "segments"])
def test_an_answer_opens_all_that_is_asked_for(work: Work, copy: Path, machine: object) -> None:
    one = draw(proof.read(copy, work.job), MACHINE if machine is MACHINE else OTHER_MACHINE)
    answer(work, copy, one)
    openings = read_openings(copy)
    commitment = proof.read_commitment(copy, work.job)
    assert openings.challenge == one.digest
    digests = {opening.step: opening.state for opening in openings.openings}
    for opening in openings.openings:
        own = leaf(work, opening.step, opening.state)
        assert belongs(own, opening.step, opening.path, STEPS + 1, bytes.fromhex(commitment.root))
    for step in challenge.challenged(one):
        assert step in digests
        assert challenge.segment_end(work, one, step) in digests
    for step in challenge.states_wanted(work, one):
        assert digest(proof.read_state(copy / ANSWERS, step, 10_000)) == digests[step]
    assert (0 in challenge.states_wanted(work, one)) is not one.exact


def test_answers_take_the_place_of_older_ones(work: Work, copy: Path) -> None:
    answer(work, copy, asked(work, copy, drawn=(0, 5)))
    answer(work, copy, asked(work, copy, drawn=(0, 7)))
    assert not state_path(copy / ANSWERS, 5).exists()
    assert state_path(copy / ANSWERS, 7).exists()


def test_challenges_of_other_proofs_are_not_answered(work: Work, copy: Path) -> None:
    with pytest.raises(InputError, match="another commitment"):
        answer(work, copy, asked(work, copy, commitment="0" * 64))
    assert not (copy / ANSWERS).exists()


def test_any_state_can_be_rebuilt(work: Work, whole: Path) -> None:
    digests = read_digests(whole, STEPS)
    with repeatable(1):
        rebuilder = Rebuilder(work, whole)
        for step in range(STEPS + 1):
            assert digest(rebuilder.state(step)) == digests[step]
        assert digest(Rebuilder(work, whole).state(23)) == digests[23]


@pytest.mark.parametrize("content", [b"", b"\x90", b"\xff" * 9, msgspec.msgpack.encode([b"x" * 32, [[0, b"y", []]]])])
def test_openings_that_are_none(copy: Path, content: bytes) -> None:
    (copy / ANSWERS).mkdir()
    with pytest.raises(ProofError, match="missing"):
        read_openings(copy)
    (copy / ANSWERS / OPENINGS).write_bytes(content)
    with pytest.raises(ProofError, match="no openings"):
        read_openings(copy)


def test_a_challenges_digest_is_of_everything(work: Work, whole: Path) -> None:
    one = asked(work, whole)
    others: list[Challenge] = [
        msgspec.structs.replace(one, drawn=(0,)),
        msgspec.structs.replace(one, largest=()),
        msgspec.structs.replace(one, epochs=()),
        msgspec.structs.replace(one, parts=()),
        msgspec.structs.replace(one, exact=False),
        msgspec.structs.replace(one, commitment="1" * 64),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 7
