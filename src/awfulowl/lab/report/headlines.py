"""What a report says first: what hurts, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from awfulowl.lab.report.schema import Judgement, Line, Report, Row
from awfulowl.lab.report.words import interval, percent, points, where
from awfulowl.lab.yardsticks.verdict import Word

Level = Literal["hurts", "holds", "unknown"]

_LEVELS: Final[Mapping[Word, Level]] = {"advantage": "hurts", "no advantage": "holds", "undecided": "unknown"}
_NO_ADVANTAGE: Final = " This pirate does as well with no device at all, which does not say that the model is safe."
_PLACED: Final = 0.9
"""From this share of blocks in their places on, positions are said to be found."""
_REBUILT: Final = 0.02
"""A layer is said to be rebuilt where the floor comes so near to the victim."""


class Headline(NamedTuple):
    """A sentence, and whether it is bad news for the owner."""

    level: Level
    text: str


def headlines(report: Report) -> list[Headline]:
    """Return sentences, the worst news first."""
    found = [*_verdicts(report), *_positions(report), *_floors(report), *_layers(report)]
    order: dict[Level, int] = {"hurts": 0, "unknown": 1, "holds": 2}
    return sorted(found, key=lambda one: order[one.level])


def _verdicts(report: Report) -> Iterator[Headline]:
    for one in report.judgements:
        gain = f"{points(one.over_floor.value)} {interval(one.over_floor.interval, points)}"
        text = f"{where(one)}: the chosen attack ({one.attack}) has {gain} points over the floor ({one.floor})"
        means = _NO_ADVANTAGE if one.verdict == "no advantage" else ""
        yield Headline(_LEVELS[one.verdict], f"{one.verdict.capitalize()}. {text}: {one.reason}.{means}")


def _positions(report: Report) -> Iterator[Headline]:
    """For every part of the tables the cheapest attack that finds the positions, or the best where none does."""
    for one in report.judgements:
        rows = [row for row in _rows(report, one) if row.positions_right is not None]
        found = sorted((row for row in rows if (row.positions_right or 0) >= _PLACED), key=lambda row: row.flops)
        if found:
            row = found[0]
            yield Headline(
                "hurts",
                f"{where(one)}: {row.attack} puts {percent(row.positions_right)} of the held blocks in their places, "
                f"for {percent(row.share_of_training)} of the operations of the victim's training. Secret positions "
                "protect nothing here.",
            )
        elif rows:
            row = max(rows, key=lambda one: one.positions_right or 0)
            yield Headline(
                "holds",
                f"{where(one)}: no attack here puts more than {percent(row.positions_right)} of the held blocks in "
                f"their places ({row.attack}). Attacks that are not here may.",
            )


def _rows(report: Report, judgement: Judgement) -> list[Row]:
    key = (judgement.setting, judgement.share, judgement.block)
    return [row for row in report.rows if (row.setting, row.share, row.block) == key]


def _floors(report: Report) -> Iterator[Headline]:
    for setting in report.layers:
        floors = [line for line in report.floors if line.setting == setting and line.counts]
        victims = [line for line in report.lines if line.setting == setting and line.name == "victim"]
        if floors and victims:
            best: Line = max(floors, key=lambda line: line.accuracy)
            near = best.accuracy >= victims[0].accuracy - _REBUILT
            yield Headline(
                "hurts" if near else "holds",
                f"Without any device ({setting}): {best.name} reaches {percent(best.accuracy)} "
                f"{interval(best.interval, percent)}, the victim {percent(victims[0].accuracy)}.",
            )


def _layers(report: Report) -> Iterator[Headline]:
    scores = report.possession.scores
    cheap = [one.layer for one in scores if one.interval.high < _REBUILT]
    if cheap:
        yield Headline(
            "hurts",
            f"Hiding alone is worth less than {points(_REBUILT)} points for: {', '.join(cheap)}. Each is rebuilt.",
        )
    worth = [one for one in scores if one.interval.low >= _REBUILT]
    if worth:
        names = ", ".join(f"{one.layer} ({points(one.score)} points)" for one in worth)
        yield Headline("holds", f"Layers that are worth hiding: {names}.")
