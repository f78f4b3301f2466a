"""What an audit is asked for, and what it consists of: cells, each of which can be done alone and again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.lab.complaints import sentence
from awfulowl.lab.scenes.threat import ThreatModel, changed
from awfulowl.placement.options import Shape

Setting = Literal["layer", "model"]
"""One layer (or some) between known ones; or a model of which nothing is in clear."""
Taking = Literal["blocks"] | Shape
"""A share of all blocks, wherever they are; or the devices of a plan of one of its shapes."""

Order = Literal["random", "shallow first", "deep first", "largest first"]
"""Which blocks are withheld from the pirate first, where what it can do with a part of them is measured."""

ORDERS: Final[tuple[Order, ...]] = get_args(Order)

_FIRST_SEED: Final = 1 << 20
_SEEDS: Final = 1 << 30
ALL_BUT_ONE: Final = 3
"""Networks that are trained in any case: a victim, and two that share no seed with it."""

STANDARD: Final[Mapping[str, object]] = {
    "attacks": ["norms", "class-means", "surrogate-norms", "frank-wolfe", "guided-swaps"],
    "taking": "blocks",
    "blocks": [64, 32],
    "shares": [1.0, 0.3, 0.1],
    "victims": 1,
    "shuffles": 3,
    "public": [1000],
    "possession": False,
}
"""The standard set for cifar: what our measurements of recombination were about, in one run."""

Count = Annotated[int, Meta(ge=1, le=100)]
Side = Annotated[int, Meta(ge=1, le=65_536)]
Share = Annotated[float, Meta(gt=0, le=1)]
Word = Annotated[str, Meta(min_length=1, max_length=4096)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An audit; what is not named is chosen for the victim.

    Raises:
        InputError: fields contradict each other.
    """

    model: Word
    """digits, cifar, or path/to/file.py:function."""
    data: Word
    """digits, a path of CIFAR, or a .safetensors file."""
    threat: ThreatModel
    layers: tuple[Word, ...] = ()
    """Attacked in the setting of a layer; none named: the victim's usual one, or its largest."""
    blocks: tuple[Literal["auto"] | Side, ...] = ("auto",)
    shares: tuple[Share, ...] = ()
    """Instead of the threat model's one."""
    taking: Taking = "columns"
    devices: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """Of the plan."""
    attacks: tuple[Word, ...] = ()
    """Names, or path/to/file.py:Class, which is run; none named: all of the catalogue."""
    victims: Count = 3
    shuffles: Count = 3
    dear: Annotated[float, Meta(ge=0, le=1000)] = 0.1
    """Attacks that cost more than this share of the victim's training get one draw a victim, unless one is chosen."""
    seed: Annotated[int, Meta(ge=0, le=10**6)] = 0
    public: tuple[Annotated[int, Meta(ge=1)], ...] = (50, 200, 1000, 5000)
    """Images that floor F1 is measured with, as far as there are so many."""
    possession: bool = True
    """Drop curves, scores of layers, and warm starts as well."""

    def __post_init__(self) -> None:
        if self.threat.share == 0 and not self.shares:
            raise InputError(
                "share = 0: a pirate without devices has nothing that an audit could weigh; see the floors"
            )

    @property
    def all_shares(self) -> tuple[float, ...]:
        """The shares that are taken."""
        return self.shares or (self.threat.share,)

    @property
    def networks(self) -> int:
        """How many networks are trained: the victims, and enough for controls."""
        return max(ALL_BUT_ONE, self.victims)

    def threat_of(self, setting: Setting, share: float) -> ThreatModel:
        """Return the pirate of a setting: of a whole model nothing is known but the architecture."""
        if setting == "model":
            return changed(self.threat, share=share, knows_other_layers=False, knows_biases=False)
        return changed(self.threat, share=share)


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where in the tables a number stands: the setting, what was taken how, from whom, and the draw."""

    setting: Setting
    victim: int
    share: float
    block: Literal["auto"] | int
    shuffle: int


class NetworkCell(msgspec.Struct, frozen=True, kw_only=True, tag="network"):
    """A network to be trained: the number of a victim, or of one that learned from public images only."""

    number: int
    public_only: bool = False


class FloorCell(msgspec.Struct, frozen=True, kw_only=True, tag="floor"):
    """A floor for one victim, with all of the pirate's images or fewer."""

    setting: Setting
    victim: int
    floor: str
    public: int | None = None
    layers: tuple[str, ...] = ()
    """Missing instead of the request's, for the score of a layer."""


class LineCell(msgspec.Struct, frozen=True, kw_only=True, tag="line"):
    """A standard line."""

    place: Place
    name: str


class AttackCell(msgspec.Struct, frozen=True, kw_only=True, tag="attack"):
    """An attack, on the victim's blocks or on a control's."""

    place: Place
    attack: str
    control: str | None = None


class DropCell(msgspec.Struct, frozen=True, kw_only=True, tag="drop"):
    """The accuracy of a victim of whose layers a share of the blocks is missing, the others in place."""

    victim: int
    layers: tuple[str, ...]
    block: Literal["auto"] | int
    dropped: float
    draw: int


class WarmCell(msgspec.Struct, frozen=True, kw_only=True, tag="warm"):
    """A training on the pirate's images that starts from a share of the victim's blocks; 0: from scratch."""

    victim: int
    block: Literal["auto"] | int
    share: float
    order: Order


Cell = NetworkCell | FloorCell | LineCell | AttackCell | DropCell | WarmCell


def seed_of(request: Request, *facts: object) -> int:
    """Return a seed that belongs to some facts, far above those of networks: no attack starts as a victim did."""
    text = repr((request.seed, *facts)).encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return _FIRST_SEED + number % _SEEDS


def source_digest() -> str:
    """Return a digest of the lab's own code: numbers that other code made are not taken for this code's."""
    state = hashlib.blake2b(digest_size=12)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()


def make_request(fields: Mapping[str, object], threat: ThreatModel) -> Request:
    """Return the request that some fields describe, which are checked.

    Raises:
        InputError: a field is unknown or out of range.
    """
    try:
        return msgspec.convert({**fields, "threat": msgspec.to_builtins(threat)}, Request)
    except msgspec.ValidationError as error:
        raise InputError(f"audit: {sentence(error, fields, Request.__struct_fields__)}") from error
