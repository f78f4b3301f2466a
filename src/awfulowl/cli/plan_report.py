"""What may be said of a plan: shares, traffic, exceptions, exposure; never a position."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from awfulowl.arithmetic.numbers import FLOAT32
from awfulowl.cli import tables
from awfulowl.cli.figures import count, counted, percent, short, size
from awfulowl.cli.model_costs import Costs
from awfulowl.placement.exposure import Exposure, expose
from awfulowl.placement.plan import Plan
from awfulowl.placement.summary import PanelSummary, Summary, summarise


class PlanReport(msgspec.Struct, frozen=True):
    """A plan in numbers; `parameters` and `flops` are of the whole model, None where it is not known."""

    model: str | None
    parameters: int | None
    flops: int | None
    blocks: int
    scattered_parameters: int
    scattered_parameter_share: float | None
    outsourced_flops: int
    outsourced_flop_share: float | None
    bytes_per_sample: int
    exceptions: tuple[str, ...]
    plan: Summary
    exposure: Exposure


def describe(model: str | None, plan: Plan, total: Costs) -> PlanReport:
    """Say in numbers what a plan amounts to.

    Args:
        model: its name.
        plan: the plan.
        total: what the whole model costs.
    """
    summary = summarise(plan)
    return PlanReport(
        model=model,
        parameters=total.parameters,
        flops=total.flops,
        blocks=summary.blocks,
        scattered_parameters=summary.parameters,
        scattered_parameter_share=_share(summary.parameters, total.parameters),
        outsourced_flops=summary.flops,
        outsourced_flop_share=_share(summary.flops, total.flops),
        bytes_per_sample=summary.bytes_per_sample,
        exceptions=summary.exceptions,
        plan=summary,
        exposure=expose(plan),
    )


def _share(part: int, whole: int | None) -> float | None:
    return None if not whole else part / whole


def show(report: PlanReport, console: Console) -> None:
    """Print a report."""
    tables.show(console, report.model or "plan", _totals(report))
    console.print()
    tables.show(
        console,
        "Layers: rows x columns of blocks; operations and traffic of a sample"
        + ("; error of the integers on the example, over the layer's output" if _is_exact(report.plan.panels) else ""),
        _layers(report.plan.panels),
    )
    console.print()
    tables.devices(console, report.plan.devices)
    tables.exposure(console, report.exposure, shared=report.plan.sharing is not None)
    tables.bullets(console, "Kept at the owner", _by_reason(report.plan.kept))
    tables.bullets(console, "Exceptions to the rules", report.exceptions)
    tables.bullets(console, "Notes", report.plan.notes)
    tables.bullets(console, "ALARM", report.exposure.alarms, style="bold red")
    console.print(Text(_MORAL[report.plan.sharing is not None]), soft_wrap=True)


_MORAL: Final = {
    False: "Positions alone protect nothing: see docs/threat-model.md.",
    True: "Shares protect from whoever has too few of them, and from nobody else: see docs/threat-model.md.",
}


def _totals(report: PlanReport) -> Table:
    rules = report.plan.rules
    return tables.pairs(
        [
            ("parameters on devices", f"{count(report.scattered_parameters)} of {count(report.parameters)}"),
            ("", percent(report.scattered_parameter_share)),
            ("operations on devices", f"{count(report.outsourced_flops)} of {count(report.flops)} a sample"),
            ("", percent(report.outsourced_flop_share)),
            ("blocks", f"{count(report.blocks)}, each on {counted(rules.replicas, 'device')}"),
            ("traffic a sample", size(report.bytes_per_sample)),
            ("arithmetic", report.plan.arithmetic),
            ("shared", "nothing" if report.plan.sharing is None else report.plan.sharing),
            *_limits(report),
        ],
    )


def _limits(report: PlanReport) -> list[tuple[str, str]]:
    """Return what single devices and domains may see; a lane of a sharing shows nothing by itself."""
    if report.plan.sharing is not None:
        return [("a domain gets", "at most one lane of each column, which shows nothing by itself")]
    rules = report.plan.rules
    return [
        ("a device may see", f"{percent(rules.share)} of a layer's input slices"),
        ("a domain may see", percent(rules.domain_share)),
    ]


def _layers(panels: Sequence[PanelSummary]) -> Table:
    exact = _is_exact(panels)
    table = tables.grid(
        "layer",
        ("grid", "blocks", "weights", "ops", "devices", "traffic", *(("arithmetic", "error") if exact else ())),
    )
    for panel in panels:
        table.add_row(
            tables.member_lines(panel.name),
            f"{panel.rows} x {panel.columns}",
            count(panel.blocks),
            short(panel.parameters),
            short(panel.flops),
            count(panel.devices),
            size(panel.bytes_to_devices + panel.bytes_from_devices),
            *((panel.arithmetic, _error(panel.error)) if exact else ()),
        )
    return table


def _is_exact(panels: Sequence[PanelSummary]) -> bool:
    return any(panel.arithmetic != FLOAT32 for panel in panels)


def _error(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.2g} %"


def _by_reason(kept: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each reason, with all that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in kept:
        names.setdefault(reason, []).append(name or "the model itself")
    return [f"{', '.join(found)}: {reason}" for reason, found in names.items()]
