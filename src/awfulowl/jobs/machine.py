"""What decides the last bit of a step: two machines of one class compute the same bits."""

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from msgspec import Meta

from awfulowl.jobs.merkle import digest_of

Word = Annotated[str, Meta(max_length=256)]

_CPU_INFO: Final = Path("/proc/cpuinfo")


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class of machines: instruction set, libraries and declared threads; how many cores there are is none of it."""

    architecture: Word
    instructions: Word
    """The kernels that PyTorch chose, and a digest of the processor's maker and flags: its libraries choose by them."""
    torch: Word
    numpy: Word
    build: Word
    """Digest of how PyTorch was built: compiler, mathematical libraries."""
    threads: int


def this_machine(threads: int) -> Machine:
    """Return the class of this machine with so many threads of PyTorch."""
    architecture, instructions, built = _processor()
    return Machine(
        architecture=architecture,
        instructions=instructions,
        torch=str(torch.__version__),
        numpy=version("numpy"),
        build=built,
        threads=threads,
    )


@cache
def _processor() -> tuple[str, str, str]:
    wanted = ("vendor_id", "flags", "Features", "CPU implementer", "CPU part")
    told: dict[str, str] = {}
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                told.setdefault(name.strip(), " ".join(sorted(value.split())))
    flags = digest_of("awfulowl processor", repr(sorted(told.items())).encode()).hex()[:16]
    capability = torch.backends.cpu.get_cpu_capability()
    built = digest_of("awfulowl build", torch.__config__.show().encode()).hex()[:16]
    return platform.machine(), f"{capability} {flags}", built
