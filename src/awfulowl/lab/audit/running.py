"""The audit: what a stolen share of a model is worth, against the floor, with controls, in a report."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from awfulowl.costs import PAPER_GPU
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack
from awfulowl.lab.audit.hands import Hands, Stop
from awfulowl.lab.audit.possessed import possession
from awfulowl.lab.audit.record import Record, numbers
from awfulowl.lab.audit.schedule import (
    attack_cells,
    attacks_of,
    control_cells,
    floor_cells,
    line_cells,
    network_cells,
    possession_cells,
    settings,
)
from awfulowl.lab.audit.summary import (
    attack_rows,
    chosen_attack,
    floor_lines,
    is_dear,
    judgements,
    spots,
    standard_lines,
)
from awfulowl.lab.audit.tables import Tables
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.report.page import prepare, write_report
from awfulowl.lab.report.schema import VERSION, Network, Report
from awfulowl.lab.request import Cell, NetworkCell, Request, make_request
from awfulowl.lab.scenes.threat import ThreatModel, make_threat
from awfulowl.lab.victims.data import cache_folder
from awfulowl.results import versions

CELLS: Final = "cells"
"""Folder of finished rows, inside that of the report."""

OnCell = Callable[[str, int, int], None]
"""Called with what goes on, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """How an audit is run; none of it changes a number.

    `workers` are processes; `cache` keeps trained networks and decoded data, None: nowhere; `stop` says whether the
    user wants to end: what is under way is finished, and the report says what is missing; `on_cell` hears of progress.
    """

    workers: int = 1
    cache: Path | None = None
    stop: Stop = lambda: False
    on_cell: OnCell = lambda _, __, ___: None


def audit(
    model: str,
    data: str,
    threat: ThreatModel | Mapping[str, object],
    output: Path | str,
    *,
    attacks: Iterable[str | Attack] = (),
    workers: int = 1,
    **options: object,
) -> Report:
    """Audit a model: the floor, what each attack recovers and at what cost, and the verdict.

    Args:
        model: digits, cifar, or path/to/file.py:function, which is run.
        data: digits, a path of CIFAR, or a .safetensors file.
        threat: the pirate, or its fields: {"share": 0.3}.
        output: folder of report.json, report.html and the figures; finished rows in it are not done again.
        attacks: names, or attacks of your own; none: all of the catalogue. Your own run in this process.
        workers: processes.
        options: other fields of `Request`, such as victims, shuffles, blocks, shares, seed.

    Raises:
        InputError: something of this is not usable.
        ModelError: the model cannot be cut, or its weights are not finite.
    """
    given = [*attacks]
    own = {attack.name: attack for attack in given if isinstance(attack, Attack)}
    if own and workers > 1:
        raise InputError("attacks that are given as objects run in this process: workers = 1")
    pirate = threat if isinstance(threat, ThreatModel) else make_threat(threat)
    request = make_request(
        {**options, "model": model, "data": data, "attacks": [one for one in given if isinstance(one, str)]}, pirate
    )
    return run(request, Path(output), Conditions(workers=workers, cache=cache_folder()), own)


def run(request: Request, output: Path, conditions: Conditions, own: Mapping[str, Attack] | None = None) -> Report:
    """Run an audit, or go on with one that was interrupted, and write its report.

    Args:
        request: what is asked for.
        output: folder of the report.
        conditions: how it is run.
        own: attacks beside those that the request names, by name.

    Raises:
        InputError: data or layers do not fit, nothing can be written, the extra `lab` is not installed, or a victim
            cannot be trained.
        ModelError: the model cannot be cut, or its weights are not finite.
    """
    started = time.perf_counter()
    folder = output / CELLS
    shop = Workshop(request, folder, conditions.cache, own)
    conditions.on_cell("reading the data", 0, 1)
    shop.check()
    prepare(output)
    work = _Run(shop, conditions)
    with Hands(shop, conditions.workers, (request, folder, conditions.cache)) as hands:
        work.stage(hands, "training networks", network_cells(shop))
        work.check_networks()
        work.stage(hands, "floors", floor_cells(shop))
        work.stage(hands, "standard lines", line_cells(shop))
        work.stage(hands, "attacks", attack_cells(shop, first=True))
        work.stage(hands, "attacks in other draws", attack_cells(shop, first=False, leave_out=work.dear()))
        work.stage(hands, "controls", work.controls())
        if request.possession:
            work.stage(hands, "possession", possession_cells(shop))
    report = make_report(shop, work.records, seconds=time.perf_counter() - started, finished=not work.stopped)
    write_report(report, output)
    return report


class _Run:
    """The records of a run so far."""

    def __init__(self, shop: Workshop, conditions: Conditions) -> None:
        self.records: Final[dict[Cell, Record]] = {}
        self.stopped = False
        self._shop: Final = shop
        self._conditions: Final = conditions

    def stage(self, hands: Hands, text: str, cells: Sequence[Cell]) -> None:
        """Work on cells, unless the user wants to end."""
        if self._conditions.stop():
            self.stopped = True
            return
        done = 0
        self._conditions.on_cell(text, 0, len(cells))
        for cell, record in hands.work(cells, self._conditions.stop):
            self.records[cell] = record
            done += 1
            self._conditions.on_cell(text, done, len(cells))
        self.stopped = self.stopped or done < len(cells)

    def check_networks(self) -> None:
        """Refuse to go on without a victim or a network that is foreign to it: there is nothing to say then.

        Raises:
            InputError: one could not be trained.
        """
        for cell, record in self.records.items():
            if isinstance(cell, NetworkCell) and not cell.public_only and record.missing is not None:
                raise InputError(f"network {cell.number} could not be trained: {record.missing}")

    def dear(self) -> set[tuple[object, ...]]:
        """Return setting, share, block and name of the attacks that get no other draw."""
        tables = Tables(self._shop.request, self.records)
        return {
            (*spot, name)
            for spot in spots(self._shop)
            for name in attacks_of(self._shop, spot.setting)
            if is_dear(self._shop, tables, spot, name)
        }

    def controls(self) -> list[Cell]:
        """Return the controls of the attacks that are chosen; none where the user wants to end."""
        if self.stopped:
            return []
        tables = Tables(self._shop.request, self.records)
        chosen = {spot: chosen_attack(self._shop, tables, spot) for spot in spots(self._shop)}
        return [
            cell
            for spot, name in chosen.items()
            if name is not None
            for cell in control_cells(self._shop, spot.setting, spot.share or 0.0, spot.block, name)
        ]


def make_report(shop: Workshop, records: Mapping[Cell, Record], *, seconds: float, finished: bool) -> Report:
    """Return the report on what was done, with what is missing and why."""
    tables = Tables(shop.request, records)
    for setting in settings(shop):
        for layer in shop.left_out(setting):
            tables.missing[f"blocks of {layer} ({setting})"] = (
                "the plan cuts it in a way that no attack here can use, so it counts as not stolen"
            )
    return Report(
        version=VERSION,
        request=shop.request,
        layers={setting: shop.layers(setting) for setting in settings(shop)},
        test_images=len(shop.data.test.labels),
        networks=_networks(shop, records),
        floors=tuple(floor_lines(shop, tables)),
        lines=tuple(standard_lines(shop, tables)),
        rows=tuple(attack_rows(shop, tables)),
        judgements=tuple(judgements(shop, tables)),
        possession=possession(shop, tables),
        missing=tables.listed(),
        conversion=f"{PAPER_GPU.name} at {PAPER_GPU.flops_per_s:.3g} operations a second: {PAPER_GPU.source}",
        seconds=seconds,
        versions=versions(),
        finished=finished,
    )


def _networks(shop: Workshop, records: Mapping[Cell, Record]) -> tuple[Network, ...]:
    found = []
    for cell, record in records.items():
        if isinstance(cell, NetworkCell) and record.graded is not None:
            role = "victim" if cell.number < shop.victims else "foreign"
            found.append(
                Network(
                    name=f"{'public-only' if cell.public_only else role} {cell.number}",
                    seed=record.seed,
                    accuracy=numbers(record).accuracy,
                    training_flops=record.cost["flops"],
                )
            )
    return tuple(found)
