"""The state of a whole model at one step, fetched while training goes on.

Between two steps every holder copies its blocks, which takes as long as copying memory does. The copies then travel
beside the requests of the next steps, and are verified by what the checks were when they were made.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from awfulowl.errors import PeerError, UnavailableError
from awfulowl.owner.engine import together
from awfulowl.owner.gather import Source, fetch_panel, fetch_state
from awfulowl.owner.snapshots import adds_up
from awfulowl.owner.training import TrainedDeployment
from awfulowl.verification.training import TrainingCheck
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Freeze

_NOBODY: frozenset[str] = frozenset()


class Frozen(NamedTuple):
    """Who froze which cells under a number, by panel; and of each panel its check and what its history tells.

    `digests` are those of cells that Adam moves, which no check knows to the last part: a snapshot was just taken.
    """

    number: int
    sources: list[dict[int, str]]
    checks: list[TrainingCheck]
    digests: list[dict[int, Tensor]]
    has_momentum: list[bool]
    adapted: list[int]
    drift: list[float]


async def freeze(deployment: TrainedDeployment) -> Frozen:
    """Let holders of every cell copy it as it is now; nothing may step meanwhile.

    Raises:
        UnavailableError: there is nobody honest for some cell.
    """
    number, panels = deployment.number(), range(len(deployment.panels))
    sources = await together(_freeze_panel(deployment, panel, number) for panel in panels)
    checks = [deployment.check(panel).copy() for panel in panels]
    digests = [await _digests(deployment, panel) for panel in panels]
    began, adapted = zip(*((one.has_momentum, one.adapted) for one in deployment.histories), strict=True)
    drift = [deployment.drifted(panel) for panel in panels]
    return Frozen(number, sources, checks, digests, list(began), list(adapted), drift)


async def _digests(deployment: TrainedDeployment, panel: int) -> dict[int, Tensor]:
    history = deployment.histories[panel]
    if not history.adaptive or history.log or not deployment.engine.policy.verify:
        return {}
    cells = range(len(deployment.panels[panel].cells))
    return {cell: await deployment.engine.compute(partial(deployment.digest, panel, cell)) for cell in cells}


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
    raise UnavailableError(f"{deployment.panels[panel].title}: no device would copy its blocks; see fleet.events")


async def _ask(deployment: TrainedDeployment, panel: int, device: str, cells: Iterable[int], number: int) -> None:
    body = Freeze(deployment.rectangles(panel, cells), number)
    timeout_s = deployment.engine.policy.answer_timeout_s
    await deployment.engine.peers[device].ask(body, [], timeout_s=timeout_s)


async def fetch_frozen(deployment: TrainedDeployment, frozen: Frozen, timeout_s: float) -> list[list[Tensor]]:
    """Return the state of each panel (`states.PARTS`) when it was frozen, verified, and let the copies be forgotten.

    Raises:
        UnavailableError: a device that froze blocks left, lied, or lost them: freeze again.
    """
    try:
        return [await _fetch_panel(deployment, panel, frozen, timeout_s) for panel in range(len(deployment.panels))]
    finally:
        for panel, sources in enumerate(frozen.sources):
            for device in dict.fromkeys(sources.values()):
                cells = [cell for cell, source in sources.items() if source == device]
                deployment.engine.spawn(_thaw(deployment, panel, device, cells))


async def _fetch_panel(deployment: TrainedDeployment, panel: int, frozen: Frozen, timeout_s: float) -> list[Tensor]:
    sources, check, digests = frozen.sources[panel], frozen.checks[panel], frozen.digests[panel]
    name = deployment.panels[panel].title

    async def get(cell: int, matrix: int) -> list[Tensor]:
        peer = deployment.engine.peers[sources[cell]]
        try:
            found = await fetch_state(deployment, panel, cell, matrix, Source(peer, frozen.number, check))
        except PeerError as error:
            raise UnavailableError(f"{name}: {error}, with the copy that it had made") from error
        if found is None or (cell in digests and not torch.equal(digest(found), digests[cell])):
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
