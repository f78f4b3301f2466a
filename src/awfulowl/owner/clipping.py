"""The length of a gradient that is on devices only.

For jobs of n samples in all, |G|² = Σ_ab (dy_a · dy_b)(x_a · x_b): the owner computes it exactly where that
costs less than a part of what the gradient costs devices. Otherwise devices say how long their blocks'
gradients are, and the owner holds them to |U G|²/m, with m fresh normal vectors U that it does not tell: m
samples of a mean that is |G|². How far they stray depends on G; most, like χ²/m with m degrees of freedom,
where G has rank 1. The quantiles of that bound what is accepted (`band`), so an honest device is refused once
in 10^11, and a liar may call |G| up to 1.7 times shorter or 2.2 times longer than it is. A lie about the length
changes how long the step is, never where it leads, and every device takes the same.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from awfulowl.blocks.kernels import Dense
from awfulowl.errors import PeerError, UnavailableError
from awfulowl.owner.engine import together
from awfulowl.owner.history import Job
from awfulowl.owner.training import STEP_TIMEOUT_FACTOR, TrainedDeployment
from awfulowl.placement.plan import Panel
from awfulowl.verification.gradients import sketch
from awfulowl.wire.messages import Measure

_CHEAP: Final = 0.25
"""Of the multiplications of the gradient itself, up to which the length is computed here."""

_SAMPLES: Final = 64

_DEVIATIONS: Final = 7.0

_ROUNDING: Final = 1e-3
"""Of sums in float32 that are compared with sums in float64."""


def band(samples: int, deviations: float = _DEVIATIONS) -> tuple[float, float]:
    """Return the range of χ²/m that holds all but what so many deviations leave (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * samples)
    low, high = ((1 - spread + sign * deviations * math.sqrt(spread)) ** 3 for sign in (-1, 1))
    return max(low, 0.0), high


async def squared_norm(deployment: TrainedDeployment, panels: Sequence[int]) -> float:
    """Return |G|² over some panels, along the gradients of their jobs.

    Raises:
        UnavailableError: nothing honest is left that could say it.
    """
    return math.fsum(await together(_panel(deployment, number) for number in panels))


async def _panel(deployment: TrainedDeployment, number: int) -> float:
    jobs = deployment.histories[number].jobs()
    if not jobs:
        return 0.0
    grid = deployment.panels[number].grid
    samples = sum(len(job.x) for job in jobs)
    if isinstance(grid.kernel, Dense) and samples * (grid.inputs + grid.outputs) <= _CHEAP * grid.inputs * grid.outputs:
        return await deployment.engine.compute(partial(exactly, jobs))
    for _ in range(1 + len(deployment.engine.peers)):
        total = await _measured(deployment, number, jobs)
        if total is not None:
            return total
    raise UnavailableError(f"{deployment.panels[number].title}: nobody honest says how long the gradient is")


def exactly(jobs: Sequence[Job]) -> float:
    """Return |G|² of dense jobs, from the products of their samples with each other."""
    x, dy = (torch.cat([getattr(job, name) for job in jobs]).double() for name in ("x", "dy"))
    return max(0.0, float(((dy @ dy.T) * (x @ x.T)).sum()))


async def _measured(deployment: TrainedDeployment, number: int, jobs: Sequence[Job]) -> float | None:
    """Return what devices say together, None if one of them lied or is gone: then others have its blocks."""
    panel = deployment.panels[number]
    routed = await deployment.route(number, range(len(panel.cells)), frozenset())
    shares: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for (device, _lane), cells in routed.items():
        for cell in cells:
            shares.setdefault((device, panel.cells[cell].rows), []).append(cell)
    secret = deployment.engine.entropy.normal(_SAMPLES, panel.grid.outputs)
    by_rows = {
        rows: await deployment.engine.compute(partial(_estimates, deployment, number, _only(secret, panel, rows), jobs))
        for rows in {rows for _, rows in shares}
    }
    total = 0.0
    for (device, rows), cells in shares.items():
        expected = sum(by_rows[rows][panel.cells[cell].column] for cell in cells)
        said = await _ask(deployment, number, device, cells, jobs)
        if said is None or not _plausible(said, expected):
            if said is not None:
                deployment.engine.ledger.lies_caught += 1
                peer = deployment.engine.peers[device]
                deployment.engine.quarantine(peer, f"its gradient of {panel.title} is not as long as it says")
            return None
        total += said
    return total


async def _ask(
    deployment: TrainedDeployment, number: int, device: str, cells: Sequence[int], jobs: Sequence[Job]
) -> float | None:
    """Return what a device says of cells of equal rows, None if it does not answer; then it will be loaded anew."""
    engine, panel = deployment.engine, deployment.panels[number]
    body = Measure(
        rows=tuple(panel.row_handles[row] for row in panel.cells[cells[0]].rows),
        slices=tuple(handle for cell in cells for handle in deployment.slices(number, cell)),
        jobs=tuple(job.number for job in jobs),
    )
    try:
        answer = await engine.peers[device].ask(
            body, [], timeout_s=STEP_TIMEOUT_FACTOR * engine.policy.answer_timeout_s
        )
    except PeerError as error:
        engine.note("behind", device, str(error))
        deployment.behind(device, number, cells)
        return None
    said = answer.tensors[0]
    return float(said) if said.dtype == torch.float64 and said.numel() == 1 else math.nan


def _plausible(said: float, expected: float) -> bool:
    low, high = band(_SAMPLES)
    return expected / high <= said * (1 + _ROUNDING) and said <= expected / low * (1 + _ROUNDING)


def _only(secret: Tensor, panel: Panel, rows: Sequence[int]) -> Tensor:
    """Return secrets that are 0 at all outputs but those of some rows."""
    own = torch.zeros_like(secret)
    for row in rows:
        span = panel.grid.rows[row]
        own[:, span.start : span.stop] = secret[:, span.start : span.stop]
    return own


def _estimates(deployment: TrainedDeployment, number: int, secret: Tensor, jobs: Sequence[Job]) -> list[float]:
    """Return |U G|²/m for each column of a panel."""
    grid = deployment.panels[number].grid
    images = [sketch(grid, secret, job.x, job.dy) for job in jobs]
    squares = torch.stack(images).sum(dim=0).square().flatten(0, -2).sum(dim=0) / len(secret)
    return [float(squares[column.span.start : column.span.stop].sum()) for column in grid.columns]
