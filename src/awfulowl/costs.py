"""What a computation costs, in floating-point operations and in the GPU-hours that they stand for.

An operation is a multiplication or an addition in a matrix product or a convolution, so a product of m x k and k x n
costs 2 m k n; biases, norms and activation functions are not counted. Going backward costs twice what going forward
does, so a step of training costs three times a forward pass.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TRAINING: Final = 3
"""Forward passes that one step of training costs."""


class SpentError(Exception):
    """A budget is spent: what would go over it is not done."""


class Gpu(NamedTuple):
    """What operations are converted to hours by: a sustained throughput, and where the figure is from."""

    name: str
    flops_per_s: float
    source: str


VGG16_FORWARD_FLOPS: Final = 866_287_616
"""Of one picture of 32 x 32 with 100 classes; a test counts them on the model."""

PAPER_GPU: Final = Gpu(
    name="RTX 4060",
    flops_per_s=TRAINING * VGG16_FORWARD_FLOPS * 50_000 * 100 / (2 * 3600),
    source="the founding paper trained VGG16 on CIFAR-100 (50,000 pictures; 100 epochs in its published code) in about "
    "2 GPU-hours: 1.8e12 operations a second, an eighth of the card's peak",
)


def gpu_hours(flops: float, gpu: Gpu = PAPER_GPU) -> float:
    """Return the hours that so many operations take on a GPU at its sustained throughput."""
    return flops / gpu.flops_per_s / 3600


class Ledger:
    """Counts what is spent, by kind, and stops at a budget exactly: what would go over is refused before it is done.

    Args:
        flops: most floating-point operations.
        evaluations: most candidates that may be tried.
        queries: most inputs that the service may be asked about.
    """

    def __init__(self, *, flops: float = math.inf, evaluations: float = math.inf, queries: float = math.inf) -> None:
        self._most: Final = {"flops": flops, "evaluations": evaluations, "queries": queries}
        self._spent: Final = Counter({"flops": 0, "evaluations": 0, "queries": 0, "bytes": 0})
        self._kinds: Final[Counter[str]] = Counter()

    @property
    def flops(self) -> int:
        """Operations spent."""
        return self._spent["flops"]

    @property
    def evaluations(self) -> int:
        """Candidates tried."""
        return self._spent["evaluations"]

    @property
    def queries(self) -> int:
        """Inputs that the service was asked about."""
        return self._spent["queries"]

    @property
    def bytes(self) -> int:
        """Bytes moved."""
        return self._spent["bytes"]

    @property
    def by_kind(self) -> Mapping[str, int]:
        """Operations by what they were spent on."""
        return dict(self._kinds)

    def left(self, unit: str = "flops") -> float:
        """Return what is left of `flops`, `evaluations` or `queries`; infinity without a budget."""
        return self._most[unit] - self._spent[unit]

    def affords(self, *, flops: float = 0, evaluations: int = 0, queries: int = 0) -> bool:
        """Say whether all of this may still be spent: what a search asks before its next step."""
        wanted = {"flops": flops, "evaluations": evaluations, "queries": queries}
        return all(amount <= self.left(unit) for unit, amount in wanted.items())

    def spend(self, kind: str, flops: float, *, evaluations: int = 0, queries: int = 0, moved: int = 0) -> None:
        """Count operations before they are done.

        Args:
            kind: what they are spent on, such as forward, backward or assignment.
            flops: how many; rounded up.
            evaluations: candidates that they try.
            queries: inputs that the service is asked about.
            moved: bytes.

        Raises:
            SpentError: a budget does not allow it; nothing was counted.
            ValueError: an amount is negative or not finite.
        """
        if not math.isfinite(flops) or min(flops, evaluations, queries, moved) < 0:
            raise ValueError(
                f"{flops} operations, {evaluations} evaluations, {queries} queries, {moved} bytes: no cost"
            )
        amounts = {"flops": math.ceil(flops), "evaluations": evaluations, "queries": queries}
        for unit, amount in amounts.items():
            if amount > self.left(unit):
                raise SpentError(
                    f"{amount:,} {unit} for {kind}, and {self.left(unit):,.0f} of {self._most[unit]:,.0f} are left"
                )
        self._spent.update({**amounts, "bytes": moved})
        self._kinds[kind] += amounts["flops"]

    def cost(self) -> dict[str, float]:
        """Return what was spent by unit: flops, evaluations, queries, bytes, and gpu_hours by `PAPER_GPU`."""
        return {**{unit: float(amount) for unit, amount in self._spent.items()}, "gpu_hours": gpu_hours(self.flops)}


def forward_flops(model: nn.Module, inputs: Tensor) -> float:
    """Return the operations of one forward pass for one of the inputs.

    Args:
        model: any module; its mode is put back.
        inputs: (n, ...), which pass through it once.
    """
    fast, training = torch.backends.mha.get_fastpath_enabled(), model.training
    # Fused kernels are not counted: the products that they consist of are.
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    return float(counter.get_total_flops()) / len(inputs)
