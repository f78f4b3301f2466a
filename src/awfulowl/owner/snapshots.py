"""When the state of a panel under training is to be fetched."""

from typing import TYPE_CHECKING, Final

from awfulowl.limits import MIB

if TYPE_CHECKING:
    from awfulowl.owner.training import TrainedDeployment

_LEAST_LOG: Final = 32 * MIB
"""Less is replayed in no time, and not worth the requests of a snapshot."""


def due(training: "TrainedDeployment") -> list[int]:
    """Return the panels that a snapshot should be taken of, most bytes of log for a byte of state first."""
    policy = training.engine.policy
    due = [
        number
        for number, history in enumerate(training.histories)
        if len(history.log) >= policy.snapshot_after
        or history.failures >= policy.snapshot_failures
        or history.log_bytes > max(_LEAST_LOG, policy.snapshot_log * training.state(number).state_bytes)
        or (history.log and training.check(number).stretched > policy.snapshot_stretch)
    ]
    sizes = {number: history.log_bytes for number, history in enumerate(training.histories) if number not in due}
    if sum(sizes.values()) > policy.log_bytes:
        by_gain = sorted(sizes, key=lambda number: sizes[number] / training.state(number).state_bytes)
        while sum(sizes.values()) > policy.log_bytes // 2:
            due.append(by_gain.pop())
            del sizes[due[-1]]
    return due
