"""A small convolutional network for pictures of 32 x 32, made to be trained where bytes and cores are scarce."""

from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from awfulowl.errors import InputError

IMAGE: Final = (3, 32, 32)
_WIDTHS: Final = (3, 32, 96, 192)
_DROPPED: Final = 0.2


class ConvNet(nn.Module):
    """Classify pictures: (batch, 3, 32, 32) to (batch, classes) logits.

    Every convolution halves height and width, so that what travels between layers is small. There is no normalisation:
    under batch norms, and group norms too, a rounding error of the weights grows a million times within 50 steps (of
    rate 0.1), and no two runs that add in another order can be compared. Dropout is at the owner.

    Args:
        classes: 10 for CIFAR-10.

    Raises:
        InputError: fewer than one class.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        if classes < 1:
            raise InputError(f"a classifier needs one class or more, not {classes}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(_WIDTHS):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.features.apply(_initialise)
        self.dropout = nn.Dropout(_DROPPED)
        side = IMAGE[1] >> (len(_WIDTHS) - 1)
        self.head = nn.Linear(_WIDTHS[-1] * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, classes) logits for (batch, 3, 32, 32)."""
        logits: Tensor = self.head(self.dropout(self.features(images).flatten(1)))
        return logits


def _initialise(module: nn.Module) -> None:
    """He et al. (2015): what goes forward keeps its size through the layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
