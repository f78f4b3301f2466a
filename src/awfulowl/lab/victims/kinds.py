"""Victims: networks that the lab trains itself, so that what they learned from, and at what cost, is known."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from awfulowl.costs import Ledger, forward_flops
from awfulowl.errors import InputError, ModelError
from awfulowl.lab.complaints import known
from awfulowl.lab.files import write_whole
from awfulowl.lab.victims.answers import Answers
from awfulowl.lab.victims.data import Split
from awfulowl.lab.victims.fitting import OnEpoch, Schedule, fit
from awfulowl.lab.victims.networks import CifarNet
from awfulowl.models.catalogue import load_example
from awfulowl.models.digits import DigitsNet
from awfulowl.models.seeding import seeded
from awfulowl.models.vgg import Vgg16
from awfulowl.randomness import Entropy
from awfulowl.results import versions

_KEPT_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of victim: its architecture, how it is trained, and the layer that is attacked unless one is named.

    `build` makes a fresh network from a seed. `given` are weights that the victim of seed 0 has instead of trained
    ones, as a user's own model has.
    """

    name: str
    build: Callable[[int], nn.Module]
    schedule: Schedule
    layer: str | None = None
    shape: tuple[int, ...] | None = None
    """Of one image, where it is fixed."""
    accelerated: bool = False
    """Trained on a GPU where there is one: without, it takes days."""
    given: nn.Module | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A trained network in eval mode, and what it cost to train."""

    kind: Kind
    seed: int
    model: nn.Module
    training_flops: float
    forward_flops: float

    @cached_property
    def answers(self) -> Answers:
        """What it answers, remembered."""
        return Answers(self.model)


def _catalogue(kinds: list[Kind]) -> Mapping[str, Kind]:
    named: dict[str, Kind] = {}
    for kind in kinds:
        if kind.name in named:
            raise InputError(f"two victims are called {kind.name!r}")
        named[kind.name] = kind
    return named


def _digits(seed: int) -> nn.Module:
    with seeded(seed):
        return DigitsNet()


def _vgg16(seed: int) -> nn.Module:
    with seeded(seed):
        return Vgg16(100)


def _cifar(seed: int) -> nn.Module:
    with seeded(seed):
        return CifarNet()


KINDS: Final = _catalogue(
    [
        Kind(
            name="digits",
            build=_digits,
            schedule=Schedule(epochs=12, batch=64, lr=0.1, weight_decay=5e-4, warmup=0.1),
            layer="hidden",
            shape=(1, 8, 8),
        ),
        Kind(
            name="cifar",
            build=_cifar,
            schedule=Schedule(epochs=6, batch=128, lr=0.1, weight_decay=5e-4, warmup=0.1, mirrored=True),
            layer="hidden",
            shape=(3, 32, 32),
        ),
        Kind(
            name="vgg16",
            build=_vgg16,
            schedule=Schedule(epochs=100, batch=128, lr=0.01, weight_decay=5e-4, warmup=0.05, mirrored=True),
            layer="classifier.0",
            shape=(3, 32, 32),
            accelerated=True,
        ),
    ]
)
"""Victims by name; digits learn in seconds, cifar (2.35 M weights, 80 % of CIFAR-10) in minutes.

vgg16 is the founding paper's network, with the 100 classes of its CIFAR-100, and learns in hours on a GPU.
"""

_OWN: Final = Schedule(epochs=8, batch=128, lr=0.003, weight_decay=0.01, optimiser="adamw", warmup=0.2)
"""How networks beside a user's own model are trained: AdamW with one rise and fall suits most."""


def find_kind(text: str) -> Kind:
    """Return the kind of victim that a MODEL argument means.

    Args:
        text: a name of `KINDS`, or path/to/file.py:function, which **runs that file**: the function returns a trained
            network, which is the victim; networks beside it (foreign, floors) get its architecture and fresh weights.

    Raises:
        InputError: there is no such victim, or the file gives no network. Errors of the user's own code pass unchanged.
        ModelError: it has parts that cannot be made fresh.
    """
    if text in KINDS:
        return KINDS[text]
    if ".py:" not in text:
        raise InputError(f"no victim {text!r}{known(text, KINDS)}, and path/to/file.py:function")
    given = load_example(text).model

    def build(seed: int) -> nn.Module:
        with seeded(seed):
            return _fresh(load_example(text, seed=seed).model)

    return Kind(name=Path(text.rpartition(":")[0]).stem, build=build, schedule=_OWN, given=given)


def _fresh(model: nn.Module) -> nn.Module:
    """Draw all weights anew."""
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                raise ModelError(
                    f"'{name}' is a {type(module).__name__} without reset_parameters: controls need fresh weights"
                )
            reset()
    return model


def train_victim(
    kind: Kind, seed: int, data: Split, *, cache: Path | None = None, on_epoch: OnEpoch | None = None
) -> Victim:
    """Return a victim, trained or from the cache.

    Args:
        kind: which.
        seed: of its initial weights and of the order of its images.
        data: what it learns from.
        cache: folder in which trained victims are kept; None: nowhere.
        on_epoch: told about every epoch of a training.

    Raises:
        InputError: the data do not fit the network, or the cache cannot be written.
        ModelError: weights are not finite.
    """
    check_fits(kind, data)
    model = kind.build(seed)
    forward = forward_flops(model, data.test.inputs[:1])
    victim = Victim(
        kind=kind,
        seed=seed,
        model=model,
        forward_flops=forward,
        training_flops=kind.schedule.cost(forward, len(data.train.labels)),
    )
    if kind.given is not None and seed == 0:
        check_finite(kind.given)
        return replace(victim, model=kind.given.eval())
    kept = None if cache is None else cache / "victims" / f"{kind.name}-{seed}-{_key(kind, seed, data)}.safetensors"
    if kept is None or not fill(model, kept):
        with seeded(seed):
            model.to(_device(kind))
            fit(model, *data.train, kind.schedule, Entropy(seed), Ledger(), on_epoch=on_epoch)
            model.cpu()
        check_finite(model)
        if kept is not None:
            keep(model, kept)
    return replace(victim, model=model.eval())


def _device(kind: Kind) -> str:
    return "cuda" if kind.accelerated and torch.cuda.is_available() else "cpu"


def check_finite(model: nn.Module) -> None:
    """Refuse a network with weights that are not finite.

    Raises:
        ModelError: a number of its state is NaN or infinite.
    """
    for name, tensor in model.state_dict().items():
        if not _finite(tensor):
            raise ModelError(f"'{name}' holds numbers that are not finite: nothing can be said of this model")


def check_fits(kind: Kind, data: Split) -> None:
    """Refuse data that a network cannot take.

    Raises:
        InputError: images have another shape, or there are more classes than the network tells apart.
    """
    shape = tuple(data.test.inputs.shape[1:])
    if kind.shape is not None and shape != kind.shape:
        raise InputError(f"the data have images of shape {shape}; {kind.name} takes {kind.shape}")
    model = kind.build(0).eval() if kind.given is None else kind.given.eval()
    try:
        with torch.no_grad():
            answer = model(data.test.inputs[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{kind.name} does not take images of shape {shape}: {error}") from error
    if not isinstance(answer, torch.Tensor) or answer.dim() != 2 or answer.shape[1] < data.classes:
        got = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise InputError(f"{kind.name} answers with {got}, where (1, {data.classes} or more) logits are expected")


def _key(kind: Kind, seed: int, data: Split) -> str:
    facts = (_KEPT_VERSION, kind.name, msgspec.to_builtins(kind.schedule), seed, data.digest, versions())
    shapes = [(name, tuple(tensor.shape)) for name, tensor in kind.build(seed).state_dict().items()]
    return hashlib.blake2b(repr((facts, shapes)).encode(), digest_size=12).hexdigest()


def keep(model: nn.Module, path: Path) -> None:
    """Write a network's state into the cache.

    Raises:
        InputError: it cannot be written.
    """
    write_whole(path, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def fill(model: nn.Module, path: Path) -> bool:
    """Fill a network from the cache; return False where nothing is kept, or what is kept is damaged.

    Then the network is as it was: it may be trained.
    """
    try:
        kept = load(path.read_bytes())
    except (OSError, SafetensorError):
        return False
    own = model.state_dict()
    fits = kept.keys() == own.keys() and all(_like(kept[name], tensor) for name, tensor in own.items())
    if fits:
        model.load_state_dict(kept)
    return fits


def _like(kept: torch.Tensor, own: torch.Tensor) -> bool:
    return (kept.shape, kept.dtype) == (own.shape, own.dtype) and _finite(kept)


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
