"""Tiny victims and scenes for tests of the lab: digits, and networks of a few thousand weights trained in a moment."""

from functools import cache

import torch
from torch import nn

from awfulowl.lab.scenes.drawing import Cut, draw
from awfulowl.lab.scenes.loot import Scene, Truth
from awfulowl.lab.scenes.threat import ThreatModel, make_threat
from awfulowl.lab.victims.data import Split, read_split
from awfulowl.lab.victims.fitting import Schedule
from awfulowl.lab.victims.kinds import Kind, Victim, train_victim
from awfulowl.models.seeding import seeded


class Tiny(nn.Module):
    """Digits through one convolution and two dense layers: 64 x 4 x 4 -> 32 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(16 * 4 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.inner(torch.relu(self.conv(images))))
        logits: torch.Tensor = self.head(torch.relu(self.hidden(self.flatten(self.pool(x)))))
        return logits


def build_tiny(seed: int) -> nn.Module:
    with seeded(seed):
        return Tiny()


TINY = Kind(
    name="tiny",
    build=build_tiny,
    schedule=Schedule(epochs=6, batch=64, lr=0.1, weight_decay=5e-4, warmup=0.1),
    layer="hidden",
    shape=(1, 8, 8),
)


@cache
def digits() -> Split:
    """The data that every test of the lab has."""
    return read_split("digits")


@cache
def tiny_victim(seed: int = 0) -> Victim:
    """A network that is right about nine digits in ten, or more; treat it as read-only."""
    return train_victim(TINY, seed, digits())


@cache
def tiny_scene(
    *, share: float = 0.5, seed: int = 1, layers: tuple[str, ...] = ("hidden",), block: int = 16, **threat: object
) -> tuple[Scene, Truth]:
    """A scene of the tiny victim; attacks must leave it as it is."""
    model: ThreatModel = make_threat({"share": share, "queries": 600, **threat})
    return draw(tiny_victim(), digits(), model, Cut(layers=layers, block=block), seed=seed)


def whole_scene(share: float = 0.5, seed: int = 1, **threat: object) -> tuple[Scene, Truth]:
    """A scene in which nothing is in clear, and every layer is cut."""
    return tiny_scene(share=share, seed=seed, layers=(), block=16, knows_other_layers=False, **threat)
