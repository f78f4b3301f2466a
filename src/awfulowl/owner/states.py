"""What a panel under training was when it was last known: the numbers that its blocks are loaded and rebuilt from."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from awfulowl.allocator import mapped
from awfulowl.blocks.grid import rectangle
from awfulowl.errors import ModelError
from awfulowl.files import Scratch
from awfulowl.owner.numbers import AnyCheck, Floats
from awfulowl.placement.plan import Panel
from awfulowl.randomness import Entropy
from awfulowl.veil.base import Sharing
from awfulowl.verification.training import TrainingCheck

PARTS: Final = ("weight", "lost", "momentum", "square")
"""What a block under training consists of, in the order of the wire; a mean square has it after steps of Adam only."""

DESCENT_PARTS: Final = 3
ADAPTATION_PARTS: Final = 4


class Vault:
    """Files in a private directory, one for each panel: between snapshots the owner holds no weights in memory."""

    def __init__(self) -> None:
        self._folder = Scratch("states")
        self._directory = self._folder.path

    def save(self, number: int, state: Sequence[Tensor]) -> None:
        """Put a panel's state in place of the one before.

        Raises:
            ModelError: it cannot be written; the one before is as it was.
        """
        path = self._path(number)
        side = path.with_suffix(".new")
        try:
            save_file(dict(zip(PARTS, state, strict=False)), side)
            side.replace(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the state of panel {number} cannot be written to {self._directory}: {error}") from error

    def load(self, number: int) -> list[Tensor]:
        """Return a panel's state.

        Raises:
            ModelError: the file is gone or damaged.
        """
        try:
            found = load_file(self._path(number))
            return [found[part] for part in PARTS if part in found]
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"the state of panel {number} in {self._directory} cannot be read: {error}") from error

    def _path(self, number: int) -> Path:
        return self._directory / f"panel-{number}.safetensors"


class Trained(Floats):
    """float32 that moves: blocks are those of the last snapshot, which is the model at first."""

    fetched = DESCENT_PARTS

    def __init__(self, panel: Panel, number: int, weights: Sequence[Tensor], sharing: Sharing, vault: Vault) -> None:
        """Copy the weights into the vault: the model may be used otherwise from then on."""
        super().__init__(panel, (), sharing)
        self._number = number
        self._vault = vault
        vault.save(number, [torch.cat([weight.float() for weight in weights])])

    @property
    def state_bytes(self) -> int:
        """Bytes of a whole state."""
        return 4 * self.fetched * torch.Size(self._panel.grid.shape).numel()

    def anchor(self, state: Sequence[Tensor], step: int = 0) -> None:
        """Make a state (`PARTS`, each of the panel's shape) the last snapshot: the one after `step`.

        Raises:
            ModelError: it cannot be written.
        """
        self._vault.save(self._number, state)
        self.parts = self.fetched = len(state)
        self.step = step

    def _state(self) -> list[Tensor]:
        return self._vault.load(self._number)

    def new_check(self, entropy: Entropy, apart: Iterable[Collection[int]]) -> TrainingCheck:
        """Draw secrets that follow the weights from the last snapshot on."""
        weight, *others = self._state()
        stated = self.fetched == ADAPTATION_PARTS
        known = [weight] if stated else [weight, *others[:1]]
        check = TrainingCheck(known, self._panel.grid, entropy, momentum=others[1:2], apart=apart)
        check.stated = stated
        return check

    def matrices(self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Return the parts of the blocks as they were at the last snapshot."""
        del check, lane
        return [rectangle([part], self._panel.grid, rows, columns, mapped) for part in self._state()]

    def is_matrix(
        self, check: AnyCheck, place: tuple[int, int], rows: Sequence[int], columns: Sequence[int], found: list[Tensor]
    ) -> bool:
        """Ask the check, which has followed the weights."""
        del place
        if not isinstance(check, TrainingCheck) or any(part.dtype is not torch.float32 for part in found):
            return False
        return check.matches(found, rows=rows, columns=columns)

    def here(self, x: Tensor) -> Tensor:
        """Refuse: where the weights are now is known to devices only."""
        del x
        raise ModelError(f"{self._panel.title} is trained on devices: the owner cannot multiply with it")
