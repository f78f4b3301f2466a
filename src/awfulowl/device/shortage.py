"""How a device that runs out of memory is told from one whose inputs do not fit."""

import torch


def is_shortage(error: BaseException) -> bool:
    """Say whether an error means that there was no memory left: PyTorch has a type of its own for GPUs only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
