"""One root commits to every leaf, its place, and their number."""

import hashlib

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.jobs.merkle import Tree, belongs, digest_of


def leaves(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


@given(st.integers(1, 70), st.data())
def test_every_leaf_belongs_to_its_place_only(count: int, data: st.DataObject) -> None:
    own = leaves(count)
    tree = Tree(own)
    place = data.draw(st.integers(0, count - 1))
    path = tree.path(place)
    assert belongs(own[place], place, path, count, tree.root)
    other = data.draw(st.integers(-1, count).filter(lambda one: one != place))
    assert not belongs(own[place], other, path, count, tree.root)
    assert not belongs(own[(place + 1) % count] if count > 1 else bytes(32), place, path, count, tree.root)
    assert not belongs(own[place], place, path, count + 1, tree.root)


@given(st.integers(2, 70), st.data())
def test_a_changed_path_leads_elsewhere(count: int, data: st.DataObject) -> None:
    tree = Tree(leaves(count))
    place = data.draw(st.integers(0, count - 1))
    path = list(tree.path(place))
    spot = data.draw(st.integers(0, len(path) - 1))
    changed = [*path[:spot], bytes(32), *path[spot + 1 :]]
    for wrong in (changed, path[:spot] + path[spot + 1 :], [*path, bytes(32)]):
        assert not belongs(leaves(count)[place], place, wrong, count, tree.root)


def test_a_node_passes_for_no_leaf() -> None:
    """Second preimages by depth: the two upper nodes of four leaves are no two leaves."""
    own = leaves(4)
    nodes = [
        blake3(b"\x01" + blake3(b"\x00" + left).digest() + blake3(b"\x00" + right).digest()).digest()
        for left, right in (own[:2], own[2:])
    ]
    assert Tree(nodes).root != Tree(own).root


def test_the_root_depends_on_the_number() -> None:
    own = leaves(3)
    assert len({Tree(own[:count]).root for count in (1, 2, 3)} | {Tree([*own, own[2]]).root}) == 4


def test_a_root_of_one_leaf_is_no_leaf() -> None:
    assert Tree(leaves(1)).path(0) == ()
    assert Tree(leaves(1)).root not in leaves(1)


@pytest.mark.parametrize(("one", "other"), [((b"ab", b"c"), (b"a", b"bc")), ((b"a",), (b"a", b"")), ((b"",), ())])
def test_parts_do_not_flow_together(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    assert digest_of("purpose", *one) != digest_of("purpose", *other)


def test_purposes_are_apart() -> None:
    assert digest_of("one", b"a") != digest_of("other", b"a")
    assert digest_of("one", b"a") == digest_of("one", b"a")
