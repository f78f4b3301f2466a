"""What cells are worked on with: data, networks, scenes and records of one request."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from msgspec import structs
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack
from awfulowl.lab.attacks.own import resolve
from awfulowl.lab.audit.record import Store
from awfulowl.lab.complaints import known
from awfulowl.lab.request import FloorCell, Place, Request, Setting, seed_of, source_digest
from awfulowl.lab.scenes.drawing import Cut, attackable, cut_natively, draw, grids_of, largest_layer
from awfulowl.lab.scenes.loot import Scene, Truth
from awfulowl.lab.scenes.threat import ThreatModel
from awfulowl.lab.sites.relearning import WHOLE
from awfulowl.lab.victims.data import Split, read_split
from awfulowl.lab.victims.fitting import OnEpoch
from awfulowl.lab.victims.kinds import Kind, Victim, check_fits, find_kind, train_victim
from awfulowl.lab.yardsticks import lines
from awfulowl.lab.yardsticks.floors import MissingLayers
from awfulowl.placement.naming import name_devices
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.randomness import Entropy
from awfulowl.results import versions

_PUBLIC_ONLY: Final = 500
"""Added to the numbers of networks that learn from public images only: they share no seed with the others."""
_PUBLIC_EPOCHS: Final = 40
_KEPT_SCENES: Final = 3


class Workshop:
    """Networks and scenes of one request, kept as long as they are of use.

    Args:
        request: the audit.
        folder: of its records.
        cache: of trained networks and decoded data; None: nothing is kept.
        extra: attacks beside those that the request names, by name.
    """

    def __init__(
        self, request: Request, folder: Path, cache: Path | None = None, extra: Mapping[str, Attack] | None = None
    ) -> None:
        self.request: Final = request
        self._folder: Final = folder
        self._cache: Final = cache
        self._networks: Final[dict[tuple[int, bool], Victim]] = {}
        self._scenes: Final[OrderedDict[object, tuple[Scene, Truth]]] = OrderedDict()
        named = resolve(request.attacks) if request.attacks or not extra else []
        self.attacks: Final[Mapping[str, Attack]] = {attack.name: attack for attack in named} | dict(extra or {})

    @cached_property
    def data(self) -> Split:
        """The data, split."""
        return read_split(self.request.data, self._cache)

    @cached_property
    def kind(self) -> Kind:
        """The kind of victim."""
        return find_kind(self.request.model)

    def check(self) -> None:
        """Refuse what cannot be audited, before anything is trained.

        Raises:
            InputError: the data do not fit the model, or a layer is none that can be attacked.
        """
        check_fits(self.kind, self.data)
        grids_of(self._blank, self.request.layers, self.request.blocks[0])

    def attack(self, name: str) -> Attack:
        """Return an attack by its name.

        Raises:
            InputError: the request has none of that name.
        """
        if name not in self.attacks:
            raise InputError(f"no attack {name!r} in this audit{known(name, self.attacks)}")
        return self.attacks[name]

    @property
    def victims(self) -> int:
        """How many victims there are: a user's own model is one, and no other can be made."""
        return self.request.victims if self.kind.given is None else 1

    @cached_property
    def store(self) -> Store:
        """The records: what is in them depends on the victim, the data, the pirate, and our code."""
        request = self.request
        context = {
            "model": (request.model, self.kind.schedule),
            "data": self.data.digest,
            # The share stands in every cell.
            "threat": structs.replace(request.threat, share=1.0),
            "layers": self.layers("layer"),
            "taking": (request.taking, request.devices),
            "seed": request.seed,
            "networks": request.networks,
            "own": self._own_weights(),
            "code": (source_digest(), versions()),
        }
        return Store(self._folder, context)

    def _own_weights(self) -> float:
        """Return a number that tells a user's model from another."""
        given = self.kind.given
        return 0.0 if given is None else sum(float(one.double().sum()) for one in given.state_dict().values())

    def layers(self, setting: Setting) -> tuple[str, ...]:
        """Return the attacked layers of a setting."""
        if setting == "layer":
            return self.request.layers or (self.kind.layer or largest_layer(self._blank),)
        if self.request.taking == "blocks":
            return tuple(attackable(self._blank))
        place = Place(setting=setting, victim=0, share=1.0, block=self.request.blocks[0], shuffle=0)
        return cut_natively(self._blank, self._plan(self._blank, place))

    def left_out(self, setting: Setting) -> tuple[str, ...]:
        """Return the layers of a whole model of which no attack here can use the blocks."""
        taken = self.layers(setting)
        return tuple(layer for layer in attackable(self._blank) if layer not in taken) if setting == "model" else ()

    @cached_property
    def _blank(self) -> nn.Module:
        return self.kind.build(0) if self.kind.given is None else self.kind.given

    def network(self, number: int, *, public_only: bool = False, on_epoch: OnEpoch | None = None) -> Victim:
        """Return a network by its number, counted around: victims come first, the next ones are foreign to them."""
        key = (number % self.request.networks, public_only)
        if key not in self._networks:
            self._networks[key] = self._trained(key[0], on_epoch, public_only=public_only)
        return self._networks[key]

    def _trained(self, number: int, on_epoch: OnEpoch | None, *, public_only: bool) -> Victim:
        # A user's own model is network 0 whatever the seed.
        seed = number + (self.request.seed if self.kind.given is None else 0)
        if not public_only:
            return train_victim(self.kind, seed, self.data, cache=self._cache, on_epoch=on_epoch)
        schedule = structs.replace(WHOLE, epochs=_PUBLIC_EPOCHS, mirrored=self.kind.schedule.mirrored)
        kind = Kind(name=f"{self.kind.name}-public", build=self.kind.build, schedule=schedule)
        data = self.data._replace(train=self.data.public)
        return train_victim(kind, _PUBLIC_ONLY + seed, data, cache=self._cache, on_epoch=on_epoch)

    def scene(self, place: Place, control: str | None = None) -> tuple[Scene, Truth]:
        """Return what the pirate has at a place of the tables, or what it has instead in a control.

        Raises:
            InputError: the cut does not fit, the data hold too little, nothing is held, or there is no such control.
        """
        key = (place, control)
        if key not in self._scenes:
            self._scenes[key] = self._drawn(place, control)
            while len(self._scenes) > _KEPT_SCENES:
                self._scenes.popitem(last=False)
        return self._scenes[key]

    def _drawn(self, place: Place, control: str | None) -> tuple[Scene, Truth]:
        victim = self.network(place.victim)
        seed = seed_of(self.request, "draw", place)
        threat = self.request.threat_of(place.setting, place.share)
        source = self._source(place.victim, control)
        scene, truth = draw(victim, self.data, threat, self._cut(victim, place), seed=seed, source=source)
        return (lines.shuffled(scene, seed), truth) if control == lines.SHUFFLED else (scene, truth)

    def _source(self, victim: int, control: str | None) -> nn.Module | None:
        match control:
            case None | lines.SHUFFLED:
                return None
            case lines.FOREIGN:
                return self.network(victim + 1).model
            case lines.OTHER_FOREIGN:
                return self.network(victim + 2).model
            case lines.PUBLIC_ONLY:
                return self.network(victim, public_only=True).model
        raise InputError(f"no control {control!r}; there are {', '.join(lines.CONTROLS)}")

    def _cut(self, victim: Victim, place: Place) -> Cut:
        layers = self.layers(place.setting)
        plan = None if self.request.taking == "blocks" else self._plan(victim.model, place)
        return Cut(layers=layers, block=place.block, plan=plan)

    def _plan(self, model: nn.Module, place: Place) -> Plan:
        """Return a plan for this draw; a seeded one is for experiments, which this is."""
        shape = self.request.taking
        options = Options(block=place.block, replicas=1, shape="columns" if shape == "blocks" else shape)
        entropy = Entropy(seed_of(self.request, "plan", place.victim, place.block, place.shuffle))
        devices = name_devices(self.request.devices)
        return plan_model(model, self.data.test.inputs[:1], devices, options, entropy)

    def floor_scene(self, cell: FloorCell) -> tuple[Scene, Truth]:
        """Return a scene for a floor, which looks at nothing stolen: all blocks are taken, so that one is drawn."""
        victim = self.network(cell.victim)
        threat = self.request.threat_of(cell.setting, 1.0)
        threat = structs.replace(threat, public=cell.public or threat.public)
        return draw(victim, self.data, threat, Cut(layers=cell.layers or self.layers(cell.setting)), seed=0)

    def budget(self, threat: ThreatModel, victim: Victim) -> float:
        """Return the operations that the pirate may spend."""
        return threat.compute * victim.training_flops

    def fill(self, place: Place) -> Mapping[str, Tensor]:
        """Return the weights that floor F1 found for the missing layers; none where it could not be run."""
        if place.setting == "model":
            return {}
        cell = FloorCell(setting=place.setting, victim=place.victim, floor=MissingLayers.name)
        try:
            return load(self.store.path(cell, "safetensors").read_bytes())
        except (OSError, SafetensorError):
            return {}
