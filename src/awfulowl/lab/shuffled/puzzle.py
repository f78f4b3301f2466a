"""A residual network that falls apart into its linear layers: what is there to put back, and how it was trained.

The puzzle of "I Dropped a Neural Net" (Park, 2026): 48 blocks x + B relu(A x + a) + b with A of 96 x 48 and B of
48 x 96, and a last layer; 97 pieces without names. Here it is trained on a teacher network's answers to random inputs.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy

BLOCKS: Final = 48
WIDTH: Final = 48
STEPS: Final = 1500

_EXAMPLES: Final = 10_000
_BATCH: Final = 128
_PEAK_RATE: Final = 2e-3
_DECAY: Final = 0.01
_TEACHER_UNITS: Final = 256
_BRANCH_SCALE: Final = 0.3
"""Of the initial B: with every branch at full size the sum of 48 of them drowns the input."""


class Piece(NamedTuple):
    """One linear layer: its weight (outputs, inputs) and its bias (outputs,)."""

    weight: Tensor
    bias: Tensor


class ResidualNet(nn.Module):
    """(batch, width) to (batch, 1) through blocks that each add a small change.

    Raises:
        InputError: there are no blocks.
    """

    def __init__(self, blocks: int = BLOCKS, width: int = WIDTH) -> None:
        super().__init__()
        if blocks < 1 or width < 1:
            raise InputError(f"{blocks} blocks of width {width} are no network")
        self.entering = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.leaving = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.last = nn.Linear(width, 1)
        with torch.no_grad():
            for layer in self.leaving:
                for parameter in layer.parameters():
                    parameter.mul_(_BRANCH_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 1) for (batch, width)."""
        for entering, leaving in zip(self.entering, self.leaving, strict=True):
            x = x + leaving(functional.relu(entering(x)))
        answers: Tensor = self.last(x)
        return answers


class Dropped(NamedTuple):
    """All pieces in a random order, and for whoever grades: which are the parts of each block, first to last."""

    pieces: tuple[Piece, ...]
    blocks: tuple[tuple[int, int], ...]
    last: int


def train_residual(seed: int, *, blocks: int = BLOCKS, width: int = WIDTH, steps: int = STEPS) -> ResidualNet:
    """Train a residual network on a random teacher, tanh of a random layer and a sum: AdamW, one cycle.

    Equal seeds give equal weights on one machine.

    Args:
        seed: of the teacher, the initial weights, the inputs and their order.
        blocks: residual blocks.
        width: of the stream between them; blocks are twice as wide inside.
        steps: of 128 examples of 10,000.
    """
    with seeded(seed):
        network = ResidualNet(blocks, width)
        x = torch.randn(_EXAMPLES, width)
        inner = torch.randn(width, _TEACHER_UNITS) / width**0.5
        y = torch.tanh(2 * x @ inner) @ torch.randn(_TEACHER_UNITS, 1)
        order = torch.randint(0, _EXAMPLES, (steps, _BATCH))
    y = (y - y.mean()) / y.std()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=steps)
    for chosen in order:
        optimizer.zero_grad()
        torch.autograd.backward(functional.mse_loss(network(x[chosen]), y[chosen]))
        optimizer.step()
        schedule.step()
    return network.eval()


def drop(network: ResidualNet, entropy: Entropy) -> Dropped:
    """Take a network apart and shuffle its pieces."""
    layers: Sequence[nn.Module] = [*network.entering, *network.leaving, network.last]
    order = entropy.permutation(len(layers))
    place = {layer: position for position, layer in enumerate(order)}
    blocks = len(network.entering)
    pieces = [_piece(layers[index]) for index in order]
    return Dropped(
        tuple(pieces), tuple((place[block], place[blocks + block]) for block in range(blocks)), place[2 * blocks]
    )


def _piece(layer: nn.Module) -> Piece:
    weight, bias = (parameter.detach().clone() for parameter in layer.parameters())
    return Piece(weight, bias)
