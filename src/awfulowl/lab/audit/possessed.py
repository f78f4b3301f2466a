"""The tables of rung P1: drop curves, scores of layers, warm starts."""

from itertools import product

from awfulowl.lab.audit.record import numbers
from awfulowl.lab.audit.schedule import layer_sets
from awfulowl.lab.audit.tables import Group, Tables, answers, flattened
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.report.schema import Dropped, Possession, Score, Warm
from awfulowl.lab.request import ORDERS, DropCell, FloorCell, NetworkCell, WarmCell
from awfulowl.lab.yardsticks.floors import MissingLayers
from awfulowl.lab.yardsticks.possession import DROPPED, WARM_SHARES
from awfulowl.lab.yardsticks.verdict import accuracy, difference


def possession(shop: Workshop, tables: Tables) -> Possession:
    """Return what is in the records of naive possession."""
    if not shop.request.possession:
        return Possession()
    return Possession(dropped=_dropped(shop, tables), scores=_scores(shop, tables), warm=_warm(shop, tables))


def _dropped(shop: Workshop, tables: Tables) -> tuple[Dropped, ...]:
    request, found = shop.request, []
    for layers, share in product(layer_sets(shop), DROPPED):
        cells = [
            [
                DropCell(victim=victim, layers=layers, block=request.blocks[0], dropped=share, draw=draw)
                for draw in range(request.shuffles if 0 < share < 1 else 1)
            ]
            for victim in range(shop.victims)
        ]
        group = tables.group(f"drop curve of {' + '.join(layers)}", cells)
        if group is not None:
            one = accuracy(answers(group), tables.entropy("drop", layers, share))
            images = numbers(flattened(group)[0]).images
            found.append(
                Dropped(layers=layers, dropped=share, accuracy=one.value, interval=one.interval, images=images)
            )
    return tuple(found)


def _scores(shop: Workshop, tables: Tables) -> tuple[Score, ...]:
    """Victim minus floor F1, for each layer alone; the layers most worth hiding first."""
    victims = tables.group("scores of layers", [[NetworkCell(number=victim)] for victim in range(shop.victims)])
    found = []
    for (layer,) in (layers for layers in layer_sets(shop) if len(layers) == 1):
        cells = [
            [FloorCell(setting="layer", victim=victim, floor=MissingLayers.name, layers=(layer,))]
            for victim in range(shop.victims)
        ]
        group = tables.group(f"score of {layer}", cells)
        if group is None or victims is None:
            continue
        over = difference(answers(victims), answers(group), tables.entropy("score", layer))
        floor = accuracy(answers(group), tables.entropy("score's floor", layer))
        weights = shop.network(0).model.get_submodule(layer).get_parameter("weight").numel()
        found.append(
            Score(
                layer=layer,
                weights=weights,
                floor=floor.value,
                floor_interval=floor.interval,
                score=over.value,
                interval=over.interval,
            )
        )
    return tuple(sorted(found, key=lambda one: -one.score))


def _warm(shop: Workshop, tables: Tables) -> tuple[Warm, ...]:
    found = []
    scratch = _started(shop, tables, 0.0, "random")
    if scratch is None:
        return ()
    for order, share in product(ORDERS, (0.0, *WARM_SHARES)):
        group = _started(shop, tables, share, order) if share else scratch
        if group is None:
            continue
        one = accuracy(answers(group), tables.entropy("warm", order, share))
        over = difference(answers(group), answers(scratch), tables.entropy("warm gain", order, share))
        found.append(
            Warm(
                order=order,
                share=share,
                accuracy=one.value,
                interval=one.interval,
                gain=over.value,
                gain_interval=over.interval,
            )
        )
    return tuple(found)


def _started(shop: Workshop, tables: Tables, share: float, order: str) -> Group | None:
    block = shop.request.blocks[0]
    cells = [
        [WarmCell(victim=victim, block=block, share=share, order=known)]
        for victim in range(shop.victims)
        for known in ORDERS
        if known == order
    ]
    return tables.group(f"warm start from {share:g}, withheld {order}", cells)
