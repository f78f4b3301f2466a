"""From records to numbers: means over victims and shuffles with their intervals, and what is missing, and why."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Final, Literal, NamedTuple

from torch import Tensor

from awfulowl.lab.audit.record import Graded, Record, numbers
from awfulowl.lab.report.schema import Line, Measured, Missing
from awfulowl.lab.request import Cell, Place, Request, Setting, seed_of
from awfulowl.lab.yardsticks.verdict import Answers, Difference, accuracy
from awfulowl.randomness import Entropy
from awfulowl.results import Interval, bootstrap

Records = Mapping[Cell, Record]
Group = Sequence[Sequence[Record]]
"""Records by victim and by shuffle."""

NOT_DONE: Final = "not done yet; the same command goes on"


class Spot(NamedTuple):
    """A part of the tables: the setting, and the share and block that it is about; None where it is about all."""

    setting: Setting
    share: float | None = None
    block: Literal["auto"] | int | None = None

    def places(self, request: Request, victims: int) -> list[list[Place]]:
        """Return its places by victim and shuffle."""
        return [
            [
                Place(
                    setting=self.setting,
                    victim=victim,
                    share=self.share or 0.0,
                    block=self.block or "auto",
                    shuffle=one,
                )
                for one in range(request.shuffles)
            ]
            for victim in range(victims)
        ]


class Tables:
    """Finds records, and writes down why some are missing.

    Args:
        request: the audit; its seed is that of every bootstrap.
        records: of all cells that were done.
    """

    def __init__(self, request: Request, records: Records) -> None:
        self._request: Final = request
        self._records: Final = records
        self.missing: Final[dict[str, str]] = {}

    def group(self, what: str, cells: Sequence[Sequence[Cell]]) -> Group | None:
        """Return records by victim and shuffle, or None where one of them is missing."""
        found: list[list[Record]] = []
        for shuffles in cells:
            found.append([])
            for cell in shuffles:
                record = self._records.get(cell)
                if record is None or record.missing is not None:
                    self.missing[what] = NOT_DONE if record is None or record.missing is None else record.missing
                    return None
                found[-1].append(record)
        return found

    def find(self, cell: Cell) -> Record | None:
        """Return the record of a cell, or None where it was not done."""
        return self._records.get(cell)

    def entropy(self, *facts: object) -> Entropy:
        """Return what a bootstrap draws from."""
        return Entropy(seed_of(self._request, "bootstrap", *facts))

    def line(self, name: str, group: Group, spot: Spot) -> Line:
        """Return a line of a table."""
        flat = flattened(group)
        graded = [numbers(one) for one in flat]
        found = accuracy(answers(group), self.entropy("line", name, spot))
        return Line(
            name=name,
            setting=spot.setting,
            share=spot.share,
            block=spot.block,
            accuracy=found.value,
            interval=found.interval,
            agreement=fmean(one.agreement for one in graded),
            cosine=fmean(one.cosine for one in graded),
            positions_right=mean_of(graded, lambda one: one.positions_right),
            positions_interval=self.interval_of([one.positions_right for one in graded], name, spot),
            flops=cost(flat, "flops"),
            gpu_hours=cost(flat, "gpu_hours"),
            seconds=fmean(one.seconds for one in flat),
            seeds=tuple(one.seed for one in flat),
            queries=round(cost(flat, "queries")) or None,
        )

    def interval_of(self, values: Sequence[float | None], *facts: object) -> Interval | None:
        """Return the interval of a mean of shares, or None where a value is missing, or there is only one."""
        there = [value for value in values if value is not None]
        return bootstrap(there, self.entropy("shares", *facts)) if 1 < len(there) == len(values) else None

    def listed(self) -> tuple[Missing, ...]:
        """Return what is missing, and why."""
        return tuple(Missing(what=what, why=why) for what, why in self.missing.items())


def flattened(group: Group) -> list[Record]:
    """Return the records of a group in one list."""
    return [record for shuffles in group for record in shuffles]


def answers(group: Group, part: Callable[[Record], Graded] = numbers) -> Answers:
    """Return which test images are right, by victim and shuffle."""
    return [[_bits(part(record)) for record in shuffles] for shuffles in group]


def _bits(graded: Graded) -> Tensor:
    return graded.answers()


def completed(record: Record) -> Graded:
    """Return the numbers of the network that the pirate ends with."""
    return numbers(record) if record.completed is None else record.completed


def mean_of(graded: Sequence[Graded], part: Callable[[Graded], float | None]) -> float | None:
    """Return a mean, or None where a number is missing."""
    there = [value for value in map(part, graded) if value is not None]
    return fmean(there) if there and len(there) == len(graded) else None


def cost(records: Sequence[Record], unit: str) -> float:
    """Return the mean cost in a unit."""
    return fmean(record.cost.get(unit, 0.0) for record in records)


def measured(found: Difference) -> Measured:
    """Return a number as the report has it."""
    return Measured(value=found.value, interval=found.interval)
