"""Training that no image can follow: Adam moves weights in a way that is not linear in them.

After each step devices state their weights, and products are held to those: whoever multiplies with others is caught
at once, as ever. Whether the stated weights are the right ones is looked at when a panel is snapshot. A device then has
to give the whole state of its blocks, the weights being those that it stated last and the momentum that which images
followed. Of each device a share of the blocks, `policy.reworked`, and at least one, is rebuilt by the owner from the
snapshot before and the inputs and gradients since, and has to agree. Which ones, the device cannot know before it has
given them all.

So a device that lets a share φ of its blocks of a panel go wrong, at any step since the last snapshot, is found with a
probability of at least 1 - (1 - φ)^m, m of them being rebuilt. What is not proved is that the others went right.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.errors import ModelError, PeerError, UnavailableError
from awfulowl.owner.gather import Source, ask_state, fetch_panel, fetch_state
from awfulowl.placement.plan import Panel
from awfulowl.verification.reworking import Reworked, gradient_of

if TYPE_CHECKING:
    from awfulowl.owner.training import TrainedDeployment

Get = Callable[["TrainedDeployment", int, tuple[int, int], str], Awaitable[list[Tensor] | None]]
"""Fetches the matrix of a cell, a `place`, of a panel from a device; None if it is not what it should be."""


class _UnsettledError(Exception):
    """A cell has to be fetched from another device, or after weights were stated anew."""


async def state_weights(deployment: "TrainedDeployment", number: int) -> None:
    """Let devices say what the weights of a panel are now, and hold their products to that.

    Raises:
        UnavailableError: nothing honest is left that could say it.
    """
    deployment.rebuilt[number].clear()
    weight = (await _fetch(deployment, number, _stated, parts=1))[0]
    check = deployment.check(number)
    deployment.checks[number] = await deployment.engine.compute(partial(check.stating, weight))


async def _stated(
    deployment: "TrainedDeployment", number: int, place: tuple[int, int], device: str
) -> list[Tensor] | None:
    found = await ask_state(deployment, number, place, Source(deployment.engine.peers[device]), parts=1)
    fits = len(found) == 1 and found[0].dtype is torch.float32
    fits = fits and tuple(found[0].shape) == _shape(deployment.panels[number], place[0])
    return found if fits and bool(found[0].isfinite().all()) else None


async def audited(deployment: "TrainedDeployment", number: int) -> list[Tensor]:
    """Return the state of a panel (`states.PARTS`), every cell as its images tell, and some of them rebuilt here.

    Raises:
        UnavailableError: nothing honest is left that could give it.
    """
    chosen = _draw(deployment, number)

    async def get(
        deployment: "TrainedDeployment", number: int, place: tuple[int, int], device: str
    ) -> list[Tensor] | None:
        found = await fetch_state(deployment, number, *place, Source(deployment.engine.peers[device]))
        if found is None or place[0] not in chosen:
            return found
        deployment.engine.ledger.reworked += 1
        reworked = await deployment.engine.compute(partial(rework, deployment, number, place[0]))
        return found if await deployment.engine.compute(partial(reworked.agrees, found)) else None

    return await _fetch(deployment, number, get)


async def _fetch(deployment: "TrainedDeployment", number: int, get: Get, parts: int | None = None) -> list[Tensor]:
    """Fetch all cells of a panel, again and again until nobody lied and nobody left meanwhile."""
    name = deployment.panels[number].name

    async def one(cell: int, matrix: int) -> list[Tensor]:
        ((device, _),) = await deployment.route(number, [cell], frozenset())
        try:
            found = await get(deployment, number, (cell, matrix), device)
        except PeerError as error:
            deployment.engine.note("failover", device, str(error))
            raise _UnsettledError from error
        if found is not None:
            return found
        if device not in deployment.rebuilt[number]:  # whose bits differ from those of the device before it
            deployment.engine.ledger.lies_caught += 1
            deployment.engine.quarantine(
                deployment.engine.peers[device], f"blocks of {name} are not what they should be"
            )
        raise _UnsettledError

    for _ in range(4 * (1 + len(deployment.engine.peers))):
        try:
            return await fetch_panel(deployment, number, deployment.engine.policy.request_timeout_s, one, parts)
        except _UnsettledError:
            if parts is None and deployment.rebuilt[number]:
                await state_weights(deployment, number)
    raise UnavailableError(f"{name}: devices keep giving blocks that are not what they should be; see fleet.events")


def _draw(deployment: "TrainedDeployment", number: int) -> frozenset[int]:
    """Choose the cells that are rebuilt here: of each device a share, and at least one."""
    chosen: set[int] = set()
    for cells in deployment.in_step(number).values():
        count = max(1, math.ceil(deployment.engine.policy.reworked * len(cells)))
        chosen |= {cells[index] for index in deployment.engine.entropy.permutation(len(cells))[:count]}
    return frozenset(chosen)


def _shape(panel: Panel, cell: int) -> tuple[int, ...]:
    placed, grid = panel.cells[cell], panel.grid
    column = grid.columns[placed.column]
    return (sum(grid.rows[row].size for row in placed.rows), column.span.size // column.groups, *grid.size)


def rework(deployment: "TrainedDeployment", number: int, cell: int) -> Reworked:
    """Rebuild a cell from the last snapshot, along the inputs and gradients of all steps since.

    Raises:
        ModelError: the snapshot cannot be read.
    """
    panel = deployment.panels[number]
    placed, grid = panel.cells[cell], panel.grid
    column = grid.columns[placed.column]
    reworked = Reworked(deployment.matrices(number, placed.lane, placed.rows, [placed.column]))
    outputs = torch.cat([torch.arange(grid.rows[row].start, grid.rows[row].stop) for row in placed.rows])
    inputs = slice(column.span.start, column.span.stop)
    shape = _shape(panel, cell)
    for taken in deployment.histories[number].log:
        if not isinstance(taken.rule, Adaptation):
            raise ModelError(f"{panel.name}: a step of another kind is among those of Adam")
        pairs = [(job.x[:, inputs], job.dy[:, outputs]) for job in taken.jobs]
        reworked.step(taken.rule, gradient_of(grid.kernel, shape, pairs, column.groups))
    return reworked
