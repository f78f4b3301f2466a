"""docs/protocol.md says what the code does: its tables and its bytes are compared with the real ones."""

import dataclasses
import inspect
import re
from pathlib import Path

import msgspec
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import awfulowl as owl
from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.arithmetic.packing import PARTS, most, pack
from awfulowl.cli.run import run
from awfulowl.errors import ProtocolError
from awfulowl.fabric.base import OWNER, Channel
from awfulowl.fabric.identity import KEY_BYTES, Identity
from awfulowl.fabric.sealed import OVERHEAD_BYTES, SALTS, WINDOW, _Keys
from awfulowl.limits import DEFAULT, GIB, KIB, MIB
from awfulowl.randomness import SEED_BYTES, Seeded
from awfulowl.wire.buffers import ALIGNMENT
from awfulowl.wire.codec import DTYPES, decode, encode
from awfulowl.wire.frames import FRAME_HEADER_BYTES, Assembler, frames
from awfulowl.wire.messages import PROTOCOL, STATE_PARTS, Apply, Body, DeviceBody, OwnerBody, Request, verb
from awfulowl.wire.parts import TensorHeader, Term
from awfulowl.wire.session import DeviceState, OwnerState, Timing
from awfulowl.wire.session.line import BEAT_BYTES
from tests.unit.wire.test_messages import BODIES

DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
BODY = Apply(slices=(b"b" * 16,), terms=(Term(rows=(b"a" * 16,), slices=(b"b" * 16,)),))


def section(title: str) -> str:
    """The text between a heading and the next one of its rank."""
    found = re.search(rf"^(#+) {title}\n(.*?)(?=^#{{1,2}} |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[2]


def rows(title: str) -> list[list[str]]:
    """The rows of the tables in a section, headings and rules left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for at, row in enumerate(cells) if not set("".join(row)) <= set("- ") and not is_heading(cells, at)]


def is_heading(cells: list[list[str]], at: int) -> bool:
    return at + 1 < len(cells) and set("".join(cells[at + 1])) <= set("- ")


def shown(name: str, value: int) -> str:
    """A limit as the table writes it."""
    units = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if name.endswith("_bytes") else ()
    for unit, word in units:
        if value >= unit and value % unit == 0:
            return f"{value // unit} {word}"
    return f"{value:,}"


def dump(data: bytes) -> str:
    """Bytes in rows of 16, as hexadecimal and as text."""
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:04x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def request() -> bytes:
    pieces = encode(b"S" * 16, 1, BODY, [torch.tensor([[1.0, -2.0]])], DEFAULT)
    return next(frames(pieces, 5, DEFAULT.chunk_bytes))


def test_the_bytes_shown_are_those_that_are_sent() -> None:
    block = re.search(r"```text\n(.*?)```", section("A request, byte by byte"), re.DOTALL)
    assert block is not None
    assert [line.rstrip() for line in block[1].splitlines()] == [line.rstrip() for line in dump(request()).splitlines()]


def test_the_places_named_are_where_the_fields_begin() -> None:
    frame = request()
    named = {row[0]: int(row[0], 16) for row in rows("A request, byte by byte")}
    begins = [b"OWF", b"\xc8", frame[32:40], b"OWL", b"\x84\xa7session", b"\xa2id", b"\xa4body", b"\xa6slices"]
    begins += [b"\xa5terms", b"\xa5width", b"\xa4keep", b"\xa7tensors", b"\0", b"\0\0\x80?"]
    assert [frame[place : place + len(begin)] for place, begin in zip(named.values(), begins, strict=True)] == begins


def test_the_bytes_shown_can_be_read() -> None:
    message = Assembler(DEFAULT).feed(request())
    assert message is not None
    header, (tensor,) = decode(message, DEFAULT)
    assert header.body == BODY
    assert tensor.tolist() == [[1.0, -2.0]]


def test_the_seed_shown_stands_for_the_bytes_and_the_numbers_shown() -> None:
    entry, stream = re.findall(r"```text\n(.*?)\n```", section("A seed, byte by byte"), re.DOTALL)
    sent = Seeded(b"k" * 32, torch.int32, (2, 3))
    header = TensorHeader(dtype="int32", shape=sent.shape, seed=sent.seed)
    cipher = Cipher(algorithms.AES(sent.seed), modes.ECB()).encryptor()  # noqa: S305 - the definition of counter mode
    made = b"".join(cipher.update(block.to_bytes(16, "big")) for block in range(2))[:24]
    for block, data in ((entry, msgspec.msgpack.encode(header)), (stream, made)):
        assert [line.rstrip() for line in block.splitlines()] == [line.rstrip() for line in dump(data).splitlines()]
    numbers = [int.from_bytes(made[at : at + 4], "little", signed=True) for at in range(0, 24, 4)]
    assert ", ".join(map(str, numbers)).replace("-", "−") in section("A seed, byte by byte").replace("\n", " ")
    assert sent.expand().reshape(-1).tolist() == numbers
    message = b"".join(encode(b"S" * 16, 1, BODY, [sent], DEFAULT))
    assert message.endswith(msgspec.msgpack.encode(header))


OWNERS, DEVICES = (
    dataclasses.replace(Identity.generate(name), seal_private=letter * KEY_BYTES)
    for name, letter in ((OWNER, b"o"), ("d1", b"d"))
)


def sealed_as_written(payload: bytes, salt: bytes, number: int) -> bytes:
    """A frame from the owner to d1 on the channel of messages, by the primitives and words of the document alone."""
    text = section("Sealed frames")
    words = re.findall(r'"([^"]*)"', text)
    assert words == ["awfulowl sealed fabric 1", " down ", " up "]
    owner, device = (X25519PrivateKey.from_private_bytes(letter * 32) for letter in (b"o", b"d"))
    publics = b"".join(key.public_key().public_bytes_raw() for key in (owner, device))
    assert (
        '"awfulowl sealed fabric 1" | " down " or " up " | owner\'s public key | device\'s public key | device\'s'
        in text
    )
    info = words[0].encode() + words[1].encode() + publics + b"d1"
    key = HKDF(SHA256(), 32, salt, info).derive(owner.exchange(device.public_key()))
    nonce = bytes(4) + number.to_bytes(8, "little")
    return salt + nonce + ChaCha20Poly1305(key).encrypt(nonce, payload, b"m")


def test_the_sealed_frame_shown_is_made_as_the_text_says_and_as_the_code_does() -> None:
    shown_bytes = re.findall(r"```text\n(.*?)\n```", section("A sealed frame, byte by byte"), re.DOTALL)
    salt = b"S" * 16
    sender = _Keys(OWNERS, {"d1": DEVICES.enrolment.seal_public}, salt).pair("d1")
    *_, frame = [sender.seal(b"payload", Channel.MESSAGE) for _ in range(3)]
    assert frame == sealed_as_written(b"payload", salt, 2)
    publics = [identity.enrolment.seal_public for identity in (OWNERS, DEVICES)]
    for block, data in zip(shown_bytes, [*publics, frame], strict=True):
        assert [line.rstrip() for line in block.splitlines()] == [line.rstrip() for line in dump(data).splitlines()]
    receiver = _Keys(DEVICES, {OWNER: publics[0]}, b"T" * 16).pair(OWNER)
    with pytest.raises(ProtocolError, match="does not open"):
        receiver.open(frame, Channel.HEARTBEAT)
    assert receiver.open(frame, Channel.MESSAGE) == b"payload"
    with pytest.raises(ProtocolError, match="came before"):
        receiver.open(frame, Channel.MESSAGE)


def test_the_places_and_numbers_of_sealed_frames_are_those_of_the_code() -> None:
    text = " ".join(section("Sealed frames").split())
    places = {row[1]: row[0] for row in rows("Sealed frames")}
    frame = sealed_as_written(b"payload", b"S" * 16, 7)
    for field, value in (("salt", b"S" * 16), ("zero", bytes(4)), ("number", (7).to_bytes(8, "little"))):
        first, last = map(int, places[field].split("–"))
        assert frame[first : last + 1] == value
    assert places["ciphertext"] == f"{OVERHEAD_BYTES - 16}–"
    assert len(frame) - len(b"payload") == OVERHEAD_BYTES
    assert f"is {OVERHEAD_BYTES} bytes longer" in text
    assert f"which of the last {WINDOW:,} numbers came" in text
    assert f"the last {SALTS} salts of each peer" in text
    assert {f"`{channel.value}`" for channel in Channel} == {"`m`", "`hb`"} <= set(re.findall(r"`\w+`", text))


def test_what_seals_unless_it_is_told_not_to() -> None:
    assert "`owl.connect` and `owl run` seal unless they are told not to" in " ".join(DOCUMENT.split())
    assert inspect.signature(owl.connect).parameters["sealed"].default is True
    assert inspect.signature(run).parameters["plain"].default is False


def in_powers(text: str) -> int:
    """The number that is written as powers of two and a 1, one taken from the other."""
    first, *others = text.split(" − ")
    numbers = [2 ** int(one.removeprefix("2^")) if "^" in one else int(one) for one in (first, *others)]
    return numbers[0] - sum(numbers[1:])


def test_every_width_is_in_the_table_with_its_types_and_its_largest_number() -> None:
    documented = {int(row[0]): (re.findall(r"`(\w+)`", row[1]), row[2]) for row in rows("Integers and seeds")}
    assert documented.pop(0) == (["float32"], "")
    types = {width: [str(dtype).removeprefix("torch.") for dtype in dtypes] for width, dtypes in PARTS.items()}
    assert {width: (names, in_powers(text)) for width, (names, text) in documented.items()} == {
        width: (names, most(width)) for width, names in types.items()
    }


def test_the_parts_shown_are_those_that_are_sent() -> None:
    text = " ".join(section("Integers and seeds").split())
    assert "Each part is a tensor of the shape of the product" in text
    high, low = ([part.numpy().tobytes().hex(" ") for part in pack(torch.tensor(y), 3)] for y in (40_000, -2))
    assert f"40,000 is −25,536 + 2^16 · 1, `{high[0]}` in one tensor and `{high[1]}` in the other" in text
    assert f"−2 is `{low[0]}` and `{low[1]}`" in text
    assert [part.item() for part in pack(torch.tensor(40_000), 3)] == [-25_536, 1]


def test_what_takes_seeds_and_the_length_of_one() -> None:
    text = " ".join(section("Integers and seeds").split())
    assert f"a *seed* of {SEED_BYTES} bytes" in text
    assert [name for name, body in BODIES.items() if body.seeds] == ["load", "apply"]
    assert "**seeds are refused from devices**, and with every verb but `load` and `apply`" in text


def test_every_limit_is_in_the_table_with_its_default() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("Limits")}
    limits = dataclasses.asdict(DEFAULT)
    assert documented == {name: shown(name, value) for name, value in limits.items()}


def test_every_verb_is_in_the_table_with_its_sender_its_fields_and_whether_it_changes() -> None:
    documented = {row[0].strip("`"): (row[1], re.findall(r"\w+", row[2]), row[5] == "yes") for row in rows("Verbs")}

    def sender(body: Body) -> str:
        both = isinstance(body, OwnerBody) and isinstance(body, DeviceBody)
        return "both" if both else "owner" if isinstance(body, OwnerBody) else "device"

    assert documented == {
        verb(body): (sender(body), list(body.__struct_fields__), isinstance(body, Request) and body.changes)
        for body in BODIES.values()
    }


def test_the_six_numbers_of_a_step_are_those_of_the_rule() -> None:
    momentum, weight = re.findall(r"^ +([MW] ← .*)$", section("Training").split("An `adam`")[0], re.MULTILINE)
    numbers = re.compile(r"(\w+) · ([MWG])")
    names = {"M": "momentum", "W": "weight", "G": "gradient"}
    found = [f"{names[line[0]]}_{names[factor]}" for line in (momentum, weight) for _, factor in numbers.findall(line)]
    assert [name for line in (momentum, weight) for name, _ in numbers.findall(line)] == found
    assert sorted(found) == sorted(Descent.__struct_fields__)
    rule = Descent(*[2.0**-power for power in range(1, 7)])
    values = {"M": torch.tensor(3.0), "W": torch.tensor(5.0), "G": torch.tensor(7.0)}
    after = sum(getattr(rule, name) * values[factor] for name, factor in numbers.findall(momentum))
    values |= {"M": torch.as_tensor(after)}
    moved = 5.0 + sum(getattr(rule, name) * values[factor] for name, factor in numbers.findall(weight))
    assert rule.moved(torch.tensor(5.0), torch.tensor(3.0), torch.tensor(7.0)) == (moved, after)


def test_the_ten_numbers_of_a_step_are_those_of_the_rule() -> None:
    lines = re.findall(r"^ +([MVW]) ← (.*)$", section("Training").split("An `adam`")[1], re.MULTILINE)
    assert [name for name, _ in lines] == ["M", "V", "W"]
    named = re.findall(r"[a-z]+(?:_[a-z]+)?", " ".join(line for _, line in lines))
    assert sorted(named) == sorted(Adaptation.__struct_fields__)
    rule = Adaptation(*[2.0**-power for power in range(1, 11)])
    values = {"M": 3.0, "V": 2.0, "W": 5.0, "G": 7.0}
    numbers = {name: getattr(rule, name) for name in named}
    for name, line in lines:
        written = line.replace("·", "*").replace("²", "**2").replace("√V", "V**0.5")
        values[name] = eval(written, {}, values | numbers)  # noqa: S307  the document's own formula
    state = [torch.tensor([part]) for part in (5.0, 0.0, 3.0, 2.0)]
    descend(rule, state, torch.tensor([7.0]))
    torch.testing.assert_close(torch.cat(state)[[0, 2, 3]], torch.tensor([values[name] for name in "WMV"]))


def test_the_parts_of_a_state_are_as_many_as_may_travel() -> None:
    text = " ".join(section("Training").split())
    assert "up to four **parts**" in text
    assert STATE_PARTS == 4


def test_every_state_and_type_is_named() -> None:
    assert {state.name for state in (*OwnerState, *DeviceState)} <= set(re.findall(r"[A-Z]{4,}", section("States")))
    assert all(f"`{name}`" in section("Messages") for name in DTYPES)


def test_the_numbers_of_the_text_are_those_of_the_code() -> None:
    timing = Timing()
    assert f"Version **{PROTOCOL}**" in DOCUMENT
    for title in ("Frames", "Messages", "Heartbeats"):
        assert [row[2] for row in rows(title) if row[1] == "version"] == [str(PROTOCOL)]
    assert f"ersion {PROTOCOL} brought" in section("Versions")
    assert FRAME_HEADER_BYTES == ALIGNMENT == 64
    assert f"{BEAT_BYTES} bytes:" in section("Heartbeats")
    silence = section("Silence and lease")
    for name, value in dataclasses.asdict(timing).items():
        assert f"`{name}` ({value:g} s)" in silence


def test_every_link_inside_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\(#([^)]*)\)", DOCUMENT)) <= anchors
