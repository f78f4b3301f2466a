"""Bring the weights of a scattered model home: fetched, verified, and joined into a plain state_dict."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.blocks.grid import rejoin
from awfulowl.errors import PeerError, UnavailableError
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.engine import together
from awfulowl.owner.peer import Peer
from awfulowl.placement.plan import Panel
from awfulowl.placement.survey import Part, product_name
from awfulowl.verification.training import TrainingCheck
from awfulowl.wire.messages import Fetch

_FETCHES_AT_ONCE: Final = 8


class Source(NamedTuple):
    """Whom blocks are fetched from: as they are now, or a copy frozen under a number, and what verifies that."""

    peer: Peer
    frozen: int = 0
    check: TrainingCheck | None = None


async def fetch_panel(
    deployment: Deployment,
    number: int,
    timeout_s: float,
    get: Callable[[int, int], Awaitable[list[Tensor]]] | None = None,
    parts: int | None = None,
) -> list[Tensor]:
    """Return what devices hold of a panel, verified: its parts, (outputs, inputs / groups, *size) float32 each.

    Args:
        deployment: where the panel is.
        number: the panel's.
        timeout_s: seconds until all has to be there.
        get: returns the verified parts of a cell and the number of a matrix; None asks any honest device.
        parts: how many; None for all that there are.

    Raises:
        UnavailableError: a cell cannot be had from any honest device within `timeout_s`.
    """
    panel, numbers = deployment.panels[number], deployment.numbers[number]
    blocks: list[dict[tuple[int, int], Tensor]] = [{} for _ in range(parts or numbers.fetched)]
    slots = asyncio.Semaphore(_FETCHES_AT_ONCE)

    async def one(cell: int, matrix: int) -> None:
        async with slots:
            found = await (get(cell, matrix) if get else _fetch(deployment, number, cell, matrix))
        # Row by row: what is held together may differ from lane to lane.
        rows, column = panel.cells[cell].rows, panel.cells[cell].column
        for sums, block in zip(blocks, found, strict=True):
            for row, own in zip(rows, torch.split(block, [panel.grid.rows[row].size for row in rows]), strict=True):
                place = (column, row)
                sums[place] = own if place not in sums else sums[place] + own

    try:
        async with asyncio.timeout(timeout_s):
            for lane, matrix in deployment.sharing.whole:
                cells = [index for index, cell in enumerate(panel.cells) if cell.lane == lane]
                await together(one(cell, matrix) for cell in cells)
    except TimeoutError as error:
        raise UnavailableError(f"{panel.title}: not all weights came within {timeout_s:g} s") from error
    whole = []
    for sums in blocks:
        pieces = [((row,), (column,), numbers.restore(block, (row,))) for (column, row), block in sums.items()]
        whole.append(rejoin(pieces, panel.grid))
    return whole


async def ask_state(
    deployment: Deployment, number: int, place: tuple[int, int], source: Source, parts: int
) -> list[Tensor]:
    """Return parts of a cell's matrix, a `place`, as a device says that it holds them: any types, any shapes.

    Raises:
        PeerError: the device does not answer.
    """
    panel, (cell, matrix) = deployment.panels[number], place
    body = Fetch(
        rows=tuple(panel.row_handles[row] for row in panel.cells[cell].rows),
        slices=deployment.slices(number, cell)[matrix : matrix + 1],
        parts=parts,
        frozen=source.frozen,
    )
    return (await source.peer.ask(body, [], timeout_s=deployment.engine.policy.answer_timeout_s)).tensors


async def fetch_state(
    deployment: Deployment, number: int, cell: int, matrix: int, source: Source
) -> list[Tensor] | None:
    """Return the parts of one matrix of a cell as one device holds them, or None if it is not what it should hold.

    Raises:
        PeerError: the device does not answer.
    """
    numbers, placed = deployment.numbers[number], deployment.panels[number].cells[cell]
    lane, rows, column = placed.lane, placed.rows, placed.column
    answer = await ask_state(deployment, number, (cell, matrix), source, numbers.fetched)
    check = source.check or deployment.checks[number]
    if len(answer) != numbers.fetched:
        return None
    is_right = partial(numbers.is_matrix, check, (lane, matrix), rows, [column], answer)
    return answer if not deployment.engine.policy.verify or await deployment.engine.compute(is_right) else None


async def _fetch(deployment: Deployment, number: int, cell: int, matrix: int) -> list[Tensor]:
    """Return the parts of one matrix of a cell, from an honest device."""
    panel = deployment.panels[number]
    avoid: frozenset[str] = frozenset()
    for _ in range(2 + len(deployment.engine.peers)):
        ((device, _),) = await deployment.route(number, [cell], avoid)
        peer = deployment.engine.peers[device]
        try:
            found = await fetch_state(deployment, number, cell, matrix, Source(peer))
        except PeerError as error:
            deployment.engine.note("failover", device, str(error))
        else:
            if found is not None:
                return found
            deployment.engine.quarantine(peer, f"weights of {panel.title} failed the check")
        avoid |= {device}
    raise UnavailableError(f"{panel.title}: no honest device returned these weights")


async def gather(
    deployment: Deployment, scattered: nn.Module, parts: Iterable[Part], timeout_s: float
) -> dict[str, Tensor]:
    """Return the state_dict that the original model would have; exact plans give the weights as they were rounded."""
    stacked = [(await fetch_panel(deployment, number, timeout_s))[0] for number in range(len(deployment.panels))]
    return state_dict(deployment.panels, stacked, dict(scattered.state_dict()), parts)


def state_dict(
    panels: Sequence[Panel], stacked: Sequence[Tensor], kept: Mapping[str, Tensor], parts: Iterable[Part]
) -> dict[str, Tensor]:
    """Return the state_dict of a whole model from the stacked weights of its panels and what is kept.

    A clone of each scattered module takes the weights in: its adapter's products are views of its parameters.
    """
    state = dict(kept)
    rows = {
        member.product: stacked[number][member.rows.start : member.rows.stop]
        for number, panel in enumerate(panels)
        for member in panel.members
    }
    for part in parts:
        # Contiguous, or the products of a channels-last convolution would be copies instead of views.
        clone = copy.deepcopy(part.target.module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in its stubs
        path = part.target.name
        with torch.no_grad():
            for product in part.target.adapter.products(clone, unfold=part.unfold):
                home = rows[product_name(path, product.name)]
                sizes = [weight.shape[0] for weight in product.weights]
                for weight, values in zip(product.weights, torch.split(home, sizes), strict=True):
                    weight.copy_(values)
        for name, parameter in clone.state_dict().items():
            state.setdefault(f"{path}.{name}" if path else name, parameter)
    return state
