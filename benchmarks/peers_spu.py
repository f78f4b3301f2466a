"""A private matrix product on SPU, SecretFlow's multi-party runtime: measured once for every line of standard input.

    yes | head -5 | SPU/bin/python benchmarks/peers_spu.py --protocol ABY3 --size 256 --batch 1

Run by the Python of an environment of its own (`python3.11 -m venv SPU && SPU/bin/pip install spu==0.9.5`: it wants
another numpy than we do); `python -m benchmarks.peers --spu-python SPU/bin/python` does so. Answers are lines of JSON.

What is timed: sharing the inputs, the product, putting the answer together. What is not: compiling, and sharing the
weights, which lie with the parties beforehand; SEMI2K also keeps what it can of their multiplication triple
(`make_cached_var`). All parties are threads of one process and talk through its memory: no socket, no serialised
message, which favours SPU. Parties and the pool of threads that they share use all cores.

int8 values are whole numbers in the ring, so that nothing is truncated; float32 ones are fixed-point numbers with SPU's
own choice of bits.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

PARTIES = {"ABY3": 3, "SEMI2K": 2}
Numbers = np.ndarray[Any, np.dtype[Any]]


class Parties:
    """The parties of a protocol, each a thread with a runtime of its own."""

    def __init__(self, spu: Any, protocol: str, field: str) -> None:
        self._spu, lib = spu, spu.libspu
        self._secret = lib.Visibility.VIS_SECRET
        config = lib.RuntimeConfig(protocol=getattr(lib.ProtocolKind, protocol), field=getattr(lib.FieldType, field))
        count = PARTIES[protocol]
        link = lib.link.Desc()
        for rank in range(count):
            link.add_party(f"party-{rank}", f"thread-{rank}")
        self._io = spu.Io(count, config)
        self._threads = ThreadPoolExecutor(count)
        self._runtimes = self._all(
            lambda rank: spu.Runtime(lib.link.create_mem(link, rank), lib.RuntimeConfig(config)), range(count)
        )

    def _all(self, do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self._threads.map(do, items))

    def share(self, name: str, values: Numbers) -> None:
        """Split values into shares, and give each party its own."""
        shares = self._io.make_shares(values, self._secret)
        for runtime, share in zip(self._runtimes, shares, strict=True):
            runtime.set_var(name, share)

    def compile(self, function: Callable[..., Any], inputs: dict[str, Numbers], output: str) -> Any:
        """Compile a function of secrets."""
        frontend = importlib.import_module("spu.utils.frontend")
        executable, _ = frontend.compile(
            frontend.Kind.JAX,
            function,
            tuple(inputs.values()),
            {},
            list(inputs),
            [self._secret] * len(inputs),
            lambda _: [output],
        )
        return executable

    def run(self, executable: Any) -> None:
        """Let all parties run what was compiled."""
        self._all(lambda runtime: runtime.run(executable), self._runtimes)

    def reveal(self, name: str) -> Numbers:
        """Put a value together."""
        values: Numbers = self._io.reconstruct([runtime.get_var(name) for runtime in self._runtimes])
        return values


def numbers(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> Numbers:
    if kind == "int8":
        return generator.integers(-127, 128, shape).astype(np.int32)
    return generator.standard_normal(shape).astype(np.float32)


def answer(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def serve(spu: Any, options: argparse.Namespace) -> None:
    jax_numpy = importlib.import_module("jax.numpy")
    generator = np.random.default_rng(0)
    weights = numbers(options.values, (options.size, options.size), generator)
    if options.values == "float32":
        weights /= np.float32(options.size**0.5)
    parties = Parties(spu, options.protocol, options.field)
    x = numbers(options.values, (options.batch, options.size), generator)
    parties.share("weights", weights)
    kept = "weights"
    if options.protocol == "SEMI2K":
        keep = importlib.import_module("spu.experimental").make_cached_var
        parties.run(parties.compile(keep, {"weights": weights}, "kept"))
        kept = "kept"
    product = parties.compile(jax_numpy.matmul, {"x": x, kept: weights}, "y")
    answer(version=spu.__version__)
    for _ in range(3) if options.quick else sys.stdin:
        x = numbers(options.values, (options.batch, options.size), generator)
        start = perf_counter()
        parties.share("x", x)
        parties.run(product)
        y = parties.reveal("y")
        seconds = perf_counter() - start
        expected = x.astype(np.float64) @ weights.astype(np.float64)
        error = np.abs(y - expected).max() / np.sqrt(np.square(expected).mean())
        answer(seconds=seconds, error=float(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=sorted(PARTIES), default="ABY3", help="3 parties, or 2")
    parser.add_argument("--field", choices=["FM32", "FM64"], default="FM64", help="the ring's bits")
    parser.add_argument("--values", choices=["int8", "float32"], default="float32")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="measure three times, whatever standard input says")
    options, _ = parser.parse_known_args()
    try:
        spu = importlib.import_module("spu")
    except ImportError:
        answer(skipped="this Python has no package spu: it wants an environment of its own (see peers_spu.py)")
        return
    serve(spu, options)


if __name__ == "__main__":
    main()
