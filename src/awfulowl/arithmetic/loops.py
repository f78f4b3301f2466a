"""The loops of `compiled`, each one way through memory. To be imported where numba is installed.

No freedom with floats is allowed: every result has the bits that PyTorch gives, operation by operation.
"""

from typing import Any

import numpy as np

from awfulowl.compiling import loop


@loop()
def round_all(x: Any, bits: Any, largest: Any, smallest: Any, steps: Any, step_bits: Any, out: Any) -> None:
    """steps[b] = max(max_i |x[b, i]| / largest, smallest), out[b, i] = x[b, i] / steps[b], ties to even.

    `bits` and `step_bits` are x and steps as int32: without their sign floats are ordered as integers are, and NaN is
    the largest of all.
    """
    for b in range(len(x)):
        most = np.int32(0)
        for i in range(x.shape[1]):
            most = max(most, bits[b, i] & np.int32(0x7FFFFFFF))
        step_bits[b] = most
        step = steps[b] / largest
        if step < smallest:  # noqa: PLR1730  which NaN is not, and stays
            step = smallest
        steps[b] = step
        for i in range(x.shape[1]):
            out[b, i] = np.rint(x[b, i] / step)


@loop()
def put(low: Any, high: Any, out: Any) -> None:
    """Set out to low + 2^16 high, in int32."""
    for i in range(len(out)):
        out[i] = np.int32(low[i]) + (np.int32(high[i]) << 16)


@loop()
def add(low: Any, high: Any, out: Any) -> None:
    """Add low + 2^16 high to out, in int32."""
    for i in range(len(out)):
        out[i] += np.int32(low[i]) + (np.int32(high[i]) << 16)


@loop()
def scale(y: Any, of_inputs: Any, of_weights: Any, out: Any) -> None:
    """out[b, o, p] = y[b, o, p] of_inputs[b] of_weights[o], rounded in this order."""
    batch, outputs, positions = y.shape
    for b in range(batch):
        step = of_inputs[b]
        if positions == 1:
            for o in range(outputs):
                out[b, o, 0] = np.float32(y[b, o, 0]) * step * of_weights[o]
        else:
            for o in range(outputs):
                own = of_weights[o]
                for p in range(positions):
                    out[b, o, p] = np.float32(y[b, o, p]) * step * own
