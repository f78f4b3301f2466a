"""Place blocks by what their devices saw: a block's own product resembles the output that it is a part of.

A device knows the slice that it multiplies, so it computes its partial outputs for the pirate's own queries. They
correlate with the outputs of the block's true row, which other devices see as the inputs of the next layer.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.costs import Ledger
from awfulowl.lab.scenes.loot import LEFT_OUT, Scene, Watched
from awfulowl.lab.sites.placing import NEVER, Places, assign_flops, place, score
from awfulowl.lab.traffic.relays import Relay, find_relays, outputs_seen

QUERIES: Final = 200
"""What is looked at: correlations over two hundred images tell rows apart, where they can be told at all."""

SURE: Final = 0.3
"""Mean correlation under which a block is left out: a wrong block hurts more than a right one helps."""


def place_by_traffic(
    scene: Scene, watched: Watched, ledger: Ledger, *, queries: int = QUERIES, sure: float = SURE
) -> dict[str, Tensor]:
    """Return positions int64 (k, 2) of the held blocks, by layer; (-1, -1) for blocks that are left out.

    Args:
        scene: what the pirate has.
        watched: answers and activations of its queries.
        ledger: pays for partial outputs and assignments.
        queries: how many of the queries are used.
        sure: least mean correlation of a block that is placed.
    """
    relays = find_relays(scene.model, scene.layers)
    found = {}
    for layer, relay in relays.items():
        scores = traffic_scores(scene, layer, relay, watched, ledger, queries=queries)
        if scores is not None and len(scores):
            found[layer] = _placed(scene, layer, scores, ledger, sure)
    return found


def _placed(scene: Scene, layer: str, scores: Tensor, ledger: Ledger, sure: float) -> Tensor:
    spoils, places = scene.layers[layer], Places(scene.layers[layer].grid)
    ledger.spend("assignment", assign_flops(len(spoils), len(places)))
    found = place(spoils, scores.clone(), places)
    numbers = {tuple(position): number for number, position in enumerate(places.positions.tolist())}
    chosen = torch.tensor([numbers[row, column] for row, column in found.tolist()])
    reached = scores.gather(1, chosen[:, None]).flatten()
    # A block that had to give way to others is not where it fits best.
    placed = (reached >= sure) & (reached >= scores.amax(dim=1))
    return torch.where(placed[:, None], found, torch.tensor(LEFT_OUT))


@torch.no_grad()
def traffic_scores(
    scene: Scene, layer: str, relay: Relay, watched: Watched, ledger: Ledger, *, queries: int = QUERIES
) -> Tensor | None:
    """Return the mean correlation of every held block's partial outputs with the outputs of every place.

    Returns:
        float64 (blocks, places), minus infinity at columns that nobody saw; None where outputs are not seen, or the
        layer is of another kind.
    """
    module = scene.model.get_submodule(layer)
    seen = _outputs(scene, layer, relay, watched, queries)
    if seen is None or not isinstance(module, (nn.Linear, nn.Conv2d)):
        return None
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return None
    spoils, places = scene.layers[layer], Places(scene.layers[layer].grid)
    ledger.spend("traffic", _flops(scene, layer, watched, queries))
    inputs = watched.inputs[layer][:queries]

    def rate(held: Tensor, room: list[int]) -> Tensor:
        scores = torch.full((len(held), len(room)), NEVER, dtype=torch.float64)
        columns = places.columns[torch.tensor(room)]
        for column in sorted(set(columns.tolist())):
            across = places.grid.columns[column].span
            if not bool(watched.seen[layer][across.start : across.stop].all()):
                continue
            partial = _partial(module, held, inputs[:, across.start : across.stop], relay)
            here = (columns == column).nonzero().flatten()
            rows = [places.grid.rows[row] for row in places.rows[torch.tensor(room)[here]].tolist()]
            whole = torch.stack([seen[row.start : row.stop] for row in rows])
            scores[:, here] = _resemblance(partial, whole).double()
        return scores

    return score(spoils.blocks, places, rate)


def _outputs(scene: Scene, layer: str, relay: Relay, watched: Watched, queries: int) -> Tensor | None:
    """Return a layer's outputs as they were seen: (outputs, samples), of unit length, zero where they were not."""
    count = scene.layers[layer].grid.outputs
    if relay.next is None:
        entered, shown = watched.logits, torch.ones(watched.logits.shape[1], dtype=torch.bool)
    else:
        entered, shown = watched.inputs[relay.next], watched.seen[relay.next]
    found = outputs_seen(relay, count, entered[:queries], shown)
    if found is None:
        return None
    outputs, shown = found
    return _unit(outputs.transpose(0, 1).flatten(1)) * shown[:, None]


def _partial(module: nn.Module, held: Tensor, x: Tensor, relay: Relay) -> Tensor:
    """Return partial outputs of blocks (k, height, width, *size) as (k, height, samples) of unit length."""
    weight = held.flatten(0, 1)
    if isinstance(module, nn.Conv2d):
        outputs = functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
    else:
        outputs = functional.linear(x, weight)
    if relay.pool is not None:
        outputs = relay.pool(outputs)
    return _unit(outputs.transpose(0, 1).flatten(1)).reshape(*held.shape[:2], -1)


def _resemblance(partial: Tensor, whole: Tensor) -> Tensor:
    """Return the mean correlation (k, p) of (k, height, samples) with (p, height, samples) over what was seen."""
    known = (whole.square().sum(dim=2) > 0).sum(dim=1).clamp_min(1)
    return (partial.flatten(1) @ whole.flatten(1).T) / known


def _unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 0, centred / length.clamp_min(torch.finfo(rows.dtype).tiny), 0.0)


def _flops(scene: Scene, layer: str, watched: Watched, queries: int) -> float:
    """Return the operations of partial outputs, and of their correlations, at every column."""
    spoils = scene.layers[layer]
    entered = watched.inputs[layer][:queries]
    samples = len(entered) * math.prod(entered.shape[2:])
    weights = sum(block.numel() for block in spoils.blocks)
    heights = sum(len(block) for block in spoils.blocks)
    return 2.0 * samples * (weights + heights * len(spoils.grid.rows)) * len(spoils.grid.columns)
