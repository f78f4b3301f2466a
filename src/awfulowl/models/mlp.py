"""A multilayer perceptron of chosen widths."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from awfulowl.errors import InputError


class Mlp(nn.Module):
    """Dense layers with ReLU between them: (batch, widths[0]) to (batch, widths[-1]).

    Args:
        widths: features at the entry, after each hidden layer, and at the exit.

    Raises:
        InputError: fewer than two widths, or one below 1.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise InputError(
                f"a perceptron needs two widths or more, each at least 1, not {list(widths)}: "
                "give entry, hidden layers and exit, such as 784-256-10"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, widths[-1]) for (batch, widths[0])."""
        y: Tensor = self.layers(x)
        return y
