import contextlib
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.models.unpickling import StoredArray, unpickle_batch
from tests.unit.models.pickled import DTYPE, RECONSTRUCT, Table, dumps, table, written

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def stored(value: object) -> StoredArray:
    assert isinstance(value, StoredArray)
    return value


def test_an_official_batch_is_read() -> None:
    batch = {
        b"data": table(PIXELS),
        b"labels": [1, 0, 300],
        b"batch_label": b"testing",
        b"filenames": [b"a.png"],
    }
    read = unpickle_batch(dumps(batch), "batch")
    assert torch.equal(stored(read[b"data"]).tensor(), torch.from_numpy(PIXELS))
    assert {key: value for key, value in read.items() if key != b"data"} == {
        b"labels": [1, 0, 300],
        b"batch_label": b"testing",
        b"filenames": [b"a.png"],
    }


def test_the_bytes_are_what_numpy_itself_would_read(tmp_path: Path) -> None:
    raw = dumps({b"data": table(PIXELS)})
    plain = pickle.loads(raw, encoding="bytes")  # noqa: S301 - our own bytes
    assert np.array_equal(plain[b"data"], PIXELS)
    assert torch.equal(stored(unpickle_batch(raw, "x")[b"data"]).tensor(), torch.from_numpy(plain[b"data"]))


def test_columns_first_is_read_as_numpy_reads_it() -> None:
    raw = dumps({b"data": Table(PIXELS.tobytes(order="F"), PIXELS.shape, transposed=True)})
    assert np.array_equal(pickle.loads(raw, encoding="bytes")[b"data"], PIXELS)  # noqa: S301 - our own bytes
    assert torch.equal(stored(unpickle_batch(raw, "x")[b"data"]).tensor(), torch.from_numpy(PIXELS))


def test_an_empty_array_is_read() -> None:
    read = unpickle_batch(dumps({b"data": Table(b"", (0, 4))}), "x")
    assert stored(read[b"data"]).tensor().shape == (0, 4)


def test_a_tensor_is_a_copy_of_its_own() -> None:
    array = stored(unpickle_batch(dumps({b"data": table(PIXELS)}), "x")[b"data"])
    array.tensor().zero_()
    assert torch.equal(array.tensor(), torch.from_numpy(PIXELS))


class Runs:
    """The classic: what pickle calls while it loads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    with pytest.raises(InputError, match="refused or damaged"):
        unpickle_batch(pickle.dumps({b"data": Runs(target)}, protocol), "batch")
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"os\nsystem",
        b"posix\nsystem",
        b"builtins\neval",
        b"__builtin__\neval",
        b"builtins\ngetattr",
        b"numpy\nload",
        b"numpy\nsave",
        b"numpy.core.multiarray\nscalar",
        b"numpy.core.multiarray\nfromfile",
        b"_codecs\nencode",
        b"awfulowl.models.unpickling\n_StoredType",
        b"torch\nload",
    ],
)
def test_any_other_name_is_refused(name: bytes) -> None:
    module, attribute = name.decode().split("\n")
    with pytest.raises(InputError, match=f"asks for {module}.{attribute}"):
        unpickle_batch(b"\x80\x02c" + name + b"\n.", "batch")


@pytest.mark.parametrize(
    "table",
    [
        Table(b"12345", (2, 2)),
        Table(b"1234", (2, 3)),
        Table(b"1234", (4,)),
        Table(b"1234", (1, 2, 2)),
        Table(b"1234", (-2, -2)),
        Table(b"", (2**31 - 1, 2**31 - 1)),
        Table(b"12345678", (1, 1), code=b"f8"),
        Table(b"12345678", (1, 1), code=b"O8"),
    ],
)
def test_a_forged_array_is_refused(table: Table) -> None:
    with pytest.raises(InputError, match="an array"):
        unpickle_batch(dumps({b"data": table}), "batch")


def test_a_forged_size_allocates_nothing() -> None:
    huge = written((2**31 - 1, 2**31 - 1, 2**31 - 1))
    raw = (
        b"\x80\x02}("
        + written(b"data")
        + RECONSTRUCT
        + b"("
        + b"cnumpy\nndarray\n"
        + huge
        + written(b"b")
        + b"t"
        + b"R"
        + b"u."
    )
    array = stored(unpickle_batch(raw, "batch")[b"data"])
    assert array.tensor().numel() == 0


def test_a_place_far_in_the_memo_is_refused() -> None:
    with pytest.raises(InputError, match="place 2147483647 of the memo"):
        unpickle_batch(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".", "batch")


def test_too_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awfulowl.models.unpickling._MOST_INSTRUCTIONS", 5)
    with pytest.raises(InputError, match="more than 5 instructions"):
        unpickle_batch(dumps({b"labels": [1, 2, 3, 4]}), "batch")


@pytest.mark.parametrize("state", [{b"a": 1}, (None, {b"__init__": 1}), (1, 2)])
def test_a_pickle_cannot_change_the_classes_that_read_it(state: object) -> None:
    before = dict(vars(StoredArray))
    with pytest.raises(InputError):
        unpickle_batch(b"\x80\x02" + RECONSTRUCT + written(state) + b"b.", "batch")
    with pytest.raises(InputError):
        unpickle_batch(b"\x80\x02" + DTYPE + written(state) + b"b.", "batch")
    assert dict(vars(StoredArray)) == before


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x80", b"\x80\x02", b"\x80\x02}", b"nonsense", b"\x80\x02R.", b"\x80\x02e.", b"\x80\x02h\x05."],
)
def test_damage_is_told(raw: bytes) -> None:
    with pytest.raises(InputError, match="batch: refused or damaged"):
        unpickle_batch(raw, "batch")


@pytest.mark.parametrize("value", [[1], 5, None, b"x", (1, 2)])
def test_a_batch_is_a_dictionary(value: object) -> None:
    with pytest.raises(InputError, match="no dictionary"):
        unpickle_batch(dumps(value), "batch")


@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_pickles_of_other_times_are_refused(protocol: int) -> None:
    with pytest.raises(InputError, match="no official batch"):
        unpickle_batch(pickle.dumps({b"data": PIXELS}, protocol), "batch")


OFFICIAL = dumps({b"data": table(PIXELS), b"labels": [1, 0, 2], b"filenames": [b"a", b"b" * 300]})


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, in a damaged name
@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(OFFICIAL) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_changed_batch_is_read_or_refused_and_nothing_else(place: int, byte: int, cut: bool) -> None:
    raw = OFFICIAL[:place] if cut else OFFICIAL[:place] + bytes([byte]) + OFFICIAL[place + 1 :]
    with contextlib.suppress(InputError):
        assert isinstance(unpickle_batch(raw, "batch"), dict)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([RECONSTRUCT, DTYPE, b"R", b"b", b"t", b"(", b"}", b"]", b"u", b"e", b"s", b"a"]),
            st.sampled_from([b"q\x00", b"h\x00", b"N", b"\x85", b"\x86", b"\x87", b"K\x01", b"U\x02u1", b")"]),
            st.binary(min_size=1, max_size=3),
        ),
        max_size=30,
    )
)
def test_any_program_is_read_or_refused_and_nothing_else(program: list[bytes]) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(unpickle_batch(b"\x80\x02" + b"".join(program) + b".", "batch"), dict)


def test_a_file_of_two_pickles_gives_the_first() -> None:
    both = io.BytesIO(dumps({b"a": 1}) + dumps({b"b": 2}))
    assert unpickle_batch(both.getvalue(), "batch") == {b"a": 1}
