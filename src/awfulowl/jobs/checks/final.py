"""Whether the model that is handed over is the last committed state."""

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.state import digest


class Final(Check):
    """The last state lies under the root; everything that the runner keeps beside it is worth nothing."""

    name = "final"

    def refuse(self, case: Case) -> str | None:
        """Return why the last state is refused, or None."""
        last = case.states.state(case.work.steps)
        if digest(last).hex() != case.proof.commitment.final:
            return "the model that the runner names is not its last committed state"
        return None
