"""The cells of an audit, in the order in which they are worked on."""

from collections.abc import Collection
from itertools import product
from typing import Final

from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.request import (
    ORDERS,
    AttackCell,
    Cell,
    DropCell,
    FloorCell,
    LineCell,
    NetworkCell,
    Place,
    Setting,
    WarmCell,
)
from awfulowl.lab.scenes.drawing import attackable
from awfulowl.lab.yardsticks import lines, possession
from awfulowl.lab.yardsticks.floors import Distilled, FromBase, MissingLayers, WholeFromPublic

LAYER_FLOORS: Final = (MissingLayers.name, WholeFromPublic.name, Distilled.name, FromBase.name)
MODEL_FLOORS: Final = (WholeFromPublic.name, Distilled.name, FromBase.name)
_BY_PUBLIC: Final = (MissingLayers.name, WholeFromPublic.name)
"""Floors that are measured with fewer images too."""


def settings(shop: Workshop) -> tuple[Setting, ...]:
    """Return the settings: a layer's where other layers are known, a model's where an attack is for that."""
    found: list[Setting] = ["layer"] if shop.request.threat.knows_other_layers else []
    if not found or any(attack.scope == "model" for attack in shop.attacks.values()):
        found.append("model")
    return tuple(found)


def floor_names(setting: Setting) -> tuple[str, ...]:
    """Return the floors of a setting."""
    return LAYER_FLOORS if setting == "layer" else MODEL_FLOORS


def attacks_of(shop: Workshop, setting: Setting) -> list[str]:
    """Return the attacks that belong to a setting; those of no setting of the audit are listed in its first one."""
    whole = not shop.request.threat.knows_other_layers
    return [
        name
        for name, attack in shop.attacks.items()
        if setting == ("model" if whole or attack.scope == "model" else "layer")
    ]


def places(shop: Workshop, setting: Setting) -> list[Place]:
    """Return the places of a setting, those of one victim together."""
    request = shop.request
    return [
        Place(setting=setting, victim=victim, share=share, block=block, shuffle=shuffle)
        for victim, share, block, shuffle in product(
            range(shop.victims), request.all_shares, request.blocks, range(request.shuffles)
        )
    ]


def network_cells(shop: Workshop) -> list[Cell]:
    """Return the networks: victims and those foreign to them, and for each victim one from public images."""
    trained = [NetworkCell(number=number) for number in range(shop.request.networks)]
    if shop.request.threat.lacking({"public"}):
        return [*trained]
    return [*trained, *(NetworkCell(number=number, public_only=True) for number in range(shop.victims))]


def floor_cells(shop: Workshop) -> list[Cell]:
    """Return the floors, with all images and with fewer."""
    there = len(shop.data.public.labels)
    most = there if shop.request.threat.public is None else shop.request.threat.public
    fewer = [count for count in shop.request.public if count < most]
    found: list[Cell] = []
    for setting, victim in product(settings(shop), range(shop.victims)):
        for name in floor_names(setting):
            counts: list[int | None] = [None, *fewer] if name in _BY_PUBLIC else [None]
            found += [FloorCell(setting=setting, victim=victim, floor=name, public=count) for count in counts]
    return found


def line_cells(shop: Workshop) -> list[Cell]:
    """Return the standard lines."""
    return [
        LineCell(place=place, name=name)
        for setting in settings(shop)
        for place in places(shop, setting)
        for name in lines.LINES
    ]


def attack_cells(shop: Workshop, *, first: bool, leave_out: Collection[tuple[object, ...]] = ()) -> list[Cell]:
    """Return attacks in the first draw of every victim, or in the others.

    Args:
        shop: of the request.
        first: which of the two.
        leave_out: setting, share, block and name of attacks that get no other draw.
    """
    return [
        AttackCell(place=place, attack=name)
        for setting in settings(shop)
        for place in places(shop, setting)
        if (place.shuffle == 0) == first
        for name in attacks_of(shop, setting)
        if (place.setting, place.share, place.block, name) not in leave_out
    ]


def control_cells(shop: Workshop, setting: Setting, share: float, block: object, attack: str) -> list[Cell]:
    """Return the controls of the attack that was chosen at some places, and its own draws if it had one only."""
    return [
        AttackCell(place=place, attack=attack, control=control)
        for place in places(shop, setting)
        if (place.share, place.block) == (share, block)
        for control in (None, *lines.CONTROLS, lines.OTHER_FOREIGN)
    ]


def layer_sets(shop: Workshop) -> list[tuple[str, ...]]:
    """Return what is dropped together: each layer alone, dense layers, convolutions, all."""
    model = shop.network(0).model
    names = [*attackable(model)]
    shapes = {name: model.get_submodule(name).get_parameter("weight").dim() for name in names}
    dense = tuple(name for name in names if shapes[name] == 2)
    convolutions = tuple(name for name in names if shapes[name] > 2)
    found = [(name,) for name in names]
    return [*found, *(group for group in (dense, convolutions, tuple(names)) if len(group) > 1 and group not in found)]


def possession_cells(shop: Workshop) -> list[Cell]:
    """Return drop curves, floors of single layers, and warm starts."""
    request, block = shop.request, shop.request.blocks[0]
    found: list[Cell] = [
        DropCell(victim=victim, layers=layers, block=block, dropped=share, draw=draw)
        for victim, layers, share in product(range(shop.victims), layer_sets(shop), possession.DROPPED)
        for draw in range(request.shuffles if 0 < share < 1 else 1)
    ]
    found += score_cells(shop)
    for victim in range(shop.victims):
        found.append(WarmCell(victim=victim, block=block, share=0.0, order="random"))
        found += [
            WarmCell(victim=victim, block=block, share=share, order=order)
            for order, share in product(ORDERS, possession.WARM_SHARES)
        ]
    return found


def score_cells(shop: Workshop) -> list[Cell]:
    """Return floor F1 for every layer alone."""
    return [
        FloorCell(setting="layer", victim=victim, floor=MissingLayers.name, layers=(layer,))
        for victim, layer in product(range(shop.victims), attackable(shop.network(0).model))
    ]
