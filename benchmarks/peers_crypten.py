"""A private matrix product on CrypTen, between two processes: measured once for every line of standard input.

    yes | head -5 | CRYPTEN/bin/python benchmarks/peers_crypten.py --size 256 --batch 1

Run by the Python of an environment of its own, because CrypTen 0.4.1 names packages that no longer install:

    python3.11 -m venv CRYPTEN
    CRYPTEN/bin/pip install torch==2.13.0 numpy omegaconf onnx pandas pyyaml scikit-learn scipy future tensorboard
    CRYPTEN/bin/pip install --no-deps crypten==0.4.1

and with a stand-in for a private module of PyTorch that is gone, which only its ONNX converter uses;
`python -m benchmarks.peers --crypten-python CRYPTEN/bin/python` does so. Answers are lines of JSON.

What is timed: sharing the inputs, the product with its triple (dealt by the first party, CrypTen's standard choice),
putting the answer together. What is not: sharing the weights, which lie with the parties beforehand. One thread for
each of the two processes, which talk through Gloo on this machine. An error of 1 is that of CrypTen's decoder, which
divides negative numbers by 2^16 - 1 and so misses some whole numbers.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import socket
import sys
from time import perf_counter
from types import ModuleType
from typing import Any

GONE = "torch.onnx._internal.registration"


class Registry:
    """Takes every registration and forgets it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def load() -> Any:
    """Import CrypTen, with the stand-in."""
    if importlib.util.find_spec(GONE) is None:
        module = ModuleType(GONE)
        module.registry = Registry()  # type: ignore[attr-defined]
        sys.modules[GONE] = module
    return importlib.import_module("crypten")


def answer(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def party(rank: int, port: int, options: argparse.Namespace, parent: Any) -> None:
    """Be one of the two: the first has weights and inputs, and says what came out."""
    torch = importlib.import_module("torch")
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "RENDEZVOUS": f"tcp://127.0.0.1:{port}"}
    os.environ |= {"DISTRIBUTED_BACKEND": "gloo"}
    torch.set_num_threads(1)
    crypten = load()
    crypten.init()
    torch.manual_seed(0)
    weights = torch.randn(options.size, options.size) / options.size**0.5
    shared = crypten.cryptensor(weights, src=0)
    parent.send({"version": crypten.__version__})
    while parent.recv() == "measure":
        x = torch.randn(options.batch, options.size)
        start = perf_counter()
        y = crypten.cryptensor(x, src=0).matmul(shared).get_plain_text()
        seconds = perf_counter() - start
        expected = x.double() @ weights.double()
        error = (y - expected).abs().max() / expected.square().mean().sqrt()
        parent.send({"seconds": seconds, "error": float(error)})


def serve(options: argparse.Namespace) -> None:
    """Start both, pass every line on to them, and print what the first says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    parties = []
    for rank in range(2):
        near, far = context.Pipe()
        context.Process(target=party, args=(rank, port, options, far), daemon=True).start()
        far.close()  # so that the end of a process is the end of its pipe
        parties.append(near)
    pass_on(parties, None)
    for _ in range(3) if options.quick else sys.stdin:
        pass_on(parties, "measure")
    for near in parties:
        near.send("leave")


def pass_on(parties: list[Any], command: str | None) -> None:
    """Send a command to both, if any, and print what the first answers."""
    if command is not None:
        for near in parties:
            near.send(command)
    facts, _ = (near.recv() for near in parties)
    answer(**facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="measure three times, whatever standard input says")
    options, _ = parser.parse_known_args()
    if importlib.util.find_spec("crypten") is None:
        answer(skipped="this Python has no package crypten: it wants an environment of its own (see peers_crypten.py)")
        return
    serve(options)


if __name__ == "__main__":
    main()
