"""What a whole model consists of and costs: the totals that shares are shares of."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from awfulowl.placement.survey import call_with, samples_in


class Costs(NamedTuple):
    """Parameters of a model, and operations of its products for one sample; None: not known."""

    parameters: int | None
    flops: int | None


def costs(model: nn.Module, example: object) -> Costs:
    """Count a model's parameters, each once, and the operations of its products for one sample.

    Two operations are counted for each multiplication in matrix products, convolutions and attention, as is usual;
    biases, norms and activation functions are not counted.

    Args:
        model: any module, in eval mode.
        example: what it is called with; None: operations are not known.
    """
    parameters = sum(
        parameter.numel() for parameter in model.parameters() if not isinstance(parameter, nn.UninitializedParameter)
    )
    if example is None:
        return Costs(parameters, None)
    fast = torch.backends.mha.get_fastpath_enabled()
    # Fused kernels are not counted: the products that they consist of are.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call_with(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Costs(parameters, counter.get_total_flops() // samples_in(example))
