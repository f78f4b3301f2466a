"""Training that no image can follow: Adam moves weights in a way that is not linear in them.

After each step devices state their weights, and products are held to those: whoever multiplies with others is caught
at once, as ever. Whether the stated weights are the right ones is looked at when a panel is snapshot. A device then has
to give the whole state of its blocks, the weights being those that it stated last and the momentum that which images
followed. Of each device a share of the blocks, `policy.reworked`, and at least one, is rebuilt by the owner from the
snapshot before and the inputs and gradients since, and has to agree: with the state, and after each step with what was
stated, of which an image was kept. Which ones, the device cannot know before it has given them all.

So a device that lets a share φ of its blocks of a panel go wrong, at any step since the last snapshot, is found with a
probability of at least 1 - (1 - φ)^m, m of them being rebuilt. What is not proved is that the others went right.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.blocks.grid import rectangle
from awfulowl.errors import ModelError, PeerError, UnavailableError
from awfulowl.owner.gather import Source, ask_state, fetch_panel, fetch_state
from awfulowl.owner.history import Statement
from awfulowl.owner.peer import Standing
from awfulowl.placement.plan import Panel
from awfulowl.verification.reworking import Reworked, gradient_of

if TYPE_CHECKING:
    from awfulowl.owner.training import TrainedDeployment

Get = Callable[["TrainedDeployment", int, tuple[int, int], str], Awaitable[list[Tensor] | None]]
"""Fetches the matrix of a cell, a `place`, of a panel from a device; None if it is not what it should be."""


_LARGE: Final = 2.0**63
"""Of a weight: not even honest ones are questioned below."""

_CHANCES: Final = 2
"""Of a device to answer when a panel is fetched."""

_AGAIN_AND_AGAIN: Final = "devices keep giving blocks that are not what they should be; see fleet.events"


class _UnsettledError(Exception):
    """A cell has to be fetched from another device, or after weights were stated anew."""


async def state_weights(deployment: "TrainedDeployment", number: int) -> None:
    """Let devices say what the weights of a panel are now, and hold their products to that.

    Raises:
        UnavailableError: nothing honest is left that could say it.
    """
    rebuilt, said = deployment.rebuilt[number], False
    rebuilt.clear()
    try:
        devices: dict[int, str] = {}
        weight = (await _fetch(deployment, number, partial(_stated, devices), parts=1))[0]
        check = await deployment.engine.compute(partial(deployment.check(number).stating, weight))
        deployment.checks[number] = check
        history = deployment.histories[number]
        history.stated.append(Statement(history.step, check.statement, devices))
        said = True
    finally:
        if not said:  # nobody is to be held to what was stated before
            rebuilt.update(deployment.engine.peers)


async def _stated(
    devices: dict[int, str], deployment: "TrainedDeployment", number: int, place: tuple[int, int], device: str
) -> list[Tensor] | None:
    """Fetch the weights of a cell, and note who stated them."""
    devices[place[0]] = device
    found = await ask_state(deployment, number, place, Source(deployment.engine.peers[device]), parts=1)
    fits = len(found) == 1 and found[0].dtype is torch.float32
    fits = fits and tuple(found[0].shape) == _shape(deployment.panels[number], place[0])
    return found if fits and float(found[0].abs().max()) <= _most(deployment, number) else None


def _most(deployment: "TrainedDeployment", number: int) -> float:
    """Return how large a weight may be stated: one of which products leave float32 would be blamed on nobody."""
    log, largest = deployment.histories[number].log, deployment.largest_weight(number)
    rule = log[-1].rule if log else None
    if isinstance(rule, Adaptation):
        decay, move = abs(rule.weight_weight), abs(rule.weight_momentum)
        largest += decay * largest + (move * rule.furthest if move else 0.0)
    return min(max(_LARGE, 4 * largest), torch.finfo(torch.float32).max)


async def audited(deployment: "TrainedDeployment", number: int) -> list[Tensor]:
    """Return the state of a panel (`states.PARTS`), every cell as its images tell, and some of them rebuilt here.

    Raises:
        UnavailableError: nothing honest is left that could give it.
    """
    for _ in range(1 + len(deployment.engine.peers)):
        givers: dict[int, str] = {}
        state = await _fetch(deployment, number, partial(_given, givers))
        liars = {
            await _liar(deployment, number, (cell, givers[cell]), state) for cell in _draw(deployment, number, givers)
        }
        for device in sorted(liars - {""}):
            _blame(deployment, number, device)
        if liars.isdisjoint(givers.values()):  # what others said who are gone since is not in this state
            return state
    raise UnavailableError(f"{deployment.panels[number].title}: {_AGAIN_AND_AGAIN}")


async def _given(
    givers: dict[int, str], deployment: "TrainedDeployment", number: int, place: tuple[int, int], device: str
) -> list[Tensor] | None:
    """Fetch the whole state of a cell, and note who gave it."""
    givers[place[0]] = device
    return await fetch_state(deployment, number, *place, Source(deployment.engine.peers[device]))


async def _liar(deployment: "TrainedDeployment", number: int, given: tuple[int, str], state: Sequence[Tensor]) -> str:
    """Rebuild a cell that a device gave, and return who said something else of it, now or before; nobody is ""."""
    panel, (cell, giver) = deployment.panels[number], given
    placed = panel.cells[cell]
    found = [rectangle([part], panel.grid, placed.rows, [placed.column]) for part in state]
    deployment.engine.ledger.reworked += 1

    def rebuild() -> str:
        reworked = Reworked(deployment.matrices(number, placed.lane, placed.rows, [placed.column]))
        for device in _rework(deployment, number, cell, reworked):
            if device:
                return device
        return "" if reworked.agrees(found) else giver

    return await deployment.engine.compute(rebuild)


def _blame(deployment: "TrainedDeployment", number: int, device: str) -> None:
    peer = deployment.engine.peers[device]
    if peer.standing is not Standing.QUARANTINED:
        deployment.engine.ledger.lies_caught += 1
        name = deployment.panels[number].title
        deployment.engine.quarantine(peer, f"blocks of {name} are not what they should be")


async def _fetch(deployment: "TrainedDeployment", number: int, get: Get, parts: int | None = None) -> list[Tensor]:
    """Fetch all cells of a panel, again and again until nobody lied and nobody left meanwhile.

    Whoever fails to answer twice is passed over from then on: its blocks are rebuilt elsewhere, if the rules allow it.
    """
    name = deployment.panels[number].title
    failures: Counter[str] = Counter()

    async def one(cell: int, matrix: int) -> list[Tensor]:
        avoid = frozenset(device for device, count in failures.items() if count >= _CHANCES)
        ((device, _),) = await deployment.route(number, [cell], avoid)
        deployment.assignment.demote(number, cell, avoid - {device})
        try:
            found = await get(deployment, number, (cell, matrix), device)
        except PeerError as error:
            deployment.engine.note("failover", device, str(error))
            failures[device] += 1
            raise _UnsettledError from error
        if found is not None:
            return found
        if device not in deployment.rebuilt[number]:  # whose bits differ from those of the device before it
            _blame(deployment, number, device)
        raise _UnsettledError

    for _ in range(4 * (1 + len(deployment.engine.peers))):
        try:
            return await fetch_panel(deployment, number, deployment.engine.policy.request_timeout_s, one, parts)
        except _UnsettledError:
            if parts is None and deployment.rebuilt[number]:
                await state_weights(deployment, number)
    raise UnavailableError(f"{name}: {_AGAIN_AND_AGAIN}")


def _draw(deployment: "TrainedDeployment", number: int, givers: Mapping[int, str]) -> list[int]:
    """Choose the cells that are rebuilt here: of each device a share, and at least one, of those that it speaks for.

    These are the cells that it gave and those whose weights it stated: who does not give what it spoiled gains nothing.
    """
    spoken: dict[str, set[int]] = {}
    for said in (givers, *(one.devices for one in deployment.histories[number].stated)):
        for cell, device in said.items():
            spoken.setdefault(device, set()).add(cell)
    chosen: set[int] = set()
    for cells in map(sorted, spoken.values()):
        count = max(1, math.ceil(deployment.engine.policy.reworked * len(cells)))
        chosen.update(cells[index] for index in deployment.engine.entropy.permutation(len(cells))[:count])
    return sorted(chosen)


def _shape(panel: Panel, cell: int) -> tuple[int, ...]:
    placed, grid = panel.cells[cell], panel.grid
    column = grid.columns[placed.column]
    return (sum(grid.rows[row].size for row in placed.rows), column.span.size // column.groups, *grid.size)


def _rework(deployment: "TrainedDeployment", number: int, cell: int, reworked: Reworked) -> Iterator[str]:
    """Take the steps since the last snapshot with a cell, and yield after each who stated something else of it, or "".

    Raises:
        ModelError: a step was not one of Adam's.
    """
    panel, history, check = deployment.panels[number], deployment.histories[number], deployment.check(number)
    placed, grid = panel.cells[cell], panel.grid
    column = grid.columns[placed.column]
    outputs = torch.cat([torch.arange(grid.rows[row].start, grid.rows[row].stop) for row in placed.rows])
    inputs, shape = slice(column.span.start, column.span.stop), _shape(panel, cell)
    stated: dict[int, list[Statement]] = {}
    for one in history.stated:
        stated.setdefault(one.step, []).append(one)

    def liar(step: int) -> str:
        for said in stated.get(step, ()):
            secret, image = check.part_of(said.image, placed.rows, [placed.column])
            if not reworked.states(secret, image, column.groups):
                return said.devices[cell]
        return ""

    yield liar(history.step - len(history.log))
    for taken in history.log:
        if not isinstance(taken.rule, Adaptation):
            raise ModelError(f"{panel.title}: a step of another kind is among those of Adam")
        pairs = [(job.x[:, inputs], job.dy[:, outputs]) for job in taken.jobs]
        reworked.step(taken.rule, gradient_of(grid.kernel, shape, pairs, column.groups))
        yield liar(taken.step)
