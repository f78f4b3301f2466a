"""One linear layer in plain PyTorch, on the fleet, under CKKS, and by multi-party computation: times side by side.

    python benchmarks/peers.py [--quick] [--json FILE] [--cases 256x1 4096x64] [--rounds 9]
                               [--spu-python SPU/bin/python] [--crypten-python CRYPTEN/bin/python]

CKKS needs `pip install 'awfulowl[bench]'`, SPU and CrypTen an environment each (`peers_spu.py` and `peers_crypten.py`
say how; AWFULOWL_SPU_PYTHON and AWFULOWL_CRYPTEN_PYTHON name them as well). What is missing is left out, with a line.
Everything shares this machine's cores and is measured in turn, round by round; medians are compared. In brackets: a
95 % interval of the median over rounds. `error` is the largest, in units of the answer's root mean square. A target
is `met` or `missed` where the whole interval says so, else `open`.

What each hides, and whether a wrong answer is noticed:

    int8                      where a slice belongs, and nothing else                           noticed
    inputs:2                  inputs, from either of two domains                                noticed
    replicated                inputs and weights, from any one of three domains                 noticed
    CKKS                      inputs and answers, from the server, which has the weights        not noticed
    SPU SEMI2K, CrypTen       inputs and weights, from either of two parties                    not noticed
    SPU ABY3                  inputs and weights, from any one of three parties                 not noticed

So `replicated` and multi-party computation hide more than CKKS, but from parties that do not collude: CKKS needs no
such promise. A first party deals SEMI2K's and CrypTen's triples: it is trusted. Parties could go on to the next layer
by themselves, where ours sends every layer's answer to the owner.

CKKS: with the secret key, within SEAL's limits for 128 bits, of ring degree N = 8192 (60 + 40 + 60 bits, rescaled) and
4096 (54 + 55 bits, never rescaled: the least that fits). Timed: encryption, product, decryption. Four ways:

    vectors    `ckks_vector.mm` on all cores, diagonal by diagonal, which encodes the weights anew each time
    tensors    `ckks_tensor(batch=True).mm` on all cores: a ciphertext for each input, samples in its slots. As dear
               for one sample as for N/2, so that 2048 samples would cost what 64 do. At batch 64 only
    slots      `ckks_vector.mul` and `+`, with N/128 inputs of 64 samples side by side: no rotation, and the owner adds
               up the slots of every answer. At batch 64 only; for one sample that were as much work as the product
    kernel     not tenseal's: baby and giant steps, written for this file on its bindings of SEAL (`tenseal.sealapi`),
               weights encoded beforehand

4096 x 4096 at batch 64 is extrapolated. Vectors: one block, 256 inputs times N/2 outputs, x blocks x samples. Tensors
and slots: all samples, 256 inputs, 16 outputs, each part (encryption, product, decryption) x its number. Slots and
kernel run on one core: their time is divided by the number of cores, as if they shared the work without loss. Kernel:
one whole sample, x samples. (`enc_matmul_plain` took as much processor time as `vectors` for as many products.)
"""

import os

# Threads of OpenMP that spin when they are done would take the cores that devices and broker need. Before PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import math
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

import awfulowl as owl

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Case(NamedTuple):
    """A square layer and a batch."""

    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.size}x{self.batch}"


class Once(NamedTuple):
    """One measurement."""

    seconds: float
    error: float


class Contender(NamedTuple):
    """A way to compute the product. Slow ones are measured in fewer rounds, quick ones once they are warm."""

    name: str
    once: Callable[[], Once]
    every: int = 1
    extrapolated: bool = False


class Spread(NamedTuple):
    """A median, and the order statistics that hold it with 95 %; the extremes, with less, of fewer than 6 rounds."""

    median: float
    low: float
    high: float


class Row(msgspec.Struct, frozen=True):
    """What one way took for one case."""

    case: str
    name: str
    seconds: Spread
    error: float
    rounds: int
    extrapolated: bool


class Ring(NamedTuple):
    """Parameters of CKKS."""

    degree: int
    bits: tuple[int, ...]
    scale_bits: int
    rescale: bool


class Ours(NamedTuple):
    """One device in each domain, and how the layer is planned."""

    domains: int
    arithmetic: str
    sharing: str | None


class Target(NamedTuple):
    """`replicated` is to take less than a peer by this factor."""

    case: Case
    peer: str
    factor: float


SEED: Final = 0
SMALL: Final = Case(256, 1)
LARGE: Final = Case(4096, 64)
CASES: Final = {str(case): case for case in (SMALL, LARGE)}
OURS: Final = {
    "int8": Ours(2, "int8", None),
    "inputs:2": Ours(2, "int8", "inputs:2"),
    "replicated": Ours(3, "int8", "replicated"),
}
RINGS: Final = (Ring(8192, (60, 40, 60), 40, rescale=True), Ring(4096, (54, 55), 24, rescale=False))
SPU: Final = tuple(
    (protocol, *ring) for protocol in ("ABY3", "SEMI2K") for ring in (("FM64", "float32"), ("FM32", "int8"))
)
"""In 32 bits fixed-point numbers are too coarse (errors of a tenth); integers of 8 bits are exact."""
SLOW: Final = 4
"""Of so many rounds, a way that takes seconds is measured in one."""
BLOCK: Final = (256, 16)
TARGETS: Final = (Target(SMALL, "CKKS", 500), Target(LARGE, "CKKS", 10_000), Target(LARGE, "SPU", 10))


class PeerError(Exception):
    """A peer that cannot be measured here, and why."""


def spread(values: list[float]) -> Spread:
    """Turn the sign test round: as many values lie beyond each end as a fair coin leaves with 2.5 %."""
    ordered, beyond, tail = sorted(values), -1, 0.0
    while (tail := tail + math.comb(len(ordered), beyond + 1) / 2 ** len(ordered)) <= 0.025:
        beyond += 1
    beyond = max(beyond, 0)
    return Spread(statistics.median(ordered), ordered[beyond], ordered[-1 - beyond])


def distance(y: Numbers, expected: Numbers) -> float:
    return float(np.abs(y - expected).max() / np.sqrt(np.square(expected).mean()))


class Layer:
    """The layer, without a bias, and inputs of a standard normal distribution, another batch each time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        linear = nn.Linear(case.size, case.size, bias=False)
        self.module = nn.Sequential(linear).eval()
        self.weights: Numbers = linear.weight.detach().double().numpy()

    def inputs(self, batch: int | None = None) -> Tensor:
        """Return a batch of inputs."""
        return torch.randn(batch or self.case.batch, self.case.size)

    def once(self, module: nn.Module) -> Once:
        """Measure a module."""
        x = self.inputs()
        with torch.inference_mode():
            start = perf_counter()
            y = module(x)
            seconds = perf_counter() - start
        return Once(seconds, distance(y.double().numpy(), x.double().numpy() @ self.weights.T))


def ours(layer: Layer, stack: ExitStack) -> Iterator[Contender]:
    """Start a fleet for each way; all stay until the case has been measured."""
    for name, (domains, arithmetic, sharing) in OURS.items():
        devices = {f"d{number}": f"domain-{number}" for number in range(domains)}
        fleet = stack.enter_context(owl.local_fleet(devices=devices))
        plan = owl.plan(
            layer.module, layer.inputs(1), devices=fleet, replicas=1, arithmetic=arithmetic, sharing=sharing
        )
        scattered = fleet.scatter(layer.module, plan)
        yield Contender(name, partial(layer.once, scattered))


def context(ts: Any, ring: Ring) -> Any:
    """Make keys."""
    made = ts.context(
        ts.SCHEME_TYPE.CKKS,
        ring.degree,
        coeff_mod_bit_sizes=list(ring.bits),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
    )
    made.global_scale = 2.0**ring.scale_bits
    made.auto_rescale = ring.rescale
    made.generate_galois_keys()
    return made


def vectors(ts: Any, ring: Ring, layer: Layer) -> Callable[[], Once]:
    """Measure one block of 256 inputs and all outputs that fit a ciphertext: the whole layer, where it is small."""
    size, batch = layer.case
    inputs, outputs = min(size, BLOCK[0]), min(size, ring.degree // 2)
    keys, weights = context(ts, ring), layer.weights[:outputs, :inputs]
    matrix = ts.plain_tensor(weights.T.tolist())

    def once() -> Once:
        x = layer.inputs(1)[0, :inputs].double().numpy()
        start = perf_counter()
        y = ts.ckks_vector(keys, x.tolist()).mm(matrix).decrypt()
        seconds = perf_counter() - start
        return Once(seconds * (size // inputs) * (size // outputs) * batch, distance(np.array(y), weights @ x))

    return once


def tensors(ts: Any, ring: Ring, layer: Layer) -> Callable[[], Once]:
    """Measure a block of the whole batch."""
    size, (inputs, outputs) = layer.case.size, BLOCK
    keys, weights = context(ts, ring), layer.weights[:outputs, :inputs]
    matrix = ts.plain_tensor(weights.T.tolist())

    def once() -> Once:
        x = layer.inputs()[:, :inputs].double().numpy()
        start = perf_counter()
        secret = ts.ckks_tensor(keys, x.tolist(), batch=True).reshape([1, inputs])
        encrypted = perf_counter()
        product = secret.mm(matrix)
        multiplied = perf_counter()
        y = np.array(product.decrypt().tolist()).reshape(len(x), outputs)
        end = perf_counter()
        seconds = (encrypted - start) * (size / inputs) + (end - multiplied) * (size / outputs)
        seconds += (multiplied - encrypted) * (size / inputs) * (size / outputs)
        return Once(seconds, distance(y, x @ weights.T))

    return once


def slots(ts: Any, ring: Ring, layer: Layer) -> Callable[[], Once]:
    """Measure a block of the whole batch, whose samples lie side by side for each input."""
    (size, batch), (inputs, outputs), cores = layer.case, BLOCK, os.cpu_count() or 1
    keys, weights = context(ts, ring), layer.weights[:outputs, :inputs]
    pieces = inputs * batch * 2 // ring.degree
    matrix = [[ts.plain_tensor(np.repeat(piece, batch).tolist()) for piece in np.split(row, pieces)] for row in weights]

    def once() -> Once:
        x = layer.inputs()[:, :inputs].double().numpy()
        start = perf_counter()
        secrets = [ts.ckks_vector(keys, piece.ravel().tolist()) for piece in np.split(x.T, pieces)]
        encrypted = perf_counter()
        products = [add_up(secret.mul(piece) for secret, piece in zip(secrets, row, strict=True)) for row in matrix]
        multiplied = perf_counter()
        y = [np.array(product.decrypt()).reshape(-1, batch).sum(axis=0) for product in products]
        end = perf_counter()
        seconds = (encrypted - start) * (size / inputs) + (end - multiplied) * (size / outputs)
        seconds += (multiplied - encrypted) * (size / inputs) * (size / outputs)
        return Once(seconds / cores, distance(np.stack(y, axis=1), x @ weights.T))

    return once


def add_up(vectors: Iterator[Any]) -> Any:
    """Add encrypted vectors up in the first of them."""
    total = next(vectors)
    for vector in vectors:
        total += vector
    return total


class Kernel:
    """W x by baby and giant steps (Halevi and Shoup, "Faster Homomorphic Linear Transformations in HElib", 2018).

    A ciphertext of `slots` numbers holds `copies` copies of `width` inputs, copy c turned by c * `steps`. Turned as a
    whole by each of range(steps), it brings every input to every output once, over all copies together.
    """

    def __init__(self, seal: Any, ring: Ring, weights: Numbers) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(ring.degree)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(ring.degree, list(ring.bits)))
        self._seal, self._scale = seal, 2.0**ring.scale_bits
        self._context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)  # noqa: FBT003  positional only
        generator = seal.KeyGenerator(self._context)
        self._encoder, self._evaluator = seal.CKKSEncoder(self._context), seal.Evaluator(self._context)
        self._encryptor = seal.Encryptor(self._context, generator.secret_key())
        self._decryptor = seal.Decryptor(self._context, generator.secret_key())
        slots, size = ring.degree // 2, len(weights)
        self._width = min(size, slots)
        self._parts, copies = size // self._width, slots // self._width
        self._steps = self._width // copies
        self._baby = 1 << self._steps.bit_length() // 2
        self._folds = [self._width << power for power in range(copies.bit_length() - 1)]
        turns = {*range(1, self._baby), *range(self._baby, self._steps, self._baby), *self._folds}
        self._keys = seal.GaloisKeys()
        generator.create_galois_keys([pow(3, turn, 2 * ring.degree) for turn in sorted(turns)], self._keys)
        slot = np.arange(slots)
        self._place = (slot % self._width + slot // self._width * self._steps) % self._width
        blocks = [np.hsplit(rows, self._parts) for rows in np.vsplit(weights, self._parts)]
        self._weights = [[self._diagonals(block) for block in row] for row in blocks]

    def _encode(self, values: Numbers) -> Any:
        plain = self._seal.Plaintext()
        self._encoder.encode(values.tolist(), self._scale, plain)
        return plain

    def _diagonals(self, block: Numbers) -> list[Any]:
        """Return what the inputs are multiplied by after each turn, turned back by its giant step."""
        row = np.arange(len(self._place)) % self._width
        return [
            self._encode(np.roll(block[row, np.roll(self._place, -turn)], turn // self._baby * self._baby))
            for turn in range(self._steps)
        ]

    def _turned(self, secret: Any, turn: int) -> Any:
        turned = self._seal.Ciphertext(self._context)
        self._evaluator.rotate_vector(secret, turn, self._keys, turned)
        return turned

    def _sum(self, terms: Iterator[Any]) -> Any:
        total = next(terms)
        for term in terms:
            self._evaluator.add_inplace(total, term)
        return total

    def _encrypt(self, x: Numbers) -> list[Any]:
        """Return the inputs after each baby step."""
        secret = self._seal.Ciphertext(self._context)
        self._encryptor.encrypt_symmetric(self._encode(x[self._place]), secret)
        return [secret] + [self._turned(secret, turn) for turn in range(1, self._baby)]

    def _times(self, secret: Any, plain: Any) -> Any:
        product = self._seal.Ciphertext(self._context)
        self._evaluator.multiply_plain(secret, plain, product)
        return product

    def _giants(self, row: list[list[Any]], secrets: list[list[Any]]) -> Iterator[Any]:
        for giant in range(0, self._steps, self._baby):
            step = self._sum(
                self._times(secret, plain)
                for plains, turned in zip(row, secrets, strict=True)
                for secret, plain in zip(turned, plains[giant:], strict=False)
            )
            yield self._turned(step, giant) if giant else step

    def __call__(self, x: Numbers) -> Numbers:
        """Encrypt, multiply and decrypt."""
        secrets = [self._encrypt(part) for part in np.split(x, self._parts)]
        y = []
        for row in self._weights:
            total = self._sum(self._giants(row, secrets))
            for fold in self._folds:
                self._evaluator.add_inplace(total, self._turned(total, fold))
            plain = self._seal.Plaintext()
            self._decryptor.decrypt(total, plain)
            y.append(self._encoder.decode_double(plain)[: self._width])
        return np.concatenate(y)


def kernel(seal: Any, ring: Ring, layer: Layer) -> Callable[[], Once]:
    """Measure one sample on one core; with more samples than cores, those are taken to share the work without loss."""
    multiply, batch = Kernel(seal, ring, layer.weights), layer.case.batch
    cores = min(os.cpu_count() or 1, batch)

    def once() -> Once:
        x = layer.inputs(1)[0].double().numpy()
        start = perf_counter()
        y = multiply(x)
        seconds = perf_counter() - start
        return Once(seconds * batch / cores, distance(y, layer.weights @ x))

    return once


def ckks(layer: Layer) -> Iterator[Contender]:
    try:
        import tenseal as ts  # noqa: PLC0415  optional
        from tenseal import sealapi  # noqa: PLC0415  optional
    except ImportError:
        print("CKKS: not measured: no package tenseal here, pip install 'awfulowl[bench]'")
        return
    large = layer.case.batch > 1
    for ring in RINGS:
        yield Contender(f"CKKS vectors N={ring.degree}", vectors(ts, ring, layer), SLOW, large)
        if large:
            yield Contender(f"CKKS tensors N={ring.degree}", tensors(ts, ring, layer), SLOW, large)
            yield Contender(f"CKKS slots N={ring.degree}", slots(ts, ring, layer), SLOW, large)
        yield Contender(
            f"CKKS kernel N={ring.degree}", kernel(sealapi, ring, layer), SLOW if large else 1, extrapolated=large
        )


class Party:
    """A script in another environment: it measures once for every line that it is sent."""

    def __init__(self, python: str, script: str, *arguments: str) -> None:
        command = [python, str(Path(__file__).with_name(script)), *arguments]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise PeerError(f"{python}: {error.strerror}") from error

    def answer(self) -> dict[str, Any]:
        """Return the next line that is an object; runtimes print lines of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                facts: dict[str, Any] = json.loads(line)
                if "skipped" in facts:
                    raise PeerError(facts["skipped"])
                return facts
        raise PeerError(f"its process ended with code {self._process.wait()}")

    def once(self) -> Once:
        """Measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Once(**self.answer())

    def stop(self) -> None:
        """End the process: its input ends."""
        self._process.communicate()


def parties(layer: Layer, options: argparse.Namespace, stack: ExitStack) -> Iterator[Contender]:
    """Start the parties; those that end before their first answer are left out."""
    for peer, python in (("SPU", options.spu_python), ("CrypTen", options.crypten_python)):
        if not python:
            print(f"{peer}: not measured: name the Python of its environment with --{peer.lower()}-python")
    shape = ["--size", str(layer.case.size), "--batch", str(layer.case.batch)]
    peers = {
        f"SPU {protocol} {field}": (
            options.spu_python,
            "peers_spu.py",
            *shape,
            *("--protocol", protocol, "--field", field, "--values", values),
        )
        for protocol, field, values in SPU
    } | {"CrypTen": (options.crypten_python, "peers_crypten.py", *shape)}
    for name, (python, script, *arguments) in peers.items():
        if not python:
            continue
        try:
            party = Party(python, script, *arguments)
            stack.callback(party.stop)
            name_and_version = f"{name} ({party.answer()['version']})"
            party.once()
        except PeerError as error:
            print(f"{name}: not measured: {error}")
            continue
        yield Contender(name_and_version, party.once, SLOW if layer.case.batch > 1 else 1)


def measure(case: Case, rounds: int, options: argparse.Namespace) -> list[Row]:
    layer = Layer(case)
    with ExitStack() as stack:
        contenders = [Contender("plain float32", partial(layer.once, layer.module))]
        contenders += [*ours(layer, stack), *ckks(layer), *parties(layer, options, stack)]
        taken: dict[str, list[Once]] = {contender.name: [] for contender in contenders}
        for number in range(rounds):
            for contender in contenders:
                if contender.every == 1:
                    contender.once()  # so that its threads are awake and its memory is in place
                if number % contender.every == 0:
                    taken[contender.name].append(contender.once())
    return [
        Row(
            case=str(case),
            name=contender.name,
            seconds=spread([once.seconds for once in taken[contender.name]]),
            error=max(once.error for once in taken[contender.name]),
            rounds=len(taken[contender.name]),
            extrapolated=contender.extrapolated,
        )
        for contender in contenders
    ]


def time(seconds: float) -> str:
    unit, factor = next(unit for unit in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if seconds * unit[1] >= 1)
    return f"{seconds * factor:,.{0 if seconds * factor >= 100 else 1}f} {unit}"


def show(row: Row) -> None:
    median, low, high = map(time, row.seconds)
    print(
        f"{row.case:8} {row.name:24}{median:>10} ({low} - {high})  error {row.error:.1e}  {row.rounds} rounds"
        f"{'  extrapolated' if row.extrapolated else ''}",
        flush=True,
    )


def hold(rows: list[Row]) -> None:
    """Hold `replicated` against the peers; the interval is that of both medians, at its widest."""
    for case, peer, factor in TARGETS:
        mine = next((row.seconds for row in rows if row.name == "replicated" and row.case == str(case)), None)
        for row in rows:
            if mine is None or row.case != str(case) or not row.name.startswith(peer):
                continue
            ratio = row.seconds.median / mine.median
            low, high = row.seconds.low / mine.high, row.seconds.high / mine.low
            verdict = "met" if low >= factor else "missed" if high < factor else "open"
            print(
                f"{row.case:8} {row.name:24}takes {ratio:10,.1f} times replicated's time ({low:,.1f} - {high:,.1f}); "
                f"target {factor:,.0f}: {verdict}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, the small layer only")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--spu-python", metavar="PYTHON", default=os.environ.get("AWFULOWL_SPU_PYTHON"))
    parser.add_argument("--crypten-python", metavar="PYTHON", default=os.environ.get("AWFULOWL_CRYPTEN_PYTHON"))
    options = parser.parse_args()
    torch.manual_seed(SEED)
    rows: list[Row] = []
    for name in options.cases or (["256x1"] if options.quick else list(CASES)):
        measured = measure(CASES[name], options.rounds or (5 if options.quick else 21), options)
        for row in measured:
            show(row)
        rows += measured
    hold(rows)
    if options.json:
        write(options.json, rows)


def write(file: str, rows: list[Row]) -> None:
    results: dict[str, Any] = {
        "benchmark": "peers",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seed": SEED,
        "rows": msgspec.to_builtins(rows),
    }
    text = json.dumps(results, indent=2) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text)


if __name__ == "__main__":
    main()
