"""The founding paper's layer, 4096 x 25088 with inputs copied 49 times, trained exactly without its 103 M weights.

Copies of an input enter a layer alike, so only the sum of their weights acts. Every copy has the gradient of the sum,
so the sum moves by the number of copies times its gradient, at the same rate, momentum and decay. What distinguishes
the copies is left of the initial weights: it has no gradient, and shrinks by a factor that depends on the schedule
alone; one number without a gradient, trained along, shows it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger, forward_flops
from awfulowl.errors import ModelError
from awfulowl.lab.victims.data import Split, as_float, digest
from awfulowl.lab.victims.fitting import OnEpoch, Schedule, fit
from awfulowl.lab.victims.kinds import Victim, fill, keep
from awfulowl.lab.victims.networks import COPIES, CifarNet, CopiedNet
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy
from awfulowl.results import versions

HEAD: Final = Schedule(epochs=8, batch=128, lr=0.01, weight_decay=5e-4)
"""Of the dense layers over convolutions that are trained already, as in our measurements."""

_BATCH: Final = 500


class Summed(nn.Module):
    """A dense layer whose inputs are copied, by the sums of its weights over copies.

    Args:
        layer: with weights (outputs, inputs * copies), the copies of an input side by side.
        copies: of every input.

    Raises:
        ModelError: the layer has no whole number of inputs.
    """

    def __init__(self, layer: nn.Linear, copies: int) -> None:
        super().__init__()
        if layer.in_features % copies:
            raise ModelError(f"{layer.in_features} inputs are not {copies} copies of each")
        self._copies: Final = copies
        self.sums = nn.Parameter(torch.unflatten(layer.weight.detach(), 1, (-1, copies)).sum(dim=2))
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.remainder = nn.Parameter(torch.ones(()))
        self.sums.register_hook(lambda gradient: gradient * copies)  # type: ignore[no-untyped-call]

    def forward(self, values: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, outputs), as the layer maps their copies."""
        # The remainder has a gradient of exactly 0, so decay and momentum are all that move it.
        return nn.functional.linear(values, self.sums, self.bias) + 0.0 * self.remainder

    @torch.no_grad()
    def into(self, layer: nn.Linear, remainder: float | None = None) -> None:
        """Turn a layer with the initial weights into the trained one, in place.

        Args:
            layer: as it was given to the constructor.
            remainder: how much of the initial differences between copies is left; None: as much as training left.
        """
        left = self.remainder.item() if remainder is None else remainder
        weights = torch.unflatten(layer.weight, 1, (-1, self._copies))
        weights.sub_(weights.mean(dim=2, keepdim=True)).mul_(left).add_(self.sums[:, :, None] / self._copies)
        layer.bias.copy_(self.bias)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Copied:
    """A trained network with copied inputs, and how much of the initial differences between copies is left of it."""

    model: CopiedNet
    seed: int
    remainder: float
    training_flops: float
    forward_flops: float


def train_copied(
    trunk: Victim,
    seed: int,
    data: Split,
    *,
    remainder: float | None = None,
    cache: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Copied:
    """Return victim P: the convolutions of another victim, and the paper's dense layers trained over them.

    Args:
        trunk: a victim of kind cifar, whose convolutions are taken as they are.
        seed: of the initial weights and of the order of the images.
        data: what it learns from.
        remainder: how much of the initial differences between copies to leave; None: what training leaves. The
            network's answers do not depend on it.
        cache: folder in which the sums are kept, some 25 MB; None: nowhere.
        on_epoch: told about every epoch of a training.

    Raises:
        InputError: the cache cannot be written.
        ModelError: the trunk is of another kind.
    """
    if not isinstance(trunk.model, CifarNet):
        raise ModelError(f"the convolutions of a {type(trunk.model).__name__}; those of a CifarNet are wanted")
    with seeded(seed):
        model = CopiedNet(data.classes)
    model.features.load_state_dict(trunk.model.features.state_dict())
    model.eval()
    summed = Summed(model.fc1, COPIES)
    head = nn.Sequential(summed, *[*model.children()][_after(model) :])
    kept = None if cache is None else cache / "victims" / f"copies-{seed}-{_key(model, seed, data)}.safetensors"
    if kept is None or not fill(head, kept):
        values = _values(model, data.train.inputs)
        with seeded(seed):
            fit(head, values, data.train.labels, HEAD, Entropy(seed), Ledger(), on_epoch=on_epoch)
        if kept is not None:
            keep(head, kept)
    summed.into(model.fc1, remainder)
    forward = forward_flops(model, data.test.inputs[:1])
    above = forward - forward_flops(model.features, data.test.inputs[:1])
    return Copied(
        model=model,
        seed=seed,
        remainder=summed.remainder.item() if remainder is None else remainder,
        training_flops=trunk.training_flops + HEAD.cost(above, len(data.train.labels)),
        forward_flops=forward,
    )


def _after(model: nn.Module) -> int:
    """Return how many children come up to the copied layer, itself included."""
    return 1 + [name for name, _ in model.named_children()].index("fc1")


@torch.no_grad()
def _values(model: CopiedNet, images: Tensor) -> Tensor:
    """Return the distinct inputs (n, inputs) of the copied layer."""
    parts = torch.split(images, _BATCH)
    return torch.cat([model.flatten(model.pool(model.features(as_float(part)))) for part in parts])


def _key(model: CopiedNet, seed: int, data: Split) -> str:
    facts = (msgspec.to_builtins(HEAD), seed, data.digest, versions(), digest([*model.features.state_dict().values()]))
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
