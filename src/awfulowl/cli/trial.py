"""A model on a fleet elsewhere: called some times, and compared with the same model here."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from torch import Tensor, nn

from awfulowl.arithmetic.numbers import FLOAT32
from awfulowl.cli import planning, tables
from awfulowl.cli.figures import count, size
from awfulowl.cli.terminal import Stages
from awfulowl.errors import InputError, PlanError
from awfulowl.fleet.connect import connect, read_enrolment
from awfulowl.fleet.fleet import Fleet
from awfulowl.placement import store
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.placement.survey import call_with, samples_in


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to try, and where."""

    model: str
    url: str
    identity: Path
    devices: tuple[Path, ...]
    options: Options
    plan: Path | None
    key: Path
    batches: int
    batch: int
    sealed: bool


class Trial(msgspec.Struct, frozen=True):
    """What a trial found; times are medians in seconds, of one call each."""

    model: str
    devices: int
    calls: int
    samples_per_call: int
    max_abs_diff: float
    max_abs_output: float
    seconds_local: float
    seconds_scattered: float
    bytes_per_sample: float
    statistics: dict[str, int]
    notes: tuple[str, ...]
    equal_to_twin: bool | None = None
    """Whether the last answer was that of the local twin, bit for bit; None in float32, which has none."""
    arithmetic: str = FLOAT32
    sharing: str | None = None


def run(request: Request, stages: Stages) -> Trial:
    """Scatter the model, call it, and compare.

    Raises:
        AwfulOwlError: anything that `owl.connect`, `owl.plan` and `Fleet.scatter` raise.
    """
    example = planning.build(request.model, stages)
    if example.inputs is None:
        raise InputError(f"{request.model} comes without an example of its input: return (model, example)")
    saved = None if request.plan is None else planning.load(request.plan, request.key, example.model)
    enrolled = [read_enrolment(path) for path in request.devices]
    domains = None if saved is None else _domains(saved, request, [device.name for device in enrolled])
    with connect(
        request.url, identity=request.identity, devices=enrolled, domains=domains, sealed=request.sealed
    ) as fleet:
        with stages.stage("waiting for the devices"):
            fleet.wait_for_devices()
        plan = saved or plan_model(example.model, example.inputs, fleet.devices, request.options)
        scattered = _scatter(fleet, example.model, plan, request, stages)
        inputs = repeated(example.inputs, request.batch)
        return _compare(fleet, plan, (example.model, scattered), inputs, request, stages)


def _domains(plan: Plan, request: Request, enrolled: Sequence[str]) -> dict[str, str]:
    """Return the domains of a plan's devices, by name.

    Raises:
        PlanError: some of them were not named to us.
    """
    missing = sorted({device.name for device in plan.devices}.difference(enrolled))
    if missing:
        raise PlanError(
            f"{request.plan} is a plan for devices that are not here: {', '.join(missing)}. Name the enrolment of each "
            f"with --device, or make a plan for those that are: owl plan {request.model} --devices "
            f"{','.join(enrolled)} -o FILE"
        )
    return {device.name: device.domain for device in plan.devices}


def _scatter(fleet: Fleet, model: nn.Module, plan: Plan, request: Request, stages: Stages) -> nn.Module:
    with stages.stage("loading the blocks", 1.0) as advance:
        return fleet.scatter(
            model,
            plan,
            progress=lambda done, total: advance(done / total),
            on_change=None if request.plan is None else partial(_remember, request.plan, request.key),
        )


def _remember(path: Path, key: Path, plan: Plan) -> None:
    """Write down who is about to see what, before it happens."""
    store.save(plan, path, planning.open_key(key))


def _compare(
    fleet: Fleet,
    plan: Plan,
    models: tuple[nn.Module, nn.Module],
    inputs: object,
    request: Request,
    stages: Stages,
) -> Trial:
    local, scattered = models
    before = fleet.statistics
    exact = plan.arithmetic != FLOAT32
    with torch.inference_mode():
        with stages.stage("calling the model on the fleet", request.batches) as advance:
            theirs, seconds_scattered = _timed(scattered, inputs, request.batches, advance)
        with stages.stage("calling the model here", request.batches) as advance:
            ours, seconds_local = _timed(local, inputs, request.batches, advance)
        twins = tensors(call_with(plan.twin(local), inputs)) if exact else ()
        equal = all(map(torch.equal, tensors(theirs), twins)) if exact else None
    statistics = {name: number - before[name] for name, number in fleet.statistics.items()}
    # A layer that was taken back while blocks were loaded is not on devices either.
    statistics |= {name: fleet.statistics[name] for name in ("kept", "given_out")}
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    samples = samples_in(inputs)
    return Trial(
        model=request.model,
        devices=len(fleet.devices),
        calls=request.batches,
        samples_per_call=samples,
        max_abs_diff=max((_largest(mine.double() - other.double()) for mine, other in pairs), default=0.0),
        max_abs_output=max((_largest(mine) for mine, _ in pairs), default=0.0),
        seconds_local=seconds_local,
        seconds_scattered=seconds_scattered,
        bytes_per_sample=(statistics["bytes_sent"] + statistics["bytes_received"]) / (samples * request.batches),
        statistics=statistics,
        notes=plan.notes,
        equal_to_twin=equal,
        arithmetic=plan.arithmetic,
        sharing=plan.sharing,
    )


def _timed(model: nn.Module, inputs: object, calls: int, advance: Callable[[float], None]) -> tuple[object, float]:
    """Return the last answer, and the median time of a call in seconds."""
    seconds = []
    answer: object = None
    for number in range(calls):
        started = time.perf_counter()
        answer = call_with(model, inputs)
        seconds.append(time.perf_counter() - started)
        advance(number + 1)
    return answer, sorted(seconds)[len(seconds) // 2]


def repeated(inputs: object, times: int) -> object:
    """Return an example with its samples repeated along the first dimension."""
    if isinstance(inputs, Tensor):
        return inputs.repeat(times, *[1] * (inputs.dim() - 1)) if inputs.dim() else inputs
    if isinstance(inputs, Mapping):
        return {name: repeated(value, times) for name, value in inputs.items()}
    return tuple(repeated(value, times) for value in inputs) if isinstance(inputs, tuple) else inputs


def tensors(answer: object) -> Iterator[Tensor]:
    """Yield the tensors of an answer of numbers, however they are nested."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        for value in answer.values():
            yield from tensors(value)
    elif isinstance(answer, Sequence) and not isinstance(answer, str):
        for value in answer:
            yield from tensors(value)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _twin(trial: Trial) -> list[tuple[str, str]]:
    if trial.equal_to_twin is None:
        return []
    kind = f"{trial.arithmetic}, {'nothing' if trial.sharing is None else trial.sharing} shared"
    return [
        ("arithmetic", kind),
        ("the same integers here", "equal, bit for bit" if trial.equal_to_twin else "NOT EQUAL"),
    ]


def _taken_back(counted: Mapping[str, int]) -> str:
    if not counted["kept"]:
        return "none"
    back = f"{count(counted['kept'])}: the rules allowed no device that was there to hold them"
    return f"{back}; {count(counted['given_out'])} are on devices again"


def show(trial: Trial, console: Console) -> None:
    """Print what was found."""
    counted = trial.statistics
    tables.show(
        console,
        f"{trial.model} on {trial.devices} devices",
        tables.pairs(
            [
                ("calls", f"{count(trial.calls)} of {count(trial.samples_per_call)} samples"),
                ("largest difference", f"{trial.max_abs_diff:.2e} (outputs up to {trial.max_abs_output:.2e})"),
                *_twin(trial),
                ("a call here", f"{1000 * trial.seconds_local:.1f} ms"),
                ("a call on the fleet", f"{1000 * trial.seconds_scattered:.1f} ms"),
                ("traffic a sample", size(trial.bytes_per_sample)),
                ("checked samples", f"{count(counted['checks'])}, of which failed {count(counted['checks_failed'])}"),
                ("products lost", count(counted["requests_lost"])),
                ("layers taken back", _taken_back(counted)),
            ],
        ),
    )
    tables.bullets(console, "Notes", trial.notes)
