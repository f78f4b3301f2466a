"""The tables of a report: floors, lines, attacks, verdicts with their controls, possession."""

import math
from itertools import product
from statistics import fmean
from typing import Final

from msgspec import structs

from awfulowl.lab.audit.record import Record, numbers
from awfulowl.lab.audit.schedule import attacks_of, floor_names, settings
from awfulowl.lab.audit.tables import Group, Spot, Tables, answers, completed, cost, flattened, mean_of, measured
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.report.schema import Control, Judgement, Line, Row
from awfulowl.lab.request import AttackCell, FloorCell, LineCell, Setting
from awfulowl.lab.yardsticks import lines
from awfulowl.lab.yardsticks.floors import FromBase
from awfulowl.lab.yardsticks.verdict import accuracy, difference, judge

_LINE_ATTACK: Final = "random"
"""The attack that is a standard line too; it is never the one chosen."""


def spots(shop: Workshop) -> list[Spot]:
    """Return the parts of the tables of attacks."""
    request = shop.request
    return [Spot(*one) for one in product(settings(shop), request.all_shares, request.blocks)]


def floor_group(shop: Workshop, tables: Tables, setting: Setting, name: str, public: int | None = None) -> Group | None:
    """Return the records of a floor, by victim."""
    cells = [[FloorCell(setting=setting, victim=victim, floor=name, public=public)] for victim in range(shop.victims)]
    what = f"floor {name} ({setting}{'' if public is None else f', {public} images'})"
    return tables.group(what, cells)


def counts(shop: Workshop, name: str) -> bool:
    """Say whether a floor is one for this pirate."""
    return name != FromBase.name or shop.request.threat.knows_base_model


def floor_lines(shop: Workshop, tables: Tables) -> list[Line]:
    """Return the floors, with all images and with fewer."""
    threat, there = shop.request.threat, len(shop.data.public.labels)
    most = there if threat.public is None else threat.public
    found = []
    for setting in settings(shop):
        for name in floor_names(setting):
            sizes = [None, *(size for size in shop.request.public if size < most)]
            for size in sizes if name.startswith("F1") else [None]:
                group = floor_group(shop, tables, setting, name, size)
                if group is not None:
                    line = tables.line(name, group, Spot(setting))
                    found.append(structs.replace(line, counts=counts(shop, name), public=size or most))
    return found


def best_floor(shop: Workshop, tables: Tables, setting: Setting) -> tuple[str, Group] | None:
    """Return the best floor that counts; None where there is none.

    It is the best on test images: that can only weaken what is said against it.
    """
    found = []
    for name in floor_names(setting):
        group = floor_group(shop, tables, setting, name) if counts(shop, name) else None
        if group is not None:
            found.append((name, group))
    return max(found, key=lambda one: fmean(numbers(record).accuracy for record in flattened(one[1])), default=None)


def _validation(records: list[Record]) -> float:
    return mean_of([completed(record) for record in records], lambda one: one.validation) or 0.0


def standard_lines(shop: Workshop, tables: Tables) -> list[Line]:
    """Return the standard lines of every part of the tables."""
    found = []
    for spot in spots(shop):
        for name in lines.LINES:
            cells = [
                [LineCell(place=place, name=name) for place in shuffles]
                for shuffles in spot.places(shop.request, shop.victims)
            ]
            group = tables.group(f"line {name} {_of(spot)}", cells)
            if group is not None:
                found.append(tables.line(name, group, spot))
    return found


def _of(spot: Spot) -> str:
    return f"({spot.setting}, share {spot.share:g}, block {spot.block})"


def is_dear(shop: Workshop, tables: Tables, spot: Spot, name: str) -> bool:
    """Say whether an attack costs so much in its first draws that it gets no others."""
    firsts = [shuffles[0] for shuffles in spot.places(shop.request, shop.victims)]
    found = [tables.find(AttackCell(place=place, attack=name)) for place in firsts]
    costs = [record.cost["flops"] for record in found if record is not None and "flops" in record.cost]
    return bool(costs) and fmean(costs) > shop.request.dear * shop.network(0).training_flops


def attack_group(shop: Workshop, tables: Tables, spot: Spot, name: str, control: str | None = None) -> Group | None:
    """Return the records of an attack, on the victim's blocks or on a control's; of a dear one all that there are."""
    cells = [
        [AttackCell(place=place, attack=name, control=control) for place in shuffles]
        for shuffles in spot.places(shop.request, shop.victims)
    ]
    if is_dear(shop, tables, spot, name) and any(tables.find(cell) is None for shuffles in cells for cell in shuffles):
        cells = [shuffles[:1] for shuffles in cells]
    of = "" if control is None else f" on {control}"
    return tables.group(f"attack {name}{of} {_of(spot)}", cells)


def attack_rows(shop: Workshop, tables: Tables) -> list[Row]:
    """Return a row for every attack in every part of the tables."""
    found = []
    for spot in spots(shop):
        floor = best_floor(shop, tables, spot.setting)
        for name in attacks_of(shop, spot.setting):
            group = attack_group(shop, tables, spot, name)
            if group is None:
                continue
            if floor is None:
                tables.missing[f"attack {name} {_of(spot)}"] = "there is no floor to read it against"
                continue
            found.append(_row(shop, tables, spot, name, group, floor[1]))
    return found


def _row(shop: Workshop, tables: Tables, spot: Spot, name: str, group: Group, floor: Group) -> Row:
    flat = flattened(group)
    graded = [numbers(record) for record in flat]
    placed = accuracy(answers(group), tables.entropy("placed", name, spot))
    ends = accuracy(answers(group, completed), tables.entropy("completed", name, spot))
    over = difference(answers(group, completed), answers(floor), tables.entropy("advantage", name, spot))
    flops = cost(flat, "flops")
    return Row(
        attack=name,
        rung=shop.attack(name).rung,
        setting=spot.setting,
        layers=shop.layers(spot.setting),
        share=spot.share or 0.0,
        block="auto" if spot.block is None else spot.block,
        block_size=_block_size(group),
        held=fmean(record.held or 0.0 for record in flat),
        seen=fmean(record.seen or 0.0 for record in flat),
        positions_right=mean_of(graded, lambda one: one.positions_right),
        rows_right=mean_of(graded, lambda one: one.rows_right),
        columns_right=mean_of(graded, lambda one: one.columns_right),
        positions_interval=tables.interval_of([one.positions_right for one in graded], name, spot),
        rows_interval=tables.interval_of([one.rows_right for one in graded], "rows", name, spot),
        columns_interval=tables.interval_of([one.columns_right for one in graded], "columns", name, spot),
        accuracy=placed.value,
        interval=placed.interval,
        completed=measured(ends),
        ways=tuple(record.way or "as placed" for record in flat),
        advantage=over.value,
        advantage_interval=over.interval,
        agreement=fmean(completed(record).agreement for record in flat),
        cosine=fmean(completed(record).cosine for record in flat),
        validation=mean_of([completed(record) for record in flat], lambda one: one.validation),
        flops=flops,
        share_of_training=flops / shop.network(0).training_flops,
        completion_flops=fmean(record.completion_cost.get("flops", 0.0) for record in flat),
        evaluations=cost(flat, "evaluations"),
        queries=cost(flat, "queries"),
        seconds=fmean(record.seconds for record in flat),
        gpu_hours=cost(flat, "gpu_hours"),
        seeds=tuple(record.seed for record in flat),
    )


def _block_size(group: Group) -> tuple[int, int]:
    """Return rows and columns of the largest blocks; all victims and draws are cut alike."""
    return max((record.block_size or (0, 0) for record in flattened(group)), key=math.prod)


def chosen_attack(shop: Workshop, tables: Tables, spot: Spot) -> str | None:
    """Return the attack that is best on the pirate's validation images; of equals the cheapest; None without any.

    By first draws alone, which all attacks have: others are made for a dear attack only once it was chosen.
    """
    found = []
    for name in attacks_of(shop, spot.setting):
        group = attack_group(shop, tables, spot, name) if name != _LINE_ATTACK else None
        if group is not None:
            firsts = [shuffles[0] for shuffles in group]
            found.append((-_validation(firsts), cost(firsts, "flops"), name))
    return min(found)[2] if found else None


def judgements(shop: Workshop, tables: Tables) -> list[Judgement]:
    """Return the verdict on every part of the tables."""
    found = []
    for spot in spots(shop):
        floor, name = best_floor(shop, tables, spot.setting), chosen_attack(shop, tables, spot)
        if floor is None or name is None:
            tables.missing[f"verdict {_of(spot)}"] = "there is no floor" if floor is None else "no attack was run"
            continue
        own = attack_group(shop, tables, spot, name)
        if own is not None:
            found.append(_judgement(shop, tables, spot, (name, own), floor))
    return found


def _judgement(
    shop: Workshop, tables: Tables, spot: Spot, attack: tuple[str, Group], floor: tuple[str, Group]
) -> Judgement:
    name, own = attack
    groups = {
        control: attack_group(shop, tables, spot, name, control) for control in (*lines.CONTROLS, lines.OTHER_FOREIGN)
    }
    foreign, other = groups[lines.FOREIGN], groups.pop(lines.OTHER_FOREIGN)
    verdict = judge(
        answers(own, completed),
        answers(floor[1]),
        None if foreign is None else answers(foreign, completed),
        tables.entropy("verdict", spot),
    )
    controls = [_control(tables, spot, control, own, group) for control, group in groups.items() if group is not None]
    if foreign is not None and other is not None:
        # What is nobody's theft is judged as the victim's blocks are, so that the verdict is seen to be able to fail.
        word = judge(
            answers(foreign, completed), answers(floor[1]), answers(other, completed), tables.entropy("foreign", spot)
        ).word
        controls = [structs.replace(one, verdict=word) if one.name == lines.FOREIGN else one for one in controls]
    return Judgement(
        setting=spot.setting,
        share=spot.share or 0.0,
        block="auto" if spot.block is None else spot.block,
        block_size=_block_size(own),
        attack=name,
        floor=floor[0],
        verdict=verdict.word,
        reason=verdict.reason,
        over_floor=measured(verdict.over_floor),
        over_foreign=None if verdict.over_foreign is None else measured(verdict.over_foreign),
        controls=tuple(controls),
    )


def _control(tables: Tables, spot: Spot, name: str, own: Group, group: Group) -> Control:
    placed = accuracy(answers(group), tables.entropy("control", name, spot))
    ends = [completed(record) for record in flattened(group)]
    return Control(
        name=name,
        positions_right=mean_of(ends, lambda one: one.positions_right),
        accuracy=placed.value,
        interval=placed.interval,
        completed=measured(accuracy(answers(group, completed), tables.entropy("completed control", name, spot))),
        agreement=fmean(one.agreement for one in ends),
        cosine=fmean(one.cosine for one in ends),
        difference=measured(
            difference(answers(own, completed), answers(group, completed), tables.entropy("over", name, spot))
        ),
    )
