"""Where a device multiplies: its processor, or a GPU that PyTorch can use."""

import torch

from awfulowl.errors import InputError


def check_accelerator(name: str) -> None:
    """See that blocks can be held and multiplied on an accelerator: cpu, cuda, cuda:1.

    Raises:
        InputError: the name means none, or PyTorch finds no such GPU on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no accelerator {name!r}: cpu, cuda, or one GPU of several, as cuda:1") from error
    if device.type not in {"cpu", "cuda"}:
        raise InputError(f"accelerator {name}: blocks are multiplied on cpu and cuda only")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        build = "" if torch.version.cuda else "; this build of PyTorch has no CUDA"
        raise InputError(f"accelerator {name}: PyTorch finds {found or 'no'} GPU{'s' * (found > 1)} here{build}")
