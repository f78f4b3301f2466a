"""Snapshots of panels under training: when one is due, and how it is taken."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awfulowl.errors import PeerError, UnavailableError
from awfulowl.limits import MIB
from awfulowl.owner.auditing import audited
from awfulowl.owner.gather import fetch_panel
from awfulowl.owner.peer import Peer
from awfulowl.owner.policy import Policy
from awfulowl.verification.training import TrainingCheck
from awfulowl.wire.messages import Commit

if TYPE_CHECKING:
    from awfulowl.owner.training import TrainedDeployment

_LEAST_LOG: Final = 32 * MIB
"""Less is replayed in no time, and not worth the requests of a snapshot."""

_LEAST_STEPS: Final = 10
"""Where fewer take the drift beyond what the policy wants, it is the rounding of a few steps, and stays."""


def due(training: "TrainedDeployment") -> list[int]:
    """Return the panels that a snapshot should be taken of, most bytes of log for a byte of state first."""
    policy = training.engine.policy
    due = [
        number
        for number, history in enumerate(training.histories)
        if history.failures >= policy.snapshot_failures
        or history.log_bytes > max(_LEAST_LOG, policy.snapshot_log * training.state(number).state_bytes)
        or (history.log and worn(training.check(number), len(history.log), policy))
    ]
    sizes = {number: history.log_bytes for number, history in enumerate(training.histories) if number not in due}
    if sum(sizes.values()) > policy.log_bytes:
        by_gain = sorted(sizes, key=lambda number: sizes[number] / training.state(number).state_bytes)
        while sum(sizes.values()) > policy.log_bytes // 2:
            due.append(by_gain.pop())
            del sizes[due[-1]]
    return due


def worn(check: TrainingCheck, steps: int, policy: Policy) -> bool:
    """Say whether secrets should be drawn anew, so many steps after they were, by what has become of the weights."""
    return (
        steps >= policy.snapshot_after
        or check.stretched > policy.snapshot_stretch
        or (steps >= _LEAST_STEPS and check.drift > policy.snapshot_drift)
    )


async def take(training: "TrainedDeployment", number: int) -> list[Tensor]:
    """Fetch the state of a panel, verify it, keep it, draw new secrets, and return it (`states.PARTS`).

    Raises:
        UnavailableError: nothing honest is left that could give it.
        ModelError: it cannot be kept.
    """
    history, policy = training.histories[number], training.engine.policy
    async with history.lock:
        if history.adaptive and policy.verify:
            state = await audited(training, number)
        else:
            state = await fetch_panel(training, number, policy.request_timeout_s)
        check = training.check(number)
        if not await adds_up(training, check, state):
            raise UnavailableError(
                f"{training.panels[number].title}: the blocks that devices hold do not add up to what was trained"
            )
        training.strayed(number, check.drift)
        training.engine.ledger.snapshots += 1
        await training.engine.compute(partial(training.state(number).anchor, state, history.step))
        training.checks[number] = await training.engine.compute(partial(training.new_check, number))
        history.log, history.stated, history.failures = [], [], 0
        for job in history.pending:
            await training.see(number, job)
        await _compare_replicas(training, number)
    return state


async def settle(training: "TrainedDeployment") -> None:
    """Take snapshots of the panels that Adam moved since their last: nobody may have its word for more than that.

    Raises:
        UnavailableError: nothing honest is left that could give one.
    """
    for number, history in enumerate(training.histories):
        if history.adaptive and history.log:
            await take(training, number)


async def adds_up(training: "TrainedDeployment", check: TrainingCheck, state: Sequence[Tensor]) -> bool:
    """Say whether the state of a whole panel is what its check has followed."""
    return not training.engine.policy.verify or await training.engine.compute(partial(check.matches_whole, state))


async def _compare_replicas(training: "TrainedDeployment", number: int) -> None:
    """Load the snapshot onto devices that hold other bits: maybe honest ones, but the check starts anew."""
    if training.replicas == 1:
        return
    for device, cells in training.in_step(number).items():
        try:
            same = [await _holds(training, training.engine.peers[device], number, cell) for cell in cells]
        except PeerError:
            same = [False]
        if not all(same):
            training.engine.note("behind", device, f"{training.panels[number].title}: not the bits of its replica")
            training.behind(device, number, cells)


async def _holds(training: "TrainedDeployment", peer: Peer, number: int, cell: int) -> bool:
    """Say whether a device states the digest of the last snapshot."""
    panel = training.panels[number]
    rows = tuple(panel.row_handles[row] for row in panel.cells[cell].rows)
    parts = training.state(number).fetched
    body = Commit(rows=rows, slices=training.slices(number, cell), parts=parts)
    wanted = await training.engine.compute(partial(training.digest, number, cell))
    answer = await peer.ask(body, [], timeout_s=training.engine.policy.answer_timeout_s)
    return torch.equal(answer.tensors[0], wanted)
