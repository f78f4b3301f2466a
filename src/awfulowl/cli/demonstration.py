"""The demonstration: real images, served by devices of which one lies and one is killed."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.cli import comparison
from awfulowl.cli.agreement import tolerance, wrong_rows
from awfulowl.cli.demo_report import Demonstration, happenings, versions
from awfulowl.cli.model_costs import costs
from awfulowl.cli.plan_report import describe
from awfulowl.cli.terminal import Advance, Stages
from awfulowl.device.lies import Kind
from awfulowl.errors import AwfulOwlError
from awfulowl.fabric.broker_binary import find_binary, verify_binary
from awfulowl.fleet.local import Lies, LocalFleet, local_fleet
from awfulowl.models.data import Labelled
from awfulowl.models.digits import EPOCHS, DigitsNet, accuracy, train_digits
from awfulowl.owner.policy import Policy
from awfulowl.placement.exposure import expose
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan
from awfulowl.placement.summary import summarise

BATCH: Final = 8
_CLIENTS: Final = 4
_MOST_PASSES: Final = 5
_LIE: Final[Kind] = "random"
_LIE_SIZE: Final = 0.01
"""One per cent of the right answer: so small that hardly a label would tell."""

_COVER_S: Final = (3600.0, 3601.0)
"""The liar gets old inputs until the end, so that it is still there to say how often it lied."""


class Answers(NamedTuple):
    """One pass over the test set: logits by the number of the batch; of the others, the errors in words."""

    logits: dict[int, Tensor]
    errors: dict[int, str]


class Comparison(NamedTuple):
    """All answers of the fleet beside those of the same network here; requests are batches."""

    accuracy: float
    max_abs_diff: float
    largest_tolerance: float
    requests: int
    lost: int
    wrong: int


class Served(NamedTuple):
    """What a fleet did, and what was done to it; `counts` are of the fleet's ledger."""

    passes: list[Answers]
    liar: str
    killed: str
    lies: Lies
    counts: dict[str, int]
    seconds: float


class Troubles:
    """What is done to a fleet while it serves, with requests under way.

    After a third of the batches the device with the most work is told to lie, after two thirds the next one is killed.
    """

    def __init__(self, fleet: LocalFleet, of: Plan, batches: int) -> None:
        by_work = sorted(summarise(of).devices, key=lambda device: device.flops, reverse=True)
        self.liar, self.killed = (device.name for device in by_work[:2])
        self._fleet = fleet
        self._lie_after, self._kill_after = batches // 3, 2 * batches // 3

    def happen(self, done: float) -> None:
        """Called once for each number of batches that are done."""
        if done == self._lie_after:
            self._fleet.corrupt(self.liar, _LIE, _LIE_SIZE)
        if done == self._kill_after:
            self._fleet.kill(self.killed)


def demonstrate(devices: int, seed: int, stages: Stages, started: float) -> Demonstration:
    """Train, scatter, serve, corrupt, kill, and compare every answer.

    Args:
        devices: device processes.
        seed: of the training; positions come from the operating system.
        stages: where progress is shown.
        started: when that was, by `time.perf_counter`.

    Raises:
        InputError: scikit-learn is not installed.
        BrokerError: there is no broker to start, or it does not start.
        UnavailableError: the devices cannot be started, or the blocks cannot be loaded.
    """
    verify_binary(find_binary())  # before minutes are spent on what cannot be served
    with stages.stage("training a network on scikit-learn's digits", EPOCHS) as advance:
        model, data = train_digits(seed, lambda done, _, __: advance(done))
    with stages.stage(f"starting a broker and {devices} device processes"):
        fleet = local_fleet(devices, policy=Policy(cover_s=_COVER_S))
    with fleet:
        modes = comparison.compare(fleet, model, data.test, BATCH, stages)
        made = plan(model, data.test.inputs[:1], devices=fleet)
        with stages.stage("loading all blocks onto the devices", 1.0) as advance:
            scattered = fleet.scatter(model, made, progress=lambda done, total: advance(done / total))
        served = serve(fleet, scattered, made, data.test.inputs, stages)
        after, events = fleet.plan_of(scattered), happenings(fleet.events)
        with stages.stage("ending the fleet"):
            fleet.close()
    compared = compare(model, data.test, served.passes)
    planned = describe("digits", made, costs(model, data.test.inputs[:1]))
    return Demonstration(
        accuracy_local=accuracy(model, data.test),
        accuracy_scattered=compared.accuracy,
        max_abs_diff=compared.max_abs_diff,
        devices=devices,
        blocks=planned.blocks,
        scattered_parameter_share=planned.scattered_parameter_share,
        outsourced_flop_share=planned.outsourced_flop_share,
        bytes_per_sample=_traffic(served) / (len(served.passes) * len(data.test.labels)),
        lies_told=served.lies.used,
        lies_caught=served.counts["lies_caught"],
        requests=compared.requests,
        requests_lost=compared.lost,
        requests_wrong=compared.wrong,
        seconds=time.perf_counter() - started,
        seconds_serving=served.seconds,
        images=len(served.passes) * len(data.test.labels),
        images_per_request=BATCH,
        largest_tolerance=compared.largest_tolerance,
        liar=served.liar,
        lie_size=_LIE_SIZE,
        lies_unused=served.lies.unused,
        killed=served.killed,
        errors=tuple(dict.fromkeys(text for answers in served.passes for text in answers.errors.values())),
        layers_taken_back=served.counts["kept"],
        blocks_per_device={device.name: device.blocks for device in planned.plan.devices},
        layers=planned.plan.panels,
        exposure=expose(after),
        modes=modes,
        happenings=events,
        statistics=served.counts,
        notes=made.notes,
        seed=seed,
        versions=versions(),
    )


def serve(fleet: LocalFleet, scattered: nn.Module, of: Plan, images: Tensor, stages: Stages) -> Served:
    """Send images through the fleet, again as long as the liar had no chance to lie, and make trouble on the way.

    Args:
        fleet: the devices.
        scattered: the model on them.
        of: its plan.
        images: (n, 1, 8, 8).
        stages: where progress is shown.
    """
    batches = torch.split(images, BATCH)
    troubles = Troubles(fleet, of, len(batches))
    before, started = fleet.statistics, time.perf_counter()
    passes: list[Answers] = []
    lies = Lies(0, 0)
    while not passes or (lies.used == 0 and len(passes) < _MOST_PASSES):
        with stages.stage("serving the test set while one device lies and one dies", len(batches)) as advance:
            passes.append(ask(scattered, batches, [advance] if passes else [troubles.happen, advance]))
        lies = fleet.lies_told(troubles.liar)
    counts = {name: number - before[name] for name, number in fleet.statistics.items()}
    return Served(passes, troubles.liar, troubles.killed, lies, counts, time.perf_counter() - started)


def _traffic(served: Served) -> int:
    return served.counts["bytes_sent"] + served.counts["bytes_received"]


def ask(model: Callable[[Tensor], Tensor], batches: Sequence[Tensor], watchers: Sequence[Advance]) -> Answers:
    """Ask for every batch, from several threads at once.

    Args:
        model: what is asked.
        batches: of images.
        watchers: called with the number of batches that are done, lost ones included.
    """
    answers = Answers({}, {})
    pool = ThreadPoolExecutor(_CLIENTS, thread_name_prefix="client")
    try:
        numbers = {pool.submit(_ask, model, batch): number for number, batch in enumerate(batches)}
        for done, future in enumerate(as_completed(numbers), start=1):
            try:
                answers.logits[numbers[future]] = future.result()
            except AwfulOwlError as error:
                answers.errors[numbers[future]] = str(error)
            for watch in watchers:
                watch(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return answers


@torch.inference_mode()
def _ask(model: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    return model(batch)


@torch.no_grad()
def compare(model: DigitsNet, test: Labelled, passes: Sequence[Answers]) -> Comparison:
    """Hold every row of logits that came back against the one computed here.

    A request is wrong if any of its logits differs by more than two honest passes may (`agreement`). An image whose
    request was lost counts as not recognised.
    """
    right = wrong = 0
    differences = [0.0]
    allowances = [0.0]
    for number, (images, labels) in enumerate(zip(*(torch.split(part, BATCH) for part in test), strict=True)):
        ours, allowed = model(images), tolerance(model, images)
        allowances.append(float(allowed.max()))
        for theirs in (answers.logits[number] for answers in passes if number in answers.logits):
            differences.append(float((ours.double() - theirs.double()).abs().max()))
            wrong += bool(wrong_rows(ours, theirs, allowed).any())
            right += int((theirs.argmax(1) == labels).sum())
    return Comparison(
        accuracy=right / (len(passes) * len(test.labels)),
        max_abs_diff=max(differences),
        largest_tolerance=max(allowances),
        requests=sum(len(answers.logits) + len(answers.errors) for answers in passes),
        lost=sum(len(answers.errors) for answers in passes),
        wrong=wrong,
    )
