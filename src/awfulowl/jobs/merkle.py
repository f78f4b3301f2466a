"""Digests with a stated purpose, and Merkle trees over them: one root commits to every step.

BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020) because a state is hashed at every step: several times faster
than SHA-256 on one core. Leaves and nodes are hashed in separate domains and the number of leaves is part of the root,
so that neither a node passes for a leaf nor a shorter tree for a longer one.
"""

from collections.abc import Sequence
from typing import Final

from blake3 import blake3

DIGEST_BYTES: Final = 32

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


def digest_of(purpose: str, *parts: bytes | memoryview) -> bytes:
    """Return a digest of some parts for one purpose; lengths are hashed too, so that parts cannot flow together."""
    state = blake3(derive_key_context=purpose)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


class Tree:
    """A Merkle tree over digests.

    An odd node at the end of a level moves up unchanged.

    Args:
        leaves: at least one, of 32 bytes each.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.count: Final = len(leaves)
        self._levels: list[list[bytes]] = [[blake3(_LEAF + leaf).digest() for leaf in leaves]]
        while len(self._levels[-1]) > 1:
            self._levels.append(_above(self._levels[-1]))

    @property
    def root(self) -> bytes:
        """What commits to all leaves and to their number."""
        return _crown(self.count, self._levels[-1][0])

    def path(self, place: int) -> tuple[bytes, ...]:
        """Return the neighbours from a leaf to the top."""
        found = []
        for level in self._levels[:-1]:
            neighbour = place ^ 1
            if neighbour < len(level):
                found.append(level[neighbour])
            place >>= 1
        return tuple(found)


def belongs(leaf: bytes, place: int, path: Sequence[bytes], count: int, root: bytes) -> bool:
    """Say whether a tree of `count` leaves under `root` has `leaf` at `place`."""
    if not 0 <= place < count:
        return False
    node, rest, width = blake3(_LEAF + leaf).digest(), list(path), count
    while width > 1:
        if place ^ 1 < width:
            if not rest:
                return False
            neighbour = rest.pop(0)
            node = _node(neighbour, node) if place & 1 else _node(node, neighbour)
        place, width = place >> 1, (width + 1) >> 1
    return not rest and _crown(count, node) == root


def _above(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[place], level[place + 1]) for place in range(0, len(level) - 1, 2)]
    return [*pairs, level[-1]] if len(level) % 2 else pairs


def _node(left: bytes, right: bytes) -> bytes:
    return blake3(_NODE + left + right).digest()


def _crown(count: int, top: bytes) -> bytes:
    return digest_of("awfulowl merkle root", count.to_bytes(8, "little"), top)
