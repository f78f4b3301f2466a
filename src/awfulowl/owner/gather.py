"""Bring the weights of a scattered model home: fetched, verified, and joined into a plain state_dict."""

import asyncio
import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from awfulowl.blocks.grid import rejoin
from awfulowl.errors import PeerError, UnavailableError
from awfulowl.owner.deployment import Deployment
from awfulowl.placement.survey import Part, product_name
from awfulowl.wire.messages import Fetch


async def gather_product(deployment: Deployment, number: int, timeout_s: float) -> Tensor:
    """Return the stacked weights of a panel, (outputs, inputs / groups, *size), fetched from devices and verified.

    Raises:
        UnavailableError: a cell cannot be had from any honest device within `timeout_s`.
    """
    panel = deployment.panels[number]
    blocks: dict[tuple[int, int], Tensor] = {}
    try:
        async with asyncio.timeout(timeout_s):
            for lane, part in deployment.sharing.whole:
                for index, cell in enumerate(panel.cells):
                    if cell.lane == lane:
                        block = await _fetch(deployment, number, index, part)
                        # Row by row: what is held together may differ from lane to lane.
                        sizes = [panel.grid.rows[row].size for row in cell.rows]
                        for row, own in zip(cell.rows, torch.split(block, sizes), strict=True):
                            place = (cell.column, row)
                            blocks[place] = own if place not in blocks else blocks[place] + own
    except TimeoutError as error:
        raise UnavailableError(f"{panel.name}: not all weights came within {timeout_s:g} s") from error
    restore = deployment.numbers[number].restore
    pieces = [((row,), (column,), restore(block, (row,))) for (column, row), block in blocks.items()]
    return rejoin(pieces, panel.grid)


async def _fetch(deployment: Deployment, number: int, cell: int, part: int) -> Tensor:
    """Return one matrix of a cell, from an honest device."""
    panel = deployment.panels[number]
    lane, rows, column = panel.cells[cell].lane, panel.cells[cell].rows, panel.cells[cell].column
    handles = tuple(panel.row_handles[row] for row in rows)
    body = Fetch(rows=handles, slices=deployment.slices(number, cell)[part : part + 1])
    check, numbers = deployment.checks[number], deployment.numbers[number]
    avoid: frozenset[str] = frozenset()
    for _ in range(2 + len(deployment.engine.peers)):
        ((device, _),) = await deployment.route(number, [cell], avoid)
        peer = deployment.engine.peers[device]
        try:
            _, answer = await peer.ask(body, [], timeout_s=deployment.engine.policy.answer_timeout_s)
        except PeerError as error:
            deployment.engine.note("failover", device, str(error))
            avoid |= {device}
            continue
        is_right = partial(numbers.is_matrix, check, (lane, part), rows, [column])
        if len(answer) == 1 and await deployment.engine.compute(partial(is_right, answer[0])):
            return answer[0]
        deployment.engine.quarantine(peer, f"weights of {panel.name} failed the check")
        avoid |= {device}
    raise UnavailableError(f"{panel.name}: no honest device returned these weights")


async def gather(
    deployment: Deployment, scattered: nn.Module, parts: Iterable[Part], timeout_s: float
) -> dict[str, Tensor]:
    """Return the state_dict that the original model would have; exact plans give the weights as they were rounded.

    A clone of each scattered module takes the weights in: its adapter's products are views of its parameters.
    """
    state: dict[str, Tensor] = dict(scattered.state_dict())
    stacked = [await gather_product(deployment, number, timeout_s) for number in range(len(deployment.panels))]
    rows = {
        member.product: stacked[number][member.rows.start : member.rows.stop]
        for number, panel in enumerate(deployment.panels)
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
