"""The bytes that the fuzzing of the wire starts from: every verb, and every way of being wrong, by name."""

import struct
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import torch
import xxhash
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.arithmetic.packing import pack
from awfulowl.blocks.kernels import Dense
from awfulowl.limits import Limits
from awfulowl.randomness import Entropy, Seeded
from awfulowl.wire.codec import encode
from awfulowl.wire.frames import FRAME_HEADER_BYTES, frames
from awfulowl.wire.messages import (
    PROTOCOL,
    Answer,
    Apply,
    ApplyTransposed,
    Body,
    Bye,
    Cancel,
    Commit,
    DeviceHello,
    Error,
    Evict,
    Fetch,
    Freeze,
    Load,
    Measure,
    OwnerHello,
    Refuse,
    Release,
    Request,
    Step,
    verb,
)
from awfulowl.wire.parts import Sheet, Term
from awfulowl.wire.session import DeviceSession, Opened, OwnerSession, Timing

LIMITS = Limits(chunk_bytes=256, max_message_bytes=2**16, max_header_bytes=2**13, max_partial_bytes=2**17)
PREFIX = struct.Struct("<3sBIQ")
ROW, SLICE, OTHER, SEED = b"r" * 16, b"s" * 16, b"o" * 16, b"k" * 32


class Ends:
    """An owner and a device in a session whose handles are always the same."""

    def __init__(self) -> None:
        self.owner = OwnerSession("device-1", LIMITS, Entropy(1), Timing())
        self.device = DeviceSession("device-1", LIMITS, Entropy(2), memory_bytes=2**30, threads=2)
        self.hello = self.device.hello(0.0)
        (opened,) = (event for frame in self.hello for event in self.owner.receive(frame, 0.0))
        if not isinstance(opened, Opened):
            raise TypeError(f"no session: {opened}")
        self.greeting = opened.frames_to_send
        for frame in self.greeting:
            self.device.receive(frame, 0.0)
        self.handle = self.owner.handle or b""


def resealed(data: bytes) -> bytes:
    """Make lengths and digest fit again, so that a change gets past them."""
    if data[:3] == b"OWL" and len(data) >= PREFIX.size:
        return data[:8] + struct.pack("<Q", len(data)) + data[16:]
    if data[:3] == b"OWF" and len(data) > FRAME_HEADER_BYTES:
        payload = data[FRAME_HEADER_BYTES:]
        inner = resealed(payload)
        digest = xxhash.xxh3_64_intdigest(inner, seed=xxhash.xxh3_64_intdigest(data[:32]))
        return data[:32] + struct.pack("<Q24s", digest, b"") + inner
    return data


def bodies(boot: bytes) -> Iterator[tuple[Body, list[Tensor]]]:
    """Every verb, with tensors that suit it."""
    term = Term(rows=(ROW,), slices=(SLICE,))
    x = torch.arange(6.0).reshape(2, 3)
    yield DeviceHello(name="device-1", protocol=PROTOCOL, boot=boot, memory_bytes=2**30, threads=2), []
    yield OwnerHello(protocol=PROTOCOL, boot=boot, lease_s=30.0, heartbeat_s=1.0, credit_bytes=2**24), []
    sheet = Sheet(rows=(ROW,), row_sizes=(2,), slices=(SLICE,), slice_sizes=(3,), kernel=Dense())
    yield Load(sheets=(sheet,)), [x.bfloat16()]
    yield Apply(slices=(SLICE,), terms=(term,)), [x]
    yield ApplyTransposed(rows=(ROW,), slices=(SLICE,), terms=(term,), job=7), [x[:, :2], x]
    yield Step(terms=(term,), step=1, jobs=(7, 8), rule=Descent.sgd(0.1, momentum=0.9)), []
    yield Measure(rows=(ROW,), slices=(SLICE,), jobs=(7, 8)), []
    yield Freeze(terms=(term,), number=4), []
    yield Fetch(rows=(ROW,), slices=(SLICE,)), []
    yield Commit(rows=(ROW,), slices=(SLICE,)), []
    yield Release(slices=(SLICE,)), []
    yield Cancel(target=3), []
    yield Answer(to=3), [x, x[:0], torch.arange(5, dtype=torch.uint8)]
    yield Refuse(to=3, reason="full"), []
    yield Error(to=3, reason="broken"), []
    yield Evict(slices=(SLICE,), reason="full"), []
    yield Bye(reason="done"), []


def of_training() -> Iterator[tuple[str, Body, list[Tensor]]]:
    """States, and jobs in all their forms, with the names that they are kept under."""
    term = Term(rows=(ROW,), slices=(SLICE,))
    sheet = Sheet(rows=(ROW,), row_sizes=(2,), slices=(SLICE,), slice_sizes=(3,), kernel=Dense())
    x, images = torch.arange(6.0).reshape(2, 3), torch.arange(48.0).reshape(2, 3, 4, 2)
    yield "load-of-a-state", Load(sheets=(sheet,), parts=3, step=5), [x, x, x]
    yield "apply-kept", Apply(slices=(SLICE,), terms=(term,), keep=9), [x]
    asked = ApplyTransposed(rows=(ROW,), slices=(SLICE,), terms=(term,))
    yield "apply-transposed-without-a-job", asked, [x]
    yield "apply-transposed-of-kept-inputs", msgspec.structs.replace(asked, job=7, kept=9), [x]
    yield "job-of-a-convolution", msgspec.structs.replace(asked, terms=(), job=7, space=(4, 2)), [images, images]
    yield "step-of-adam", Step(terms=(term,), step=1, jobs=(7,), rule=Adaptation.adam(0.1, 1)), []
    yield "load-after-adam", Load(sheets=(sheet,), parts=4, step=5), [x, x, x, x]
    yield "step-without-jobs", Step(terms=(), step=2**63 - 1, jobs=(), rule=Descent.sgd(0.1)), []
    yield "fetch-of-a-frozen-state", Fetch(rows=(ROW,), slices=(SLICE,), parts=3, frozen=4), []
    yield "commit-of-a-state", Commit(rows=(ROW,), slices=(SLICE,), parts=3), []


def of_integers() -> Iterator[tuple[str, Body, Sequence[Tensor | Seeded]]]:
    """Integers and seeds, with the names that they are kept under."""

    def apply(width: int) -> Apply:
        return Apply(slices=(SLICE, OTHER), terms=(Term(rows=(ROW,), slices=(SLICE, OTHER)),), width=width)

    x = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    yield "apply-seeded", apply(4), [Seeded(SEED, torch.int32, (2, 3))]
    yield "apply-seeded-empty", apply(1), [Seeded(SEED, torch.int8, (0, 3, 2))]
    yield "apply-seeded-to-the-limit", apply(8), [Seeded(SEED, torch.int64, (2, 2**11))] * 2
    yield "apply-several", apply(2), [x, x[:, :0], x[:, :1]]
    yield "apply-several-seeded", apply(7), [x.long(), Seeded(SEED, torch.int64, (2, 1)), x.long()]
    sheet = Sheet((ROW, OTHER), (2, 1), (SLICE,), (3,), Dense(), apart=True)
    blocks = [Seeded(SEED, torch.int32, (2, 3)), Seeded(SEED[::-1], torch.int32, (1, 3))]
    yield "load-seeded", Load((msgspec.structs.replace(sheet, apart=False),)), [Seeded(SEED, torch.int32, (3, 3))]
    yield "load-of-blocks", Load((sheet,)), [x, x[:1]]
    yield "load-of-seeded-blocks", Load((sheet, sheet)), [*blocks, x, blocks[1]]
    yield "answer-int64", Answer(to=3), [x.long() << 40]
    yield "answer-of-five-bytes", Answer(to=3), pack((x.long() - 2) * 0x12_3456_789A, 5)


def corpus() -> dict[str, bytes]:
    """The bytes that are kept, by name; `good` ones parse and `bad` ones are refused."""
    ends = Ends()
    made = {"beat-good-owner": ends.owner.beat(0.0), "beat-good-device": ends.device.beat(0.0)}
    made["beat-bad-cut"] = made["beat-good-owner"][:-1]
    made["beat-bad-digest"] = made["beat-good-owner"][:-1] + b"?"
    named = [(verb(body).replace(".", "-"), body, tensors) for body, tensors in bodies(ends.device.boot)]
    for name, body, tensors in (*named, *of_training(), *of_integers()):
        session = ends.device.boot if isinstance(body, DeviceHello) else ends.handle
        pieces = encode(session, int(isinstance(body, Request)), body, tensors, LIMITS)
        made[f"message-good-{name}"] = b"".join(pieces)
        made[f"frame-good-{name}"] = next(frames(pieces, 1, 1024))
    made["frame-good-of-another-session"] = next(frames(encode(OTHER, 0, Bye(reason=""), (), LIMITS), 2, 1024))
    made["frame-good-first-of-several"] = next(frames([made["message-good-answer"]], 3, 192))
    bad = (*bad_messages(), *bad_training(), *bad_integers(), *bad_blocks())
    made |= {f"message-bad-{name}": data for name, data in bad}
    return made | {f"frame-bad-{name}": data for name, data in bad_frames(made["message-good-answer"])}


def packed(
    header: object,
    body: bytes = b"",
    *,
    header_bytes: int | None = None,
    total: int | None = None,
    version: int = PROTOCOL,
) -> bytes:
    """A message with any header and any lengths."""
    head = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    own = PREFIX.size + len(head) + len(body)
    sizes = (len(head) if header_bytes is None else header_bytes, own if total is None else total)
    return PREFIX.pack(b"OWL", version, *sizes) + head + body


def fields(**changed: object) -> dict[str, object]:
    """The header of an answer, with some fields changed."""
    return {"session": OTHER, "id": 0, "body": {"verb": "answer", "to": 3}, "tensors": [], **changed}


def padded(header: object, body: bytes = b"") -> bytes:
    """A message whose one tensor starts where it has to."""
    return packed(header, bytes(-(PREFIX.size + len(msgspec.msgpack.encode(header))) % 64) + body)


def bad_messages() -> Iterator[tuple[str, bytes]]:
    """One message for each way of being wrong."""

    def tensor(dtype: str, *shape: int) -> bytes:
        return padded(fields(tensors=[[dtype, list(shape)]]))

    good = msgspec.msgpack.encode(fields())
    huge = b"\xdd\xff\xff\xff\xff"
    yield "empty", b""
    yield "cut-prefix", packed(fields())[:15]
    yield "cut-header", packed(fields())[:-1]
    yield "other-version", packed(fields(), version=PROTOCOL + 1)
    yield "version-before", packed(fields(), version=PROTOCOL - 1)
    yield "trailing-byte", packed(fields()) + b"\0"
    yield "trailing-in-header", packed(good + b"\xc0")
    yield "trailing-body", packed(fields(), bytes(64))
    yield "total-2-63", packed(good, total=2**63)
    yield "header-2-32", packed(good, header_bytes=2**32 - 1)
    yield "unknown-field", packed(fields(extra=1))
    yield "unknown-verb", packed(fields(body={"verb": "format"}))
    yield "no-verb", packed(fields(body={"to": 1}))
    yield "id-of-an-answer", packed(fields(id=1))
    yield "id-2-63", packed(fields(id=2**63))
    yield "session-of-text", packed(fields(session="s" * 16))
    yield "short-session", packed(fields(session=b"s"))
    yield "bytes-for-text", packed(fields(body={"verb": "bye", "reason": b"\xff"}))
    yield "text-not-utf8", packed(good.replace(b"answer", b"\xff" * 6))
    yield "deep-arrays", packed(b"\x81\xa4body\x82\xa1x" + b"\x91" * 5000)
    yield "deep-maps", packed(b"\x81\xa4body\x82\xa1x" + b"\x81\xa1a" * 2000)
    yield "array-2-32", packed(good[:-1] + huge)
    yield "shape-2-32", packed(good[:-1] + b"\x91\x92\xa7float32" + huge)
    yield "unknown-dtype", tensor("complex64", 1)
    yield "negative-size", tensor("uint8", -1)
    yield "size-2-63", tensor("uint8", 2**63 - 1)
    yield "empty-of-2-63", tensor("uint8", 2**63 - 1, 0)
    yield "product-wraps-to-zero", tensor("uint8", 2**32, 2**32)
    yield "product-wraps-to-four", tensor("int32", 2**62 + 1, 4)
    yield "nine-dimensions", tensor("uint8", *[1] * 9)
    yield "missing-body", tensor("uint8", 64)
    yield "padding", tensor("uint8", 0)[:-1] + b"\1"
    yield "tensor-beside-bye", packed(fields(body={"verb": "bye", "reason": ""}, tensors=[["uint8", [0]]]), bytes(40))


def bad_training() -> Iterator[tuple[str, bytes]]:
    """One message for each way of being wrong about training."""
    rule = {"type": "descent", **dict.fromkeys(Descent.__struct_fields__, 0.5)}
    step = {"verb": "step", "terms": [{"rows": [ROW], "slices": [SLICE]}], "step": 1, "jobs": [7], "rule": rule}
    asked = {"verb": "apply_transposed", "rows": [ROW], "slices": [SLICE], "terms": []}

    def request(body: Mapping[str, object], *tensors: object) -> bytes:
        header = fields(id=1, body=body, tensors=tensors)
        return padded(header) if tensors else packed(header)

    def gradients(*shape: int, dtype: str = "float32") -> list[object]:
        return [dtype, [0, *shape]]

    yield "step-with-a-tensor", request(step, gradients(2))
    yield "step-by-another-rule", request({**step, "rule": "sgd"})
    yield "step-by-five-numbers", request({**step, "rule": {key: rule[key] for key in [*rule][:-1]}})
    adam = {"type": "adam", **dict.fromkeys(Adaptation.__struct_fields__, 0.5)}
    yield "adam-without-epsilon", request({**step, "rule": {**adam, "epsilon": 0.0}})
    yield "adam-without-lift", request({**step, "rule": {**adam, "lift": -1.0}})
    yield "adam-growing", request({**step, "rule": {**adam, "square_square": 1.5}})
    yield "descent-as-adam", request({**step, "rule": {**rule, "type": "adam"}})
    yield "step-by-seven-numbers", request({**step, "rule": {**rule, "more": 0.5}})
    yield "step-of-2-63", request({**step, "step": 2**63})
    yield "job-of-less-than-nothing", request({**step, "jobs": [-1]})
    huge = b"\xa4jobs\xdd\xff\xff\xff\xff"
    yield "jobs-2-32", packed(msgspec.msgpack.encode(fields(id=1, body=step)).replace(b"\xa4jobs\x91", huge))
    yield "transposed-without-gradients", request(asked)
    yield "transposed-of-half-precision", request(asked, gradients(2, dtype="float16"))
    yield "transposed-of-a-line", request(asked, ["float32", [0]])
    yield "job-without-inputs", request({**asked, "job": 7}, gradients(2))
    yield "job-of-several-batches", request({**asked, "job": 7}, gradients(2), ["float32", [1, 0]])
    yield "kept-inputs-and-others", request({**asked, "job": 7, "kept": 9}, gradients(2), gradients(3))
    yield "space-of-nothing", request({**asked, "space": [0]}, gradients(2, 0))
    yield "space-of-2-63", request({**asked, "space": [2**63 - 1]}, gradients(2, 0))
    yield "transposed-rows-twice", request({**asked, "rows": [ROW, ROW]}, gradients(2))
    yield "load-of-no-parts", request({"verb": "load", "sheets": [], "parts": 0})
    yield "load-of-five-parts", request({"verb": "load", "sheets": [], "parts": 5})
    yield "fetch-of-five-parts", request({"verb": "fetch", "rows": [ROW], "slices": [SLICE], "parts": 5})
    yield "freeze-under-less-than-nothing", request({"verb": "freeze", "slices": [SLICE], "number": -1})
    yield (
        "measure-with-a-tensor",
        request({"verb": "measure", "rows": [ROW], "slices": [SLICE], "jobs": []}, gradients(2)),
    )


def bad_integers() -> Iterator[tuple[str, bytes]]:
    """One message for each way of being wrong about integers and seeds."""

    def apply(*tensors: object, width: object = 4) -> dict[str, object]:
        term = {"rows": [ROW], "slices": [SLICE]}
        return fields(id=1, body={"verb": "apply", "slices": [SLICE], "terms": [term], "width": width}, tensors=tensors)

    def seeded(*shape: int, seed: object = SEED) -> list[object]:
        return ["int32", list(shape), seed]

    yield "seed-in-an-answer", packed(fields(tensors=[seeded(2, 3)]))
    yield "seed-beside-bye", packed(fields(body={"verb": "bye", "reason": ""}, tensors=[seeded(2, 3)]))
    term = {"rows": [ROW], "slices": [SLICE]}
    yield (
        "seed-in-an-apply-transposed",
        packed(
            fields(
                id=1,
                body={"verb": "apply_transposed", "rows": [ROW], "slices": [SLICE], "terms": [term]},
                tensors=[seeded(2, 3)],
            )
        ),
    )
    yield "seed-beyond-the-limit", packed(apply(seeded(2, 2**13 + 1)))
    yield "seeds-beyond-the-limit", packed(apply(*[seeded(2, 2**12)] * 2, seeded(2, 1)))
    yield "seeds-of-2-63", packed(apply(*[seeded(2, 2**63 - 1)] * 9))
    yield "seed-of-a-wrapping-product", packed(apply(seeded(2**62 + 1, 4)))
    yield "empty-seed-of-2-63", packed(apply(seeded(0, 2**63 - 1)))
    yield "seed-of-31-bytes", packed(apply(seeded(2, 3, seed=SEED[1:])))
    yield "seed-of-33-bytes", packed(apply(seeded(2, 3, seed=SEED + b"k")))
    yield "seed-of-no-bytes", packed(apply(seeded(2, 3, seed=b"")))
    yield "seed-of-text", packed(apply(seeded(2, 3, seed="k" * 32)))
    yield "seed-with-more-behind-it", packed(apply([*seeded(2, 3), 0]))
    yield "seed-with-padding", padded(apply(seeded(2, 3)))
    yield "seed-with-its-numbers", padded(apply(seeded(2, 3)), bytes(24))
    yield "apply-of-nothing", packed(apply())
    yield "apply-of-several-batches", packed(apply(seeded(2, 3), seeded(3, 3)))
    yield "apply-of-several-types", packed(apply(seeded(2, 3), ["int64", [2, 3], SEED]))
    yield "apply-of-several-spaces", packed(apply(seeded(2, 3, 4), seeded(2, 3, 5)))
    yield "apply-of-several-lines", packed(apply(seeded(2), seeded(2)))
    yield "apply-of-nine-bytes", packed(apply(seeded(2, 3), width=9))
    yield "apply-of-less-than-no-bytes", packed(apply(seeded(2, 3), width=-1))
    yield "apply-of-half-a-byte", packed(apply(seeded(2, 3), width=0.5))


def bad_blocks() -> Iterator[tuple[str, bytes]]:
    """One message for each way of being wrong about a sheet whose blocks come apart, and about its seeds."""
    sizes: dict[str, object] = {"row_sizes": [2, 1], "slice_sizes": [3]}

    def load(*tensors: object, **changed: object) -> bytes:
        sheet = {"rows": [ROW, OTHER], "slices": [SLICE], **sizes, "kernel": {"type": "dense"}, "apart": True}
        return packed(fields(id=1, body={"verb": "load", "sheets": [sheet | changed]}, tensors=tensors))

    def seeded(*shape: int, dtype: str = "int32") -> list[object]:
        return [dtype, list(shape), SEED]

    yield "blocks-in-one", load(seeded(3, 3))
    yield "block-too-many", load(seeded(2, 3), seeded(1, 3), seeded(1, 3))
    yield "blocks-for-one-sheet", load(seeded(2, 3), seeded(1, 3), apart=False)
    yield "blocks-in-another-order", load(seeded(1, 3), seeded(2, 3))
    yield "blocks-of-several-types", load(seeded(2, 3), seeded(1, 3, dtype="int64"))
    yield "blocks-of-several-dimensions", load(seeded(2, 3), seeded(1, 3, 1))
    yield "blocks-of-no-sizes", load(row_sizes=[], slice_sizes=[])
    yield (
        "blocks-of-2-62",
        load(*[seeded(2**31 - 1, 2**31 - 1)] * 2, row_sizes=[2**31 - 1] * 2, slice_sizes=[2**31 - 1]),
    )
    yield "block-beyond-the-limit", load(seeded(2, 2**13 + 1), seeded(1, 2**13 + 1), slice_sizes=[2**13 + 1])
    yield "blocks-beyond-the-limit", load(seeded(2, 2**13), seeded(1, 2**13), slice_sizes=[2**13])
    yield "blocks-apart-by-a-number", load(seeded(2, 3), seeded(1, 3), apart=1)


def bad_frames(message: bytes) -> Iterator[tuple[str, bytes]]:
    """One frame for each way of being wrong, digest included or not."""

    def sealed(payload: bytes, *, total: int, offset: int = 0, piece: int = 64, version: int = PROTOCOL) -> bytes:
        head = struct.pack("<3sBIQQQ", b"OWF", version, piece, 1, total, offset)
        return resealed(head + bytes(32) + payload)

    good = next(frames([message], 1, 1024))
    yield "cut", good[:-1]
    yield "header-only", good[:FRAME_HEADER_BYTES]
    yield "flipped", good[:-1] + b"\xff"
    yield "other-version", sealed(message[:64], total=64, version=PROTOCOL + 1)
    yield "total-2-63", sealed(message[:64], total=2**63)
    yield "total-zero", sealed(message[:64], total=0)
    yield "piece-zero", sealed(message[:64], total=64, piece=0)
    yield "piece-one", sealed(message[:1], total=2**16, piece=1)
    yield "offset-2-63", sealed(message[:64], total=128, offset=2**63)
    yield "offset-uneven", sealed(message[:64], total=128, offset=32)
    yield "offset-at-end", sealed(message[:64], total=128, offset=128)
    yield "too-short", sealed(message[:63], total=128)
    yield "too-long", sealed(message[:65], total=128)
