"""One layer from the inputs and outputs that devices saw of it: a linear system, and no training.

Behind a batch norm and a ReLU a layer's outputs are y = max(0, s W x + t). Where y > 0 that is linear and free of
noise, so every output is a least-squares problem of its own over the vectors at which it is positive: exact, once
there are more of them than inputs. A convolution has a vector at every position, so a few hundred queries suffice.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.costs import Ledger
from awfulowl.errors import InputError

_RIDGE: Final = 1e-6
"""Of the mean square of the inputs: it decides only what the equations leave open."""

_AT_ONCE: Final = 8192


class Solution(NamedTuple):
    """A layer as far as its traffic tells.

    `weight` (outputs, inputs, *size) and `bias` (outputs,) are those of the layer and a batch norm behind it together;
    zero at inputs that were not seen. `equations` (outputs,) counts vectors that told something of each output.
    """

    weight: Tensor
    bias: Tensor
    equations: Tensor


@torch.no_grad()
def solve(
    layer: nn.Linear | nn.Conv2d,
    inputs: Tensor,
    outputs: Tensor,
    seen: Tensor,
    ledger: Ledger,
    *,
    rectified: bool,
    rows: Tensor | None = None,
) -> Solution:
    """Solve a layer by least squares, in float64, with a constant for each output.

    Args:
        layer: its architecture; weights are not read.
        inputs: (n, inputs) or (n, inputs, height, width).
        outputs: (n, outputs) or (n, outputs, height, width), flattened or not.
        seen: which of the inputs (inputs,) were seen; what others contribute is taken for noise.
        ledger: pays for the normal equations and their solution.
        rectified: whether negative outputs show as zero.
        rows: which outputs are solved; None: all.

    Raises:
        InputError: inputs and outputs do not fit the layer, or nothing was seen.
        SpentError: the budget does not allow it.
    """
    vectors, shape = _vectors(layer, inputs, seen)
    targets = _targets(outputs, vectors)
    chosen = torch.arange(targets.shape[1]) if rows is None else rows
    unknowns = vectors.shape[1] + 1
    told = (targets[:, chosen] > 0).sum(dim=0) if rectified else torch.full((len(chosen),), len(targets))
    systems = int(told.sum()) if rectified else len(targets)
    ledger.spend(
        "least squares", 2.0 * systems * unknowns**2 + 2.0 / 3.0 * unknowns**3 * (len(chosen) if rectified else 1)
    )
    found = _rectified(vectors, targets[:, chosen]) if rectified else _plain(vectors, targets[:, chosen])
    weight = torch.zeros(len(chosen), *shape, dtype=torch.float64)
    weight[:, seen] = found[:, :-1].reshape(len(chosen), -1, *shape[1:])
    return Solution(weight.float(), found[:, -1].float(), told)


@torch.no_grad()
def unexplained(
    layer: nn.Linear | nn.Conv2d,
    solution: Solution,
    inputs: Tensor,
    outputs: Tensor,
    seen: Tensor,
    *,
    rectified: bool,
    rows: Tensor | None = None,
) -> Tensor:
    """Return the share of the variance (outputs,) of outputs to other inputs that a solution leaves."""
    vectors, _ = _vectors(layer, inputs, seen)
    targets = _targets(outputs, vectors)
    targets = targets if rows is None else targets[:, rows]
    answers = vectors @ solution.weight[:, seen].flatten(1).double().T + solution.bias
    errors = (answers.clamp_min(0) if rectified else answers) - targets
    return errors.square().mean(dim=0) / targets.var(dim=0, correction=0).clamp_min(torch.finfo(torch.float64).tiny)


def cosines(solution: Solution, true: Tensor, seen: Tensor) -> Tensor:
    """Return the cosine (outputs,) of each solved row with the true one, over the inputs that were seen."""
    own, other = (weight[:, seen].flatten(1).double() for weight in (solution.weight, true))
    return functional.cosine_similarity(own, other, dim=1)


def _vectors(layer: nn.Linear | nn.Conv2d, inputs: Tensor, seen: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return what a layer multiplies, float64 (vectors, seen inputs and their taps), and the shape of one row."""
    wanted = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    dimensions = 2 if isinstance(layer, nn.Linear) else 4
    if inputs.dim() != dimensions or inputs.shape[1] != wanted or seen.shape != (wanted,):
        raise InputError(f"inputs {tuple(inputs.shape)}, {tuple(seen.shape)} of them seen, do not fit {layer}")
    if not bool(seen.any()):
        raise InputError("no input of the layer was seen: there is nothing to solve")
    if isinstance(layer, nn.Linear):
        return inputs[:, seen].double(), (wanted,)
    if layer.groups > 1 or isinstance(layer.padding, str):
        raise InputError(f"{layer}: grouped convolutions, and padding by name, are not solved here")
    size = layer.kernel_size
    patches = functional.unfold(inputs[:, seen], size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1).double(), (wanted, *size)


def _targets(outputs: Tensor, vectors: Tensor) -> Tensor:
    """Return outputs as float64 (vectors, outputs)."""
    spread = outputs.flatten(2).transpose(1, 2).flatten(0, 1) if outputs.dim() > 2 else outputs
    if len(spread) != len(vectors):
        raise InputError(f"outputs {tuple(outputs.shape)} do not belong to {len(vectors)} vectors of inputs")
    return spread.double()


def _plain(vectors: Tensor, targets: Tensor) -> Tensor:
    """Return (outputs, inputs + 1) of one system with many right sides."""
    return _solved(*_normal(vectors, targets)).T


def _rectified(vectors: Tensor, targets: Tensor) -> Tensor:
    """Return (outputs, inputs + 1), each from the vectors at which its output is positive."""
    found = []
    for target in targets.T:
        told = target > 0
        found.append(_solved(*_normal(vectors[told], target[told, None]))[:, 0])
    return torch.stack(found)


def _normal(vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal equations of vectors with a constant, summed piece by piece."""
    unknowns = vectors.shape[1] + 1
    left = torch.zeros(unknowns, unknowns, dtype=torch.float64)
    right = torch.zeros(unknowns, targets.shape[1], dtype=torch.float64)
    for some, wanted in zip(torch.split(vectors, _AT_ONCE), torch.split(targets, _AT_ONCE), strict=True):
        with_one = functional.pad(some, (0, 1), value=1.0)
        left += with_one.T @ with_one
        right += with_one.T @ wanted
    return left, right


def _solved(left: Tensor, right: Tensor) -> Tensor:
    scale = left.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    ridge = _RIDGE * scale * torch.eye(len(left), dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(left + ridge, right)
    return solved
