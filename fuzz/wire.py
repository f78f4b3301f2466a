"""Parse, or raise `ProtocolError`, nothing else: what must hold of any bytes from a peer.

`survive` gives bytes to all that reads a peer's bytes: the codec, the assembler, both ends of a session, their
heartbeats. `corpus/` keeps bytes that must be survived for ever: those that `wire_corpus` makes, and whatever a
run found. The tests replay it and change it at random.

    python -m fuzz.wire                     write the corpus anew
    python -m fuzz.wire --examples 100000   look for more, for longer than the tests do
"""

import argparse
import contextlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awfulowl.errors import ProtocolError
from awfulowl.wire.codec import decode, encode
from awfulowl.wire.frames import Assembler
from fuzz.wire_corpus import LIMITS, Ends, corpus, resealed

CORPUS = Path(__file__).parent / "corpus"


def survive(data: bytes) -> None:
    """Give bytes to everything that reads a peer's bytes; what parses must parse the same again."""
    try:
        header, tensors = decode(data, LIMITS, seeds=True)
    except ProtocolError:
        pass
    else:
        again = b"".join(encode(header.session, header.id, header.body, tensors, LIMITS))
        assert decode(again, LIMITS, seeds=True)[0] == header
    with contextlib.suppress(ProtocolError):
        Assembler(LIMITS).feed(data)
    ends = Ends()
    for end in (ends.owner, ends.device):
        end.receive(data, 1.0)
        end.receive_beat(data, 1.0)
        end.receive(data, 2.0)
        end.tick(100.0)


@st.composite
def mutants(draw: st.DrawFn, kept: list[bytes]) -> bytes:
    """Bytes of the corpus, changed in a few places, with or without lengths and digest that fit."""
    data = bytearray(draw(st.sampled_from(kept)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "insert", "delete", "splice", "cut"]))
        some = draw(st.binary(min_size=1, max_size=9) | st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8]))
        if kind == "set":
            data[place : place + len(some)] = some
        elif kind == "insert":
            data[place:place] = some
        elif kind == "delete":
            del data[place : place + len(some)]
        elif kind == "splice":
            data[place:] = draw(st.sampled_from(kept))[place:]
        else:
            del data[place:]
    return resealed(bytes(data)) if draw(st.booleans()) else bytes(data)


def kept() -> list[bytes]:
    """The corpus as it lies on disk."""
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=0, help="mutants to try instead of writing the corpus")
    examples = parser.parse_args().examples
    if not examples:
        CORPUS.mkdir(exist_ok=True)
        for name, data in corpus().items():
            (CORPUS / f"{name}.bin").write_bytes(data)
        return
    search = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    search(given(mutants(kept()))(survive))()


if __name__ == "__main__":
    main()
