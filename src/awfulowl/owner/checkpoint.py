"""Checkpoints of training: a directory for each, whole or not there at all, and read with distrust.

`step-00000120/` holds `model.safetensors`, a plain state_dict that anybody can load; `training.safetensors`, what was
lost in rounding and the momentum, of scattered products and of kept parameters; and `checkpoint.json`: settings, random
state, what the caller added (order of data, schedulers), the SHA-256 of the other two, and that of all this. It is
written under another name, flushed, and renamed. Digests find damage; whoever may write here can make them anew.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from awfulowl.blocks.adapters.weight import ScatteredWeight
from awfulowl.errors import CheckpointError
from awfulowl.files import flush_directory
from awfulowl.limits import MIB

VERSION: Final = 2
MODEL: Final = "model.safetensors"
TRAINING: Final = "training.safetensors"
FACTS: Final = "checkpoint.json"

STEPS: Final = "steps"
"""The one thing that is kept for a parameter and is a number."""

_MOST_FACTS_BYTES: Final = 64 * MIB
_NAME: Final = "step-{:010d}"

Natural = Annotated[int, Meta(ge=0)]


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a checkpoint says beside its tensors.

    `model` is the digest of the model's names and shapes (`placement.plan.model_digest`), `has_momentum` names the
    products whose momentum has begun, `adapted` says how many steps of Adam products have taken, `drift` how far
    devices may have moved the panel of a product unseen (None: without a bound), `groups` are the optimizer's settings,
    `random` is the state of PyTorch's generator for CPUs, `extra` is the caller's: other generators (`random`, NumPy's,
    CUDA's) are none of ours, and go on where the caller puts them.
    """

    step: Natural
    model: bytes
    has_momentum: tuple[str, ...]
    adapted: dict[str, Natural]
    drift: dict[str, Annotated[float, Meta(ge=0)] | None]
    groups: tuple[dict[str, Any], ...]
    random: bytes
    extra: dict[str, Any]
    sha256: dict[str, str]


class _Versioned(msgspec.Struct, frozen=True):
    """What `checkpoint.json` of every version has."""

    version: int


class _Sealed(_Versioned, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `checkpoint.json`: facts, and their SHA-256, byte by byte as they are written."""

    sha256: str
    facts: msgspec.Raw


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint in memory: the facts, a plain state_dict, and what training needs beside it, by name."""

    facts: Facts
    model: dict[str, Tensor]
    training: dict[str, Tensor]

    @property
    def extra(self) -> dict[str, Any]:
        """What the caller added."""
        return self.facts.extra

    def restore_random_state(self) -> None:
        """Let PyTorch's random numbers on CPUs go on where they were; states of other generators belong in `extra`.

        Raises:
            CheckpointError: this PyTorch's generator has no such state.
        """
        state, wanted = bytearray(self.facts.random), len(torch.get_rng_state())
        try:
            if len(state) != wanted:
                raise CheckpointError(f"the checkpoint's random state is of {len(state)} bytes, PyTorch's of {wanted}")
            torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint's random state is none of this PyTorch: {error}") from error


def write_checkpoint(
    directory: Path, facts: Facts, model: Mapping[str, Tensor], training: Mapping[str, Tensor]
) -> Path:
    """Write a checkpoint into `directory` and return its path; nobody ever sees half of it.

    Raises:
        CheckpointError: it cannot be written; nothing else is touched.
    """
    path = _free(directory / _NAME.format(facts.step))
    side = directory / f".{path.name}.{os.getpid()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(mode=0o700)
        digests = {}
        for name, tensors in ((MODEL, model), (TRAINING, training)):
            content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
            digests[name] = hashlib.sha256(content).hexdigest()
            _write(side / name, content)
        raw = msgspec.json.encode(msgspec.structs.replace(facts, sha256=digests))
        sealed = _Sealed(version=VERSION, sha256=hashlib.sha256(raw).hexdigest(), facts=msgspec.Raw(raw))
        _write(side / FACTS, msgspec.json.encode(sealed))
        side.rename(path)
        flush_directory(directory)
    except (OSError, SafetensorError, TypeError, msgspec.MsgspecError) as error:
        shutil.rmtree(side, ignore_errors=True)
        raise CheckpointError(f"no checkpoint can be written to {directory}: {error}") from error
    return path


def _free(path: Path) -> Path:
    """Return a path that sorts behind those of older checkpoints of the same step."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{number:04}") for number in itertools.count(1)))
    return next(name for name in names if not name.exists())


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what was left half-written."""
    for path in _found(directory)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _found(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the path of the newest checkpoint in a directory, None if there is none."""
    return next(reversed(_found(directory)), None)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Return a checkpoint; `path` is its own or that of the directory that it is the newest in.

    Raises:
        CheckpointError: it is none, incomplete, damaged, or of another version.
    """
    path = Path(path)
    if not (path / FACTS).exists():
        path = newest_checkpoint(path) or path
    try:
        facts = _facts(path)
        model, training = (_tensors(path / name, facts.sha256.get(name)) for name in (MODEL, TRAINING))
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint, or an incomplete one: {error.strerror}") from error
    except (msgspec.MsgspecError, SafetensorError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one: {error}") from error
    return Checkpoint(facts=facts, model=model, training=training)


def _facts(path: Path) -> Facts:
    with (path / FACTS).open("rb") as file:
        content = file.read(_MOST_FACTS_BYTES + 1)
    if len(content) > _MOST_FACTS_BYTES:
        raise CheckpointError(f"{path / FACTS} is larger than {_MOST_FACTS_BYTES} bytes: it is something else")
    version = msgspec.json.decode(content, type=_Versioned).version
    if version != VERSION:
        raise CheckpointError(f"{path} is a checkpoint of version {version}, and this is version {VERSION}")
    sealed = msgspec.json.decode(content, type=_Sealed)
    raw = bytes(sealed.facts)
    if hashlib.sha256(raw).hexdigest() != sealed.sha256:
        raise CheckpointError(f"{path / FACTS} is not what was written: it was changed. Resume from another one")
    return msgspec.json.decode(raw, type=Facts)


def _tensors(path: Path, digest: str | None) -> dict[str, Tensor]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{path} is not what was written: it was cut short or changed. Resume from another one")
    return load(content)


def kept_state(
    found: Checkpoint, scattered: nn.Module, kept: Mapping[str, str]
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """Return what an optimizer keeps for parameters at the owner (`FleetOptimizer.kept`).

    Raises:
        CheckpointError: something has another shape.
    """
    own: dict[nn.Parameter, dict[str, Tensor]] = {}
    for name, parameter in scattered.named_parameters():
        if isinstance(parameter, ScatteredWeight):
            continue
        tensors = {short: found.training[f"{short}.{name}"] for short in kept if f"{short}.{name}" in found.training}
        if tensors and tensors.keys() != kept.keys():
            raise CheckpointError(f"the checkpoint does not hold {', '.join(kept.keys() - tensors.keys())} of {name}")
        for short, tensor in tensors.items():
            if tensor.shape != (torch.Size() if short == STEPS else parameter.shape):
                raise CheckpointError(f"the checkpoint's {short} of {name} has another shape than the parameter")
            own.setdefault(parameter, {})[kept[short]] = tensor.clone()
    return own
