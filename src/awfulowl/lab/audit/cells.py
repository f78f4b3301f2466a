"""The work of cells: one function for each kind."""

import copy
import math
import time
from dataclasses import replace

from msgspec import structs
from safetensors.torch import save

from awfulowl.costs import Ledger, SpentError
from awfulowl.errors import InputError, LocalError, UnwritableError
from awfulowl.lab.attacks.base import Outcome
from awfulowl.lab.attacks.whole_model import HintsAndBlocks
from awfulowl.lab.audit.record import Graded, Record
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.files import write_whole
from awfulowl.lab.request import AttackCell, Cell, DropCell, FloorCell, LineCell, NetworkCell, WarmCell, seed_of
from awfulowl.lab.scenes.drawing import attackable, grids_of, public_images
from awfulowl.lab.scenes.grading import compare, grade
from awfulowl.lab.scenes.loot import Scene, Truth, held_share, largest_block, seen_share
from awfulowl.lab.scenes.threat import changed
from awfulowl.lab.victims.data import some
from awfulowl.lab.victims.fitting import OnEpoch
from awfulowl.lab.yardsticks import lines, possession
from awfulowl.lab.yardsticks.completion import complete, completion_flops
from awfulowl.lab.yardsticks.floors import MissingLayers, floors
from awfulowl.randomness import Entropy

DROP_IMAGES = 2000
"""Test images of drop curves, at most: an error of a percent."""


def work(shop: Workshop, cell: Cell, on_epoch: OnEpoch | None = None) -> Record:
    """Work on a cell, and return what came of it; what is refused is missing, with the reason.

    Args:
        shop: what it is worked on with.
        cell: what is to be done.
        on_epoch: told about every epoch of a network.

    Raises:
        UnwritableError: a file cannot be written, which is no fault of the cell: it is not done, and can be again.
    """
    seed = seed_of(shop.request, cell)
    started = time.perf_counter()
    try:
        record = _work(shop, cell, seed, on_epoch)
    except UnwritableError:
        raise
    except (LocalError, SpentError) as error:
        record = Record(seed=seed, missing=str(error))
    return record if record.seconds else structs.replace(record, seconds=time.perf_counter() - started)


def _work(shop: Workshop, cell: Cell, seed: int, on_epoch: OnEpoch | None) -> Record:
    match cell:
        case NetworkCell():
            return _network(shop, cell, on_epoch)
        case FloorCell():
            return _floor(shop, cell, seed)
        case LineCell():
            return _line(shop, cell, seed)
        case AttackCell():
            return _attack(shop, cell, seed)
        case DropCell():
            return _drop(shop, cell, seed)
        case WarmCell():
            return _warm(shop, cell, seed)


def _network(shop: Workshop, cell: NetworkCell, on_epoch: OnEpoch | None) -> Record:
    victim = shop.network(cell.number, public_only=cell.public_only, on_epoch=on_epoch)
    data = shop.data
    found = compare(victim.model, victim.answers, [], validation=data.validation, test=data.test)
    return Record(seed=victim.seed, graded=Graded.of(found), cost=_spent(training=victim.training_flops))


def _spent(**flops: float) -> dict[str, float]:
    ledger = Ledger()
    for kind, amount in flops.items():
        ledger.spend(kind, amount)
    return ledger.cost()


def _floor(shop: Workshop, cell: FloorCell, seed: int) -> Record:
    """Run a floor as an attack; F3 even where the threat model grants no base model, for comparison."""
    scene, truth = shop.floor_scene(cell)
    base = shop.network(cell.victim + 1).model
    known = {floor.name: floor for floor in floors(base=base, mirrored=shop.kind.schedule.mirrored)}
    if cell.floor not in known:
        raise InputError(f"no floor {cell.floor!r}; there are {', '.join(known)}")
    if "knows_base_model" in known[cell.floor].needs:
        scene = replace(scene, threat=changed(scene.threat, knows_base_model=True))
    victim = shop.network(cell.victim)
    budget = Ledger(flops=shop.budget(scene.threat, victim), queries=scene.threat.queries)
    outcome = known[cell.floor](scene, truth, seed=seed, budget=budget)
    if cell.floor == MissingLayers.name and not cell.layers and cell.public is None:
        weights = {name: tensor.contiguous() for name, tensor in outcome.recovery.weights.items()}
        write_whole(shop.store.path(cell, "safetensors"), save(weights))
    return _record(outcome, scene)


def _record(outcome: Outcome, scene: Scene) -> Record:
    record = Record(
        seed=outcome.seed, seconds=outcome.seconds, graded=Graded.of(outcome.grade), cost=dict(outcome.cost)
    )
    return _taken(record, scene)


def _taken(record: Record, scene: Scene) -> Record:
    """Return a record with what was taken: shares of attacked weights and of their inputs, and the size of blocks."""
    size = {layer: math.prod(spoils.grid.shape) for layer, spoils in scene.layers.items()}
    held = sum(size[layer] * held_share(spoils) for layer, spoils in scene.layers.items()) / sum(size.values())
    largest = max((largest_block(spoils.grid) for spoils in scene.layers.values()), key=math.prod)
    return structs.replace(record, held=held, seen=seen_share(scene.service.seen), block_size=largest)


def _line(shop: Workshop, cell: LineCell, seed: int) -> Record:
    scene, truth = shop.scene(cell.place)
    if cell.name == lines.CEILING:
        return _ceiling(shop, cell, (scene, truth), seed)
    return _taken(Record(seed=seed, graded=Graded.of(lines.line(cell.name, scene, truth, seed))), scene)


def _ceiling(shop: Workshop, cell: LineCell, drawn: tuple[Scene, Truth], seed: int) -> Record:
    """Tell a pirate the true positions: it completes a layer as attacks do, and of a whole model learns the rest."""
    scene, truth = drawn
    ledger = Ledger(flops=shop.budget(scene.threat, shop.network(cell.place.victim)), queries=scene.threat.queries)
    if cell.place.setting == "model":
        # Floor weights in the holes would be of other hidden units than the blocks beside them.
        return _record(HintsAndBlocks(positions=truth.positions)(scene, truth, seed=seed, budget=ledger), scene)
    recovery = lines.true_positions(truth)
    completed = complete(scene, recovery, shop.fill(cell.place), ledger, seed)
    found = grade(completed.model, recovery.placements, scene, truth)
    return _taken(Record(seed=seed, graded=Graded.of(found), way=completed.way, cost=ledger.cost()), scene)


def _attack(shop: Workshop, cell: AttackCell, seed: int) -> Record:
    """Run an attack within what completion leaves of the budget, and complete what it found.

    Controls get the seed of the attack itself, so that they differ in the blocks alone.
    """
    attack = shop.attack(cell.attack)
    seed = seed_of(shop.request, structs.replace(cell, control=None))
    scene, truth = shop.scene(cell.place, cell.control)
    attack.check_granted(scene)
    fill = shop.fill(cell.place) if attack.scope != "model" else {}
    whole = shop.budget(scene.threat, shop.network(cell.place.victim))
    filling = _fill_flops(shop, cell)
    kept = math.floor(min(completion_flops(scene) + filling, whole / 2)) if fill else 0
    if filling > kept:
        fill, kept = {}, 0  # the floor alone takes more than half of what the pirate may spend
    outcome = attack(scene, truth, seed=seed, budget=Ledger(flops=whole - kept, queries=scene.threat.queries))
    ledger = Ledger(flops=kept)
    if fill:
        ledger.spend("fill", filling)
    completed = complete(scene, outcome.recovery, fill, ledger, seed)
    return structs.replace(
        _record(outcome, scene),
        completed=Graded.of(grade(completed.model, outcome.recovery.placements, scene, truth)),
        way=completed.way,
        completion_cost=ledger.cost(),
    )


def _fill_flops(shop: Workshop, cell: AttackCell) -> float:
    """Return what floor F1 cost, whose weights lie under the blocks."""
    floor = FloorCell(setting=cell.place.setting, victim=cell.place.victim, floor=MissingLayers.name)
    found = shop.store.find(floor)
    return found.cost.get("flops", 0.0) if found is not None else 0.0


def _drop(shop: Workshop, cell: DropCell, seed: int) -> Record:
    victim = shop.network(cell.victim)
    model = copy.deepcopy(victim.model)
    possession.drop(model, grids_of(model, cell.layers, cell.block), cell.dropped, Entropy(seed))
    test = some(shop.data.test, DROP_IMAGES, 0)
    found = compare(model, victim.answers, cell.layers, validation=shop.data.validation, test=test)
    return Record(seed=seed, graded=Graded.of(found))


def _warm(shop: Workshop, cell: WarmCell, seed: int) -> Record:
    """Train from loot, or from scratch; both from the same fresh weights and in the same order."""
    threat = shop.request.threat
    threat.demand("a warm start", possession.WARM_NEEDS)
    victim = shop.network(cell.victim)
    grids = grids_of(victim.model, [*attackable(victim.model)], cell.block)
    seed = seed_of(shop.request, "warm", cell.victim)
    held = possession.withheld(grids, cell.share, cell.order, Entropy(seed_of(shop.request, cell)))
    ledger = Ledger(flops=shop.budget(threat, victim))
    public = public_images(shop.data, threat)
    model = possession.warm_start(victim, held, public, seed, ledger, loot=cell.share > 0)
    found = compare(model, victim.answers, [*grids], validation=shop.data.validation, test=shop.data.test)
    return Record(seed=seed, graded=Graded.of(found), cost=ledger.cost())
