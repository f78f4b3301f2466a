"""Parse, or raise an error of ours, nothing else: what must hold of the files and messages of jobs.

`survive` gives bytes to the readers of packages, of archives of code, of orders and events of the sandbox. What is
mutated are whole ones, made afresh with each run.

    python -m fuzz.jobs --examples 100000   look for longer than the tests do
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError, ProtocolError
from awfulowl.jobs.archive import pack, unpack
from awfulowl.jobs.messages import Failed, Finished, Order, Progress, Stage, read_events, read_order, write
from awfulowl.jobs.package import open_package
from tests.orders import People, ordered, packed

PEOPLE = People()


def survive(data: bytes) -> None:
    """Give bytes to every reader; what one takes is what its writer writes."""
    try:
        files = unpack(data)
    except InputError:
        pass
    else:
        assert pack(files) == data
    with contextlib.suppress(ProtocolError):
        read_order(io.BytesIO(data))
    with contextlib.suppress(ProtocolError):
        list(read_events(io.BytesIO(data)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.pkg"
        path.write_bytes(data)
        try:
            opened = open_package(path, PEOPLE.runner)
        except InputError:
            return
        assert opened.job.keys == PEOPLE.parties


def whole() -> list[bytes]:
    """A package, an archive, an order and events, all of them sound."""
    pipe, events = io.BytesIO(), io.BytesIO()
    write(pipe, Order(action="run", job=b"job", code=b"code", files={"a.bin": 3}))
    for event in (Stage("training"), Progress(1, 2, 0.5), Finished(b"result"), Failed("raised", "why")):
        write(events, event)
    with tempfile.TemporaryDirectory() as folder:
        package = packed(Path(folder), PEOPLE, ordered(PEOPLE)).read_bytes()
    return [package, pack({"a.py": b"x = 1\n", "b/c.py": bytes(600)}), pipe.getvalue(), events.getvalue()]


@st.composite
def mutants(draw: st.DrawFn, kept: list[bytes]) -> bytes:
    """Whole ones, changed in a few places."""
    data = bytearray(draw(st.sampled_from(kept)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        some = draw(st.binary(min_size=1, max_size=9) | st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8]))
        kind = draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        if kind == "set":
            data[place : place + len(some)] = some
        elif kind == "insert":
            data[place:place] = some
        elif kind == "delete":
            del data[place : place + len(some)]
        else:
            del data[place:]
    return bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="mutants to try")
    examples = parser.parse_args().examples
    search = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    search(given(mutants(whole()))(survive))()


if __name__ == "__main__":
    main()
