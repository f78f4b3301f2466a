"""The verifier: named checks in order, each with a verdict and a cost; nothing that the runner wrote is believed."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import challenge as challenges
from awfulowl.jobs.challenge import ANSWERS, Challenge
from awfulowl.jobs.checks.base import Case, Check, Cost, Own, States, timed
from awfulowl.jobs.checks.catalogue import Which, chosen
from awfulowl.jobs.failures import Blamed
from awfulowl.jobs.loop import Trainer, Work, repeatable
from awfulowl.jobs.merkle import belongs
from awfulowl.jobs.proof import STATES, Proof, leaf, read, read_digests, read_state, tree
from awfulowl.jobs.state import State

UNREADABLE: Final = "files"
"""The name under which a proof is refused whose files cannot be read, before any check."""

Status = Literal["accepted", "refused", "unverified"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one check said: `reason` is why it refuses, None when it does not."""

    check: str
    printed: bool
    reason: str | None
    seconds: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a verifier found; digests are in hex."""

    status: Status
    caught_by: str | None
    reason: str | None
    findings: tuple[Finding, ...]
    verification_cost: float | None
    """Processor time of verifying over that of the whole training on the same machine; None: no step was run."""
    replayed_steps: int
    """Steps that were run, of the job or to rebuild a state."""
    evaluated_examples: int
    steps: int
    exact: bool
    """Whether runner and verifier are of one class, so that every bit had to be equal."""
    job: str
    commitment: str
    model: str
    """Of the last state."""


def verify(
    work: Work, directory: Path, challenge: Challenge, *, answered: bool, which: Which = "sound", thorough: bool = False
) -> Verdict:
    """Verify a proof.

    Args:
        work: the job, from the client's package and never from the runner.
        directory: of the proof.
        challenge: that this verifier drew for the proof's commitment.
        answered: the runner rebuilt the states that were asked for; otherwise they are rebuilt here, from those that it
            stored.
        which: the checks that are made.
        thorough: make all checks, even after one has refused.

    Raises:
        InputError: the challenge is of another proof, or states cannot be rebuilt here, by a machine of another class.
    """
    began = time.process_time()
    try:
        proof = read(directory, work.job)
    except ProofError as error:
        return _unreadable(work, str(error))
    if challenge.commitment != proof.commitment.digest.hex() or challenge.job != work.job.digest.hex():
        raise InputError(f"the challenge was drawn for another commitment than that in {directory}: draw a new one")
    if not answered and not challenge.exact:
        raise InputError(
            "the runner's machine is of another class, so its states cannot be rebuilt here bit by bit: let it answer "
            "the challenge"
        )
    with repeatable(work.job.training.threads):
        own = Own(work)
        try:
            states = _Answered(own, proof, challenge) if answered else _Rebuilt(own, proof)
        except ProofError as error:
            return _verdict(proof, challenge, own.cost, began, [_finding(UNREADABLE, str(error))])
        findings = _all(Case(own, proof, challenge, states), which, thorough)
    return _verdict(proof, challenge, own.cost, began, findings)


def _all(case: Case, which: Which, thorough: bool) -> list[Finding]:
    findings: list[Finding] = []
    for check in chosen(which):
        findings.append(_made(check, case))
        if findings[-1].reason is not None and not thorough:
            break
    return findings


def _made(check: Check, case: Case) -> Finding:
    before = time.process_time()
    try:
        reason = check.refuse(case)
    except (ProofError, InputError) as error:
        reason = str(error)
    return Finding(check=check.name, printed=check.printed, reason=reason, seconds=time.process_time() - before)


def _verdict(proof: Proof, challenge: Challenge, cost: Cost, began: float, findings: list[Finding]) -> Verdict:
    deciding = [one for one in findings if not one.printed] or findings
    caught = next((one for one in deciding if one.reason is not None), None)
    training_s = cost.step_s * proof.commitment.steps
    return Verdict(
        status="refused" if caught else "accepted",
        caught_by=caught.check if caught else None,
        reason=caught.reason if caught else None,
        findings=tuple(findings),
        verification_cost=(time.process_time() - began) / training_s if training_s else None,
        replayed_steps=cost.steps,
        evaluated_examples=cost.examples,
        steps=proof.commitment.steps,
        exact=challenge.exact,
        job=proof.commitment.job,
        commitment=proof.commitment.digest.hex(),
        model=proof.commitment.final,
    )


def _unreadable(work: Work, reason: str) -> Verdict:
    return Verdict(
        status="refused",
        caught_by=UNREADABLE,
        reason=reason,
        findings=(_finding(UNREADABLE, reason),),
        verification_cost=None,
        replayed_steps=0,
        evaluated_examples=0,
        steps=work.steps,
        exact=False,
        job=work.job.digest.hex(),
        commitment="",
        model="",
    )


def _finding(check: str, reason: str) -> Finding:
    return Finding(check=check, printed=False, reason=reason, seconds=0.0)


class _Answered(States):
    """States from a runner's answer: each comes with its way to the root."""

    def __init__(self, own: Own, proof: Proof, challenge: Challenge) -> None:
        _check_steps(own.work, proof)
        found = challenges.read_openings(proof.directory)
        if found.challenge != challenge.digest:
            raise ProofError("the answer is to another challenge")
        root, count = bytes.fromhex(proof.commitment.root), proof.commitment.steps + 1
        for one in found.openings:
            if not belongs(leaf(own.work, one.step, one.state), one.step, one.path, count, root):
                raise ProofError(f"what was opened for step {one.step} does not lie under the committed root")
        self._opened: Final[Mapping[int, bytes]] = {one.step: one.state for one in found.openings}
        self._own: Final = own
        self._answers: Final = proof.directory / ANSWERS

    def digest(self, step: int) -> bytes:
        if step not in self._opened:
            raise ProofError(f"the runner did not open the state before step {step}")
        return self._opened[step]

    def state(self, step: int) -> State:
        return self._own.held(read_state(self._answers, step, self._own.begun.bytes), self.digest(step))

    def stored(self, step: int) -> State | None:  # noqa: ARG002 - only a verifier with all digests can hold them
        return None


class _Rebuilt(States):
    """States from a whole proof: rebuilt from the nearest one that was stored, and each step on the way is checked."""

    def __init__(self, own: Own, proof: Proof) -> None:
        _check_steps(own.work, proof)
        self._digests: Final = read_digests(proof.directory, own.work.steps)
        if tree(own.work, self._digests).root.hex() != proof.commitment.root:
            raise ProofError("the digests of the states do not lead to the committed root")
        self._own: Final = own
        self._stored: Final = proof.directory / STATES
        self._trainer: Final = Trainer(own.work)

    def digest(self, step: int) -> bytes:
        return self._digests[step]

    def state(self, step: int) -> State:
        nearest = self._own.work.nearest(step)
        if nearest > self._trainer.step or step < self._trainer.step:
            self._trainer.load(self.stored(nearest))
        while self._trainer.step < step:
            with timed(self._own.cost), Blamed(self._trainer.step):
                self._trainer.advance()
            self._own.held(self._trainer.state(), self._digests[self._trainer.step])
        return self._trainer.state()

    def stored(self, step: int) -> State:
        if step == 0:
            return self._own.held(self._own.begun, self._digests[0])
        return self._own.held(read_state(self._stored, step, self._own.begun.bytes), self._digests[step])


def _check_steps(work: Work, proof: Proof) -> None:
    if proof.commitment.steps != work.steps:
        raise ProofError(f"the job has {work.steps} steps, the runner committed to {proof.commitment.steps}")
