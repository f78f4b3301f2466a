"""Tiny networks whose symmetries are known."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.models.seeding import seeded


class ResidualStage(nn.Module):
    """Two convolutions with batch norms, and a shortcut that is projected where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """(batch, 3, 8, 8) to (batch, 10): three stages, as ResNet-20 has them, in small."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            ResidualStage(width, width), ResidualStage(width, 2 * width, 2), ResidualStage(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(functional.relu(self.norm(self.conv(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def settled(model: nn.Module, *shape: int, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and scales of their own, and return the model in eval mode."""
    with seeded(seed), torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
        for _ in range(4):
            model(torch.randn(16, *shape))
    return model.eval()


def made(kind: Any, *arguments: Any, seed: int = 0) -> Any:
    """Return a module with initial weights from a seed."""
    with seeded(seed):
        return kind(*arguments)
