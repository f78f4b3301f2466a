"""The threat model: what a pirate holds, sees, knows and may spend. Nothing is claimed without one."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.lab.complaints import known, sentence
from awfulowl.limits import KIB
from awfulowl.models.archives import read_bounded

_MOST_BYTES: Final = 64 * KIB

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=10**9)]


class ThreatModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pirate, by what the owner has to grant it; all but `share` has a default, and the defaults are generous to it.

    Attacks name the fields that they need; one that is false, or zero, is not granted (see `lacking`).

    Raises:
        InputError: a number is not finite.
    """

    share: Share
    """Of the blocks of an attacked layer, or of the devices of a plan."""
    sees_inputs: bool = True
    """Its devices see the inputs of the blocks that they hold."""
    sees_gradients: bool = False
    """The model is trained on devices, and its devices see gradients too."""
    links: bool = False
    """It watches the traffic of devices that are not its own."""
    knows_architecture: bool = True
    knows_other_layers: bool = True
    """The layers that are not attacked, as when only one layer is scattered. Without it the whole model is unknown."""
    knows_biases: bool = True
    """The biases of attacked layers."""
    knows_labels: bool = True
    """The labels of its public images."""
    knows_inputs: bool = True
    """It has images of the kind that the model was made for. Without it there is no public data."""
    knows_base_model: bool = False
    """It has a public model of the same task to start from. Without it floor F3 is shown and does not count."""
    public: Count | None = None
    """Labelled images of its own, never trained on by the victim; None: all that the data set leaves for it."""
    queries: Count = 5000
    """Inputs about which it may ask the service as a client."""
    compute: Annotated[float, Meta(ge=0, le=1000)] = 1.0
    """Floating-point operations, in those of the victim's training."""
    snapshots: Annotated[int, Meta(ge=1, le=1000)] = 1
    """How often over time it sees what its devices hold."""

    def __post_init__(self) -> None:
        for field in ("share", "compute"):
            if not math.isfinite(getattr(self, field)):
                raise InputError(f"threat model: {field}: {getattr(self, field)} is no finite number")

    def grants(self, field: str) -> bool:
        """Say whether the pirate has what a field names.

        Raises:
            InputError: there is no such field.
        """
        if field not in self.__struct_fields__:
            raise InputError(f"threat model: no field {field!r}{known(field, self.__struct_fields__)}")
        value = getattr(self, field)
        if field == "public":
            return self.knows_inputs and (value is None or value > 0)
        if field == "snapshots":
            return self.snapshots > 1
        return bool(value)

    def lacking(self, needs: Collection[str]) -> tuple[str, ...]:
        """Return which of these fields are not granted, in order."""
        return tuple(sorted(field for field in needs if not self.grants(field)))

    def demand(self, who: str, needs: Collection[str]) -> None:
        """Refuse what needs more than is granted.

        Raises:
            InputError: a field is not granted; `who` needs it.
        """
        lacking = self.lacking(needs)
        if lacking:
            raise InputError(f"{who} needs {', '.join(lacking)}, which the threat model does not grant: set it there")

    def described(self) -> dict[str, str | int | float | bool | None]:
        """Return the fields by name."""
        found: dict[str, str | int | float | bool | None] = msgspec.to_builtins(self)
        return found


def read_threat(path: Path) -> ThreatModel:
    """Read a threat model from a TOML file; `share = 0.3` alone is one.

    Raises:
        InputError: it cannot be read, is no TOML, or a field is unknown, missing or out of range.
    """
    try:
        found = msgspec.toml.decode(read_bounded(path, _MOST_BYTES))
    except OSError as error:
        raise InputError(f"{path}: no readable threat model: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: no TOML: {error}") from error
    return make_threat(found, str(path))


def make_threat(fields: Mapping[str, Any], where: str = "threat model") -> ThreatModel:
    """Return the threat model that some fields describe.

    Args:
        fields: values by name.
        where: they are from, for errors.

    Raises:
        InputError: a field is unknown, missing or out of range.
    """
    try:
        return msgspec.convert(fields, ThreatModel)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {sentence(error, fields, ThreatModel.__struct_fields__)}") from error


def changed(threat: ThreatModel, **changes: object) -> ThreatModel:
    """Return a threat model with other values in some fields, which are checked.

    Raises:
        InputError: a field is unknown, or a value out of range.
    """
    return make_threat({**threat.described(), **changes})
