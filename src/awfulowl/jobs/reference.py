"""Two jobs on real images, for demonstrations and measurements: digits, and a few CIFAR-10 pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.jobs.job import VERSION, JobFile, Logging, Parties, Party, Proving, Training, bind
from awfulowl.jobs.loop import Work, prepare
from awfulowl.jobs.task import Batch, Task
from awfulowl.models.convnet import ConvNet
from awfulowl.models.data import Labelled, read_cifar10
from awfulowl.models.digits import DigitsNet, read_digits

_LEVELS: Final = 16
_SEALING: Final = (9).to_bytes(32, "little").hex()
"""The base point (RFC 7748), whose private key nobody needs."""


class Images(Task):
    """Classify uint8 images (n, channels, side, side) from the files images and labels.

    Args:
        shape: of one image.
        scale: what makes the largest pixel 1.
    """

    def __init__(self, shape: tuple[int, int, int], scale: float) -> None:
        self._shape: Final = shape
        self._scale: Final = scale

    def data(self, files: Mapping[str, bytes]) -> Batch:
        """Return images, float32 from 0 to 1, and labels."""
        images = torch.frombuffer(bytearray(files["images"]), dtype=torch.uint8).reshape(-1, *self._shape)
        labels = torch.frombuffer(bytearray(files["labels"]), dtype=torch.uint8)
        return images.to(torch.float32) / self._scale, labels.to(torch.int64)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)


class Digits(Images):
    """`DigitsNet` on scikit-learn's digits."""

    def __init__(self) -> None:
        super().__init__((1, 8, 8), _LEVELS)

    def model(self) -> nn.Module:
        """Return the network."""
        return DigitsNet()


class SmallDigits(Digits):
    """A small perceptron on the digits, with batch norm and dropout: a step takes a fraction of a millisecond."""

    def model(self) -> nn.Module:
        """Return the network."""
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10)
        )


class Pictures(Images):
    """`ConvNet` on CIFAR-10; with dropout, so that random numbers within a step are part of the proof."""

    def __init__(self) -> None:
        super().__init__((3, 32, 32), 255)

    def model(self) -> nn.Module:
        """Return the network."""
        return ConvNet()


class Signers(NamedTuple):
    """The signing keys of one who plays all three parts."""

    client: Ed25519PrivateKey
    runner: Ed25519PrivateKey
    verifier: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Self:
        """Return fresh keys."""
        return cls(*(Ed25519PrivateKey.generate() for _ in range(3)))

    @property
    def parties(self) -> Parties:
        """Their public halves; nothing is sealed to them."""
        return Parties(**{name: _party(key) for name, key in self._asdict().items()})


def digits_files() -> dict[str, bytes]:
    """Return the digits that are trained on, as a client's data files.

    Raises:
        InputError: scikit-learn is not installed.
    """
    train = read_digits().train
    return _files(Labelled((train.inputs * _LEVELS).to(torch.uint8), train.labels))


def cifar10_files(path: Path, count: int) -> dict[str, bytes]:
    """Return the first pictures of CIFAR-10 in an order of their own, as a client's data files.

    Raises:
        InputError: there is no such archive.
    """
    train = read_cifar10(path).train
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))[:count]
    return _files(Labelled(train.inputs[chosen], train.labels[chosen]))


def reference_work(
    task: Task,
    files: Mapping[str, bytes],
    training: Training,
    signers: Signers,
    *,
    proving: Proving | None = None,
    logging: Logging | None = None,
) -> Work:
    """Return a job of one of these tasks, ready to be run."""
    name = type(task).__name__
    order = JobFile(
        version=VERSION,
        name=name.lower(),
        task=f"reference:{name}",
        code="reference",
        data=tuple(files),
        training=training,
        proving=proving or Proving(),
        logging=logging or Logging(),
        keys=signers.parties,
    )
    return prepare(bind(order, {"reference.py": Path(__file__).read_bytes()}, files), task, files)


def reseeded(work: Work, seed: int) -> Work:
    """Return the same job with another seed."""
    training = msgspec.structs.replace(work.job.training, seed=seed)
    return work._replace(job=msgspec.structs.replace(work.job, training=training))


def _files(examples: Labelled) -> dict[str, bytes]:
    return {
        "images": examples.inputs.contiguous().numpy().tobytes(),
        "labels": examples.labels.to(torch.uint8).numpy().tobytes(),
    }


def _party(key: Ed25519PrivateKey) -> Party:
    return Party(signing=key.public_key().public_bytes_raw().hex(), sealing=_SEALING)
