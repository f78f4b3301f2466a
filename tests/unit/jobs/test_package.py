"""Packages: opened by those they are for, and refused with one byte changed anywhere."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.jobs import package
from awfulowl.jobs.job import Bounds
from awfulowl.jobs.keys import PrivateKeys
from awfulowl.jobs.package import CHUNK_BYTES, Opened, open_package, seal
from tests.orders import LEARNER, People, ordered, packed

PEOPLE = People()
MAGIC = b"AWFULOWL JOB PACKAGE 1\n"
in_place = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A package."""
    return packed(tmp_path_factory.mktemp("package"), PEOPLE, ordered(PEOPLE)).read_bytes()


def reading(tmp_path: Path, content: bytes, keys: PrivateKeys = PEOPLE.runner) -> Opened:
    """Open a package with this content, and read all of its data."""
    (tmp_path / "read.pkg").write_bytes(content)
    opened = open_package(tmp_path / "read.pkg", keys)
    for name in opened.sizes:
        b"".join(opened.read(name))
    return opened


def header_bytes(content: bytes) -> int:
    """Where the header ends."""
    return len(MAGIC) + 4 + int.from_bytes(content[len(MAGIC) :][:4], "big")


def resigned(content: bytes, keys: PrivateKeys, **changes: object) -> bytes:
    """A package whose header was changed and signed anew, as only `keys` can."""
    end = header_bytes(content)
    header = msgspec.msgpack.decode(content[len(MAGIC) + 4 : end]) | changes
    encoded = msgspec.msgpack.encode(msgspec.convert(header, package._Header))
    signature = keys.signing_key.sign(package._signed(encoded))
    return MAGIC + len(encoded).to_bytes(4, "big") + encoded + signature + content[end + 64 :]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_what_is_sealed_is_opened_by_runner_and_verifier(tmp_path: Path, size: int) -> None:
    own = ordered(PEOPLE, data={"a.bin": bytes(size), "b.bin": b"more"})
    path = packed(tmp_path, PEOPLE, own)
    for keys in (PEOPLE.runner, PEOPLE.verifier):
        opened = open_package(path, keys)
        assert opened.job == own.job
        assert opened.code == {"learner.py": LEARNER}
        assert opened.sizes == {"a.bin": size, "b.bin": 4}
        assert b"".join(opened.read("a.bin")) == bytes(size)
        assert b"".join(opened.read("b.bin")) == b"more"


def test_nobody_else_opens_it_not_even_the_client(tmp_path: Path, content: bytes) -> None:
    for keys in (PEOPLE.client, PrivateKeys.generate()):
        with pytest.raises(InputError, match="sealed to others"):
            reading(tmp_path, content, keys)


def test_runner_and_verifier_may_be_one(tmp_path: Path) -> None:
    people = People(PEOPLE.client, PEOPLE.runner, PEOPLE.runner)
    assert open_package(packed(tmp_path, people, ordered(people)), PEOPLE.runner).job.keys == people.parties


def test_nothing_in_it_can_be_read(content: bytes) -> None:
    assert b"torch" not in content
    assert b"points.bin" not in content
    assert bytes(range(64)) not in content


def test_two_packages_of_one_job_share_nothing_but_the_client(tmp_path: Path, content: bytes) -> None:
    again = packed(tmp_path, PEOPLE, ordered(PEOPLE)).read_bytes()
    body = header_bytes(content) + 64
    assert len(again) == len(content)
    blocks = {content[place : place + 16] for place in range(body, len(content) - 16)}
    assert not blocks & {again[place : place + 16] for place in range(body, len(again) - 16)}


@in_place
@given(st.data())
def test_a_byte_changed_anywhere_is_refused(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    changed = bytearray(content)
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, header_bytes(content) + 64))
    changed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InputError):
        reading(tmp_path, bytes(changed))


@in_place
@given(st.data())
def test_a_package_that_is_cut_short_or_added_to_is_refused(
    tmp_path: Path, content: bytes, data: st.DataObject
) -> None:
    with pytest.raises(InputError):
        reading(tmp_path, content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError):
        reading(tmp_path, content + data.draw(st.binary(min_size=1, max_size=40)))


@in_place
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path: Path, some: bytes) -> None:
    for content in (some, MAGIC + some, MAGIC + len(some).to_bytes(4, "big") + some):
        with pytest.raises(InputError):
            reading(tmp_path, content)


def test_the_body_of_another_package_is_refused(tmp_path: Path, content: bytes) -> None:
    other = packed(tmp_path, PEOPLE, ordered(PEOPLE)).read_bytes()
    place = header_bytes(content) + 64
    with pytest.raises(InputError, match="not what the client signed"):
        reading(tmp_path, content[:place] + other[place:])


def test_a_recipient_who_signs_a_spliced_body_as_its_own_is_refused(tmp_path: Path, content: bytes) -> None:
    """A recipient knows the content key, and may seal chunks with it; it still is not the client."""
    thief = PEOPLE.verifier
    stolen = resigned(content, thief, client=msgspec.to_builtins(thief.public))
    with pytest.raises(InputError, match="nothing that these keys open"):
        reading(tmp_path, stolen)
    with pytest.raises(InputError, match="signature is wrong"):
        reading(tmp_path, resigned(content, thief))


def test_chunks_open_in_their_places_only(tmp_path: Path) -> None:
    """Even under a digest and a signature of the client: order, number and end of the chunks are in their seals."""
    own = ordered(PEOPLE, data={"a.bin": bytes(3 * CHUNK_BYTES)})
    whole = packed(tmp_path, PEOPLE, own).read_bytes()
    step = CHUNK_BYTES + 16
    first = len(whole) - 3 * step
    one, two, three = (whole[first + number * step :][:step] for number in range(3))
    for chunks in ([two, one, three], [one, one, three], [one, three, two], [three, two, one]):
        body = whole[header_bytes(whole) + 64 : first] + b"".join(chunks)
        spliced = whole[: header_bytes(whole) + 64] + body
        forged = resigned(spliced, PEOPLE.client, body=hashlib.sha256(body).digest())
        with pytest.raises(InputError, match="does not open in its place"):
            reading(tmp_path, forged)


def test_a_shortened_stream_does_not_end(tmp_path: Path) -> None:
    own = ordered(PEOPLE, data={"a.bin": bytes(2 * CHUNK_BYTES)})
    whole = packed(tmp_path, PEOPLE, own).read_bytes()
    body = whole[header_bytes(whole) + 64 : -(CHUNK_BYTES + 16)]
    sizes = (*msgspec.msgpack.decode(whole[len(MAGIC) + 4 : header_bytes(whole)])["sizes"][:1], CHUNK_BYTES)
    cut = whole[: header_bytes(whole) + 64] + body
    forged = resigned(cut, PEOPLE.client, body=hashlib.sha256(body).digest(), sizes=sizes)
    with pytest.raises(InputError, match="does not open in its place"):
        reading(tmp_path, forged)


def test_the_outside_has_to_be_what_the_job_inside_says(tmp_path: Path) -> None:
    """A client seals to somebody whom the job does not name, or signs the job of another client."""
    own, other = ordered(PEOPLE), People()
    readdressed = msgspec.structs.replace(
        own.job, keys=msgspec.structs.replace(own.job.keys, runner=other.runner.public)
    )
    path = packed(tmp_path, PEOPLE, type(own)(readdressed, own.code, own.data))
    with pytest.raises(InputError, match="sealed to others"):
        open_package(path, PEOPLE.runner)
    assert open_package(path, other.runner).job == readdressed


def test_only_the_client_of_the_job_packs_it(tmp_path: Path) -> None:
    own = ordered(PEOPLE)
    with pytest.raises(InputError, match=r"not those of \[keys.client\]"):
        packed(tmp_path, People(), own)
    with pytest.raises(InputError, match="not those that the job was bound to"):
        seal(tmp_path / "x.pkg", own.job, {"learner.py": b"other"}, own.data, PEOPLE.client)
    with pytest.raises(InputError, match="not those that the job was bound to"):
        seal(tmp_path / "x.pkg", own.job, own.code, {"points.bin": b"other"}, PEOPLE.client)
    assert list(tmp_path.glob("*.pkg")) == []


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    own = ordered(PEOPLE)
    with pytest.raises(InputError, match="cannot be written"):
        seal(tmp_path / "none" / "x.pkg", own.job, own.code, own.data, PEOPLE.client)


def test_a_package_that_changes_after_it_was_opened_is_refused(tmp_path: Path, content: bytes) -> None:
    opened = reading(tmp_path, content)
    (tmp_path / "read.pkg").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="does not open in its place"):
        b"".join(opened.read("points.bin"))


def test_folders_pipes_and_nothing_are_no_packages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no plain file"):
        open_package(tmp_path, PEOPLE.runner)
    with pytest.raises(InputError, match="cannot be read"):
        open_package(tmp_path / "none", PEOPLE.runner)


def test_code_and_keys_are_in_no_repr(tmp_path: Path, content: bytes) -> None:
    shown = repr(reading(tmp_path, content))
    assert "torch" not in shown
    assert "sections" not in shown


def test_a_job_keeps_its_limits(tmp_path: Path) -> None:
    limits = Bounds(memory_bytes=1 << 30, processes=3, disk_bytes=5, time_s=7.0)
    own = ordered(PEOPLE, limits=limits)
    assert open_package(packed(tmp_path, PEOPLE, own), PEOPLE.runner).job.limits == limits
