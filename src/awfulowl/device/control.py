"""What a fleet on one machine says to the device processes that it started, a JSON line each, over their pipes."""

import msgspec

from awfulowl.device.lies import Kind, StepKind


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="join"):
    """Join the broker at this address. The process says first, in a line of its own, who it is (`Enrolment`)."""

    url: str


class Corrupt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="corrupt"):
    """Lie from now on, each time with some probability: for tests, demonstrations and benchmarks of what follows."""

    kind: Kind
    size: float | None = None
    probability: float = 1.0


class Stray(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stray"):
    """Step along false gradients from now on, each time with some probability; for the same purposes."""

    kind: StepKind
    size: float = 0.1
    probability: float = 1.0


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="report"):
    """Say which lies were told, as a `Told` line."""


class Delay(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="delay"):
    """Answer so much later from now on, in seconds."""

    delay_s: float


Command = Join | Corrupt | Stray | Report | Delay


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to `Report`: the requests that were answered falsely, by the ids that owner and device share."""

    requests: tuple[int, ...]
