"""One runner from its first step to the verdict, as experiments need it."""

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from awfulowl.jobs import challenge, proof
from awfulowl.jobs.checks.catalogue import Which
from awfulowl.jobs.loop import HONEST, Conduct, Work
from awfulowl.jobs.machine import Machine, this_machine
from awfulowl.jobs.verify import Verdict, verify
from awfulowl.randomness import SYSTEM, Entropy


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one runner: the verdict of the sound checks, and of the founding paper's, where they were made."""

    sound: Verdict
    printed: Verdict | None

    @property
    def printed_refusals(self) -> tuple[str, ...]:
        """The names of the printed checks that refuse."""
        return tuple(one.check for one in self.printed.findings if one.reason) if self.printed else ()


def attempt(
    work: Work,
    directory: Path,
    key: Ed25519PrivateKey,
    conduct: Conduct = HONEST,
    *,
    printed: bool = False,
    verifier: Machine | None = None,
    entropy: Entropy = SYSTEM,
) -> Trial:
    """Run a job, commit, be challenged, answer, and be verified.

    Args:
        work: the job.
        directory: for its proof.
        key: of the runner.
        conduct: how it goes through the job.
        printed: make the founding paper's checks as well.
        verifier: the class of the verifier's machine; None: this one.
        entropy: of the challenge.
    """
    proof.make(work, directory, key, conduct=conduct)
    found = proof.read(directory, work.job)
    asked = challenge.draw(found, verifier or this_machine(work.job.training.threads), entropy)
    challenge.answer(work, directory, asked, conduct=conduct)
    which: Which = "printed"
    return Trial(
        sound=verify(work, directory, asked, answered=True),
        printed=verify(work, directory, asked, answered=False, which=which, thorough=True) if printed else None,
    )
