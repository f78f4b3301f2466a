"""The state of a whole model at one step, fetched while training goes on.

Between two steps every holder copies its blocks, which takes as long as copying memory does. The copies then travel
beside the requests of the next steps, and are verified by what the checks were when they were made.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from awfulowl.errors import PeerError, UnavailableError
from awfulowl.owner.engine import together
from awfulowl.owner.gather import Source, fetch_panel, fetch_state
from awfulowl.owner.snapshots import adds_up
from awfulowl.owner.training import TrainedDeployment
from awfulowl.verification.training import TrainingCheck
from awfulowl.wire.messages import Freeze

_NOBODY: frozenset[str] = frozenset()


class Frozen(NamedTuple):
    """Who froze which cells under a number, by panel; and of each panel its check and what its history tells."""

    number: int
    sources: list[dict[int, str]]
    checks: list[TrainingCheck]
    has_momentum: list[bool]
    adapted: list[int]


async def freeze(deployment: TrainedDeployment) -> Frozen:
    """Let holders of every cell copy it as it is now; nothing may step meanwhile.

    Raises:
        UnavailableError: there is nobody honest for some cell.
    """
    number, panels = deployment.number(), range(len(deployment.panels))
    sources = await together(_freeze_panel(deployment, panel, number) for panel in panels)
    checks = [deployment.check(panel).copy() for panel in panels]
    histories = deployment.histories
    return Frozen(number, sources, checks, [one.has_momentum for one in histories], [one.adapted for one in histories])


async def _freeze_panel(deployment: TrainedDeployment, panel: int, number: int) -> dict[int, str]:
    sources: dict[int, str] = {}
    missing: Iterable[int] = range(len(deployment.panels[panel].cells))
    avoid = _NOBODY
    for _ in range(1 + len(deployment.engine.peers)):
        for (device, _lane), cells in (await deployment.route(panel, missing, avoid)).items():
            try:
                await _ask(deployment, panel, device, cells, number)
            except PeerError as error:
                deployment.engine.note("failover", device, str(error))
                avoid |= {device}
            else:
                sources |= dict.fromkeys(cells, device)
        missing = [cell for cell in missing if cell not in sources]
        if not missing:
            return sources
    raise UnavailableError(f"{deployment.panels[panel].name}: no device would copy its blocks; see fleet.events")


async def _ask(deployment: TrainedDeployment, panel: int, device: str, cells: Iterable[int], number: int) -> None:
    body = Freeze(deployment.rectangles(panel, cells), number)
    timeout_s = deployment.engine.policy.answer_timeout_s
    await deployment.engine.peers[device].ask(body, [], timeout_s=timeout_s)


async def fetch_frozen(deployment: TrainedDeployment, frozen: Frozen, timeout_s: float) -> list[list[Tensor]]:
    """Return the state of each panel (`states.PARTS`) when it was frozen, verified, and let the copies be forgotten.

    Raises:
        UnavailableError: a device that froze blocks left, lied, or lost them: freeze again.
    """
    states = []
    try:
        for panel, (sources, check) in enumerate(zip(frozen.sources, frozen.checks, strict=True)):
            states.append(await _fetch_panel(deployment, panel, (frozen.number, sources, check), timeout_s))
    finally:
        for panel, sources in enumerate(frozen.sources):
            for device in dict.fromkeys(sources.values()):
                cells = [cell for cell, source in sources.items() if source == device]
                deployment.engine.spawn(_thaw(deployment, panel, device, cells))
    return states


async def _fetch_panel(
    deployment: TrainedDeployment, panel: int, frozen: tuple[int, dict[int, str], TrainingCheck], timeout_s: float
) -> list[Tensor]:
    number, sources, check = frozen
    name = deployment.panels[panel].name

    async def get(cell: int, matrix: int) -> list[Tensor]:
        peer = deployment.engine.peers[sources[cell]]
        try:
            found = await fetch_state(deployment, panel, cell, matrix, Source(peer, number, check))
        except PeerError as error:
            raise UnavailableError(f"{name}: {error}, with the copy that it had made") from error
        if found is None:
            deployment.engine.quarantine(peer, f"weights of {name} failed the check")
            raise UnavailableError(f"{name}: {peer.name} sent other blocks than it was to copy")
        return found

    state = await fetch_panel(deployment, panel, timeout_s, get)
    if not await adds_up(deployment, check, state):
        raise UnavailableError(f"{name}: the copied blocks do not add up to what was trained")
    return state


async def _thaw(deployment: TrainedDeployment, panel: int, device: str, cells: Iterable[int]) -> None:
    try:
        await _ask(deployment, panel, device, cells, 0)
    except PeerError:
        return  # who is gone keeps nothing
