"""What int8 and int16 arithmetic cost in accuracy against float32, on three trained networks and their whole test sets.

    python benchmarks/accuracy.py [--quick] [--json FILE] [--cifar PATH] [--text PATH] [--only digits cifar10 text]

The integers are those that devices would compute: `plan.twin` computes them on this machine, without a fleet.

digits      `DigitsNet`, trained as `owl demo` trains it: for each seed a split and a network, all answers together.
cifar10     Six convolutions, two of them residual, with batch normalisation (which stays in float32).
text        A causal transformer of characters. The test is the last tenth of the text, in windows of 128 characters.

`cost` is what is lost: points of accuracy, or nats per character. In brackets its 95 % interval over test examples, for
these very networks (not over trainings), from the pairs of answers to one example: Bonett and Price (2012) for right or
wrong, which has a width even where no answer changes, and the normal one over windows for nats. A target is `met` or
`missed` where the whole interval says so, else `open`. Recipes were chosen by a part of the training data that is never
trained on (`validation` is the score there), the tests are for this table only. Trained weights stay in the user's
cache folder, under a digest of recipe, data and PyTorch; other machines or numbers of threads train to others.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import platform
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

import msgspec
import numpy as np
import platformdirs
import torch
from torch import Tensor, nn
from torch.nn import functional

import awfulowl as owl
from awfulowl.errors import InputError
from awfulowl.models.data import Labelled, read_cifar10, read_text, scaled
from awfulowl.models.digits import train_digits
from awfulowl.models.seeding import seeded
from awfulowl.models.transformer import Transformer, TransformerConfig

POINTS: Final = {"int8": 0.5, "int16": 0.05}
NATS: Final = {"int8": 0.02, "int16": 0.001}
NORMAL_95: Final = 1.959964
CONTEXT: Final = 128
HELD_BACK: Final = 5000
"""Images of CIFAR-10's training set that recipes were chosen by, the same for every seed."""

Batches = Iterator[tuple[Tensor, Tensor]]
Interval = tuple[float, float, float]  # a value, and the ends of its 95 % interval


class Recipe(msgspec.Struct, frozen=True):
    """How `fit` trains: AdamW with a one-cycle learning rate."""

    epochs: int
    batch: int
    peak_rate: float
    weight_decay: float
    revision: int = 1
    """To be raised with a change of the code of training: else the cache gives what the older code made."""


CIFAR: Final = Recipe(epochs=10, batch=128, peak_rate=4e-3, weight_decay=0.05)
TEXT: Final = Recipe(epochs=8, batch=32, peak_rate=3e-3, weight_decay=0.1)


class Row(msgspec.Struct, frozen=True):
    """One network in one arithmetic. Scores and cost in percent and points, or in nats per character."""

    network: str
    arithmetic: str
    unit: str
    seeds: list[int]
    answers: int
    validation: float | None
    float32: float
    score: float
    cost: Interval
    got_worse: int
    got_better: int
    target: float
    verdict: str
    float32_s: float
    twin_s: float


class Trained(NamedTuple):
    """A network in eval mode, and examples that it was not trained on."""

    model: nn.Module
    test: Labelled
    validation: Labelled | None


class Case(NamedTuple):
    """A kind of network, the seeds of those that are measured, and the unit of their scores: % or nats."""

    name: str
    unit: str
    seeds: list[int]
    train: Callable[[int], Trained]


class Course(NamedTuple):
    """What makes weights: a recipe, a network, data, and its batches of one epoch."""

    name: str
    recipe: Recipe
    network: Callable[[], nn.Module]
    data: list[Tensor]
    steps: int
    draw: Callable[[torch.Generator], Batches]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@torch.inference_mode()
def scores(model: nn.Module, examples: Labelled, unit: str) -> Tensor:
    """Return for each example 100 or 0, right or wrong; or its mean cross-entropy per character."""
    found = []
    for inputs, labels in zip(*(torch.split(part, 100) for part in examples), strict=True):
        logits = model(inputs).double()
        if unit == "%":
            found.append(100 * (logits.argmax(1) == labels).double())
        else:
            found.append(functional.cross_entropy(logits.mT, labels, reduction="none").mean(1))
    return torch.cat(found)


def cost_of(lost: Tensor, unit: str) -> Interval:
    """Return the mean of what every example lost, and its interval."""
    n, mean = len(lost), float(lost.mean())
    if unit == "%":
        wrong, right = (float((changed.sum() + 1) / (n + 2)) for changed in (lost > 0, lost < 0))
        middle, error = 100 * (wrong - right), 100 * math.sqrt((wrong + right - (wrong - right) ** 2) / (n + 2))
    else:
        middle, error = mean, float(lost.std()) / math.sqrt(n)
    return mean, middle - NORMAL_95 * error, middle + NORMAL_95 * error


def verdict(cost: Interval, target: float) -> str:
    low, high = cost[1:]
    return "met" if -target <= low and high <= target else "missed" if low > target or high < -target else "open"


def learn(course: Course, seed: int) -> nn.Module:
    """Return the trained network, from the cache where it is there."""
    with seeded(seed):
        model = course.network()
    digest = hashlib.sha256(msgspec.json.encode((course.recipe, str(model), str(torch.__version__))))
    for tensor in course.data:
        digest.update(tensor.numpy().tobytes())
    name = f"accuracy-{course.name}-{seed}-{digest.hexdigest()[:16]}.npz"
    file = platformdirs.user_cache_path("awfulowl") / "benchmarks" / name
    if not restore(model, file):
        fit(model, course, seed)
        keep(model, file)
    return model.eval()


def fit(model: nn.Module, course: Course, seed: int) -> None:
    recipe, title, start = course.recipe, f"{course.name}, seed {seed}", perf_counter()
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.peak_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, recipe.epochs * course.steps)
    for epoch in range(recipe.epochs):
        total = 0.0
        for inputs, labels in course.draw(chance):
            loss = functional.cross_entropy(model(inputs).flatten(0, labels.ndim - 1), labels.flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() / course.steps
        say(f"{title}: epoch {epoch + 1} of {recipe.epochs}, loss {total:.3f}, {perf_counter() - start:.0f} s")


def restore(model: nn.Module, file: Path) -> bool:
    """Load the weights where they are there, whole."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except FileNotFoundError:
        return False
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        say(f"{file} is damaged and made again: {error}")
        return False
    model.load_state_dict(state)
    say(f"weights from {file}")
    return True


def keep(model: nn.Module, file: Path) -> None:
    """Write the weights to the side, and rename them when they are whole."""
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        whole = Path(folder) / file.name
        np.savez(whole, allow_pickle=False, **arrays)
        whole.replace(file)


def digits(seeds: list[int]) -> Case:
    def train(seed: int) -> Trained:
        model, data = train_digits(seed)
        return Trained(model, data.test, None)

    return Case("digits", "%", seeds, train)


class Residual(nn.Sequential):
    """Adds to the input what its modules make of it."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = x
        for module in self:
            y = module(y)
        return x + y


def convolutions() -> nn.Module:
    """Return 1 million weights that cost 24 million multiplications an image."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    narrow, wide = Residual(*block(128, 128)), Residual(*block(256, 256))
    layers = [*block(3, 32), *block(32, 64, 2), *block(64, 128, 2), narrow, *block(128, 256, 2), wide]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def moved(images: Tensor, chance: torch.Generator) -> Tensor:
    """Shift every image by up to 4 pixels and mirror half of them; (n, 3, 32, 32), channels last."""
    n = len(images)
    down, along = (torch.randint(9, (n, 1), generator=chance) + torch.arange(32) for _ in range(2))
    along = torch.where(torch.rand(n, 1, generator=chance) < 0.5, along.flip(1), along)
    padded = functional.pad(images, (4, 4, 4, 4))
    return padded[torch.arange(n)[:, None, None], :, down[:, :, None], along[:, None, :]].permute(0, 3, 1, 2)


def cifar10(path: Path, seeds: list[int]) -> Case:
    say(f"cifar10: reading {path}")
    data = read_cifar10(path)
    if (len(data.train.labels), len(data.test.labels)) != (50_000, 10_000):
        raise InputError(f"{path}: not the 50,000 and 10,000 images of CIFAR-10")
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))  # JPEG files come class by class
    (held_images, images), (held_labels, labels) = (part[order].tensor_split([HELD_BACK]) for part in data.train)
    steps = len(labels) // CIFAR.batch

    def draw(chance: torch.Generator) -> Batches:
        for chosen in torch.randperm(len(labels), generator=chance)[: steps * CIFAR.batch].view(steps, -1):
            yield scaled(moved(images[chosen], chance)), labels[chosen]

    course = Course("cifar10", CIFAR, convolutions, [images, labels], steps, draw)
    test, held_back = Labelled(scaled(data.test.inputs), data.test.labels), Labelled(scaled(held_images), held_labels)
    return Case("cifar10", "%", seeds, lambda seed: Trained(learn(course, seed), test, held_back))


def windows(tokens: Tensor) -> Labelled:
    """Return rows of `CONTEXT` characters, and for each of these what follows it."""
    rows = tokens.unfold(0, CONTEXT + 1, CONTEXT)
    return Labelled(rows[:, :-1], rows[:, 1:])


def text(path: Path, seeds: list[int]) -> Case:
    tokens, alphabet = read_text(path)
    if len(tokens) < 500_000:
        raise InputError(f"{path}: {len(tokens)} characters; its last tenth must have 50,000")
    learned, held_back, test = tokens.tensor_split([len(tokens) * percent // 100 for percent in (85, 90)])
    config = TransformerConfig(vocabulary=len(alphabet), context=CONTEXT, width=128, depth=4, heads=4, causal=True)
    steps = len(learned) // (CONTEXT * TEXT.batch)

    def draw(chance: torch.Generator) -> Batches:
        for _ in range(steps):
            starts = torch.randint(len(learned) - CONTEXT, (TEXT.batch, 1), generator=chance)
            chosen = learned[starts + torch.arange(CONTEXT + 1)]
            yield chosen[:, :-1], chosen[:, 1:]

    course = Course("text", TEXT, lambda: Transformer(config), [learned], steps, draw)
    return Case("text", "nats", seeds, lambda seed: Trained(learn(course, seed), windows(test), windows(held_back)))


def measure(case: Case) -> Iterator[Row]:
    """Ask the networks of all seeds and their twins the whole test sets."""
    targets = POINTS if case.unit == "%" else NATS
    found: dict[str, list[Tensor]] = {name: [] for name in ("validation", "float32", *targets)}
    seconds, answers = dict.fromkeys(found, 0.0), 0
    for seed in case.seeds:
        model, test, held_back = case.train(seed)
        answers += test.labels.numel()
        say(f"{case.name}, seed {seed}: {test.labels.numel()} answers in float32, {', '.join(targets)}")
        asked = {"float32": (model, test)} | ({"validation": (model, held_back)} if held_back else {})
        for arithmetic in targets:
            plan = owl.plan(model, test.inputs[:1], devices=2, arithmetic=arithmetic)
            asked[arithmetic] = (plan.twin(model), test)
        for name, (network, examples) in asked.items():
            start = perf_counter()
            found[name].append(scores(network, examples, case.unit))
            seconds[name] += perf_counter() - start
    pooled = {name: torch.cat(parts) for name, parts in found.items() if parts}
    means = {name: float(part.mean()) for name, part in pooled.items()}
    for arithmetic, target in targets.items():
        lost = (pooled["float32"] - pooled[arithmetic]) * (1 if case.unit == "%" else -1)
        cost = cost_of(lost, case.unit)
        yield Row(
            network=case.name,
            arithmetic=arithmetic,
            unit=case.unit,
            seeds=case.seeds,
            answers=answers,
            validation=means.get("validation"),
            float32=means["float32"],
            score=means[arithmetic],
            cost=cost,
            got_worse=int((lost > 0).sum()),
            got_better=int((lost < 0).sum()),
            target=target,
            verdict=verdict(cost, target),
            float32_s=seconds["float32"],
            twin_s=seconds[arithmetic],
        )


def show(row: Row) -> None:
    places = 2 if row.unit == "%" else 4
    validation = "" if row.validation is None else f" (validation {row.validation:.{places}f})"
    cost, low, high = (f"{value:+.2g}" for value in row.cost)
    print(
        f"{row.network:8} float32 {row.float32:.{places}f} {row.unit}{validation}  "
        f"{row.arithmetic:5} {row.score:.{places}f}  cost {cost} ({low} - {high})  "
        f"target {row.target:g} {row.verdict}  {row.got_worse} worse, {row.got_better} better  "
        f"n {row.answers}  seeds {len(row.seeds)}  {row.float32_s:.1f} s, twin {row.twin_s:.1f} s",
        flush=True,
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield what is asked for and has its data, and say what is left out."""
    for name in options.only:
        path = {"cifar10": options.cifar, "text": options.text}.get(name)
        if name == "digits" and importlib.util.find_spec("sklearn"):
            yield digits(options.seeds or [*range(3 if options.quick else 20)])
        elif name == "digits":
            say("digits: skipped (they come with scikit-learn, which is not installed)")
        elif options.quick or path is None:
            say(f"{name}: skipped ({'--quick' if options.quick else 'no path of its data is given'})")
        else:
            yield (cifar10 if name == "cifar10" else text)(path, options.seeds or [0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the digits only, with fewer seeds")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--cifar", metavar="PATH", type=Path, help="CIFAR-10, an archive or its folder")
    parser.add_argument("--text", metavar="PATH", type=Path, help="a UTF-8 text of 500,000 characters or more")
    names = ["digits", "cifar10", "text"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="other networks than the usual ones")
    options = parser.parse_args()
    rows = []
    try:
        for case in cases(options):
            for row in measure(case):
                rows.append(row)
                show(row)
    except InputError as error:
        parser.error(str(error))
    if options.json:
        write(options.json, rows)


def write(file: str, rows: list[Row]) -> None:
    results = {
        "benchmark": "accuracy",
        "awfulowl": owl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "recipes": {"cifar10": msgspec.structs.asdict(CIFAR), "text": msgspec.structs.asdict(TEXT)},
        "rows": msgspec.to_builtins(rows),
    }
    whole = json.dumps(results, indent=2)
    print(whole) if file == "-" else Path(file).write_text(whole + "\n")


if __name__ == "__main__":
    main()
