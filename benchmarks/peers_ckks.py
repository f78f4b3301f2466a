"""A product with encrypted inputs under CKKS, by tenseal and its SEAL: measured once for every line of standard input.

    yes | head -5 | python benchmarks/peers_ckks.py --way kernel --degree 8192 --size 256 --batch 1

Needs `pip install 'awfulowl[bench]'`; `benchmarks/peers.py` runs it by its own Python. Answers are lines of JSON.

With the secret key, within SEAL's limits for 128 bits, of ring degree N = 8192 (60 + 40 + 60 bits, rescaled) and
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

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, NamedTuple

import numpy as np

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Ring(NamedTuple):
    """Parameters of CKKS."""

    degree: int
    bits: tuple[int, ...]
    scale_bits: int
    rescale: bool


class Once(NamedTuple):
    """One measurement."""

    seconds: float
    error: float


RINGS: Final = {
    ring.degree: ring for ring in (Ring(8192, (60, 40, 60), 40, rescale=True), Ring(4096, (54, 55), 24, rescale=False))
}
BLOCK: Final = (256, 16)
SEED: Final = 0


def distance(y: Numbers, expected: Numbers) -> float:
    return float(np.abs(y - expected).max() / np.sqrt(np.square(expected).mean()))


class Layer:
    """Weights as PyTorch starts a linear layer with, and inputs of a standard normal distribution."""

    def __init__(self, size: int, batch: int) -> None:
        self.size, self.batch = size, batch
        self._generator = np.random.default_rng(SEED)

    def weights(self, outputs: int, inputs: int) -> Numbers:
        """Return a block of the weights."""
        bound = self.size**-0.5
        return self._generator.uniform(-bound, bound, (outputs, inputs))

    def inputs(self, samples: int, count: int) -> Numbers:
        """Return so many of the inputs, others each time."""
        return self._generator.standard_normal((samples, count))


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
    size, batch = layer.size, layer.batch
    inputs, outputs = min(size, BLOCK[0]), min(size, ring.degree // 2)
    keys, weights = context(ts, ring), layer.weights(outputs, inputs)
    matrix = ts.plain_tensor(weights.T.tolist())

    def once() -> Once:
        x = layer.inputs(1, inputs)[0]
        start = perf_counter()
        y = ts.ckks_vector(keys, x.tolist()).mm(matrix).decrypt()
        seconds = perf_counter() - start
        return Once(seconds * (size // inputs) * (size // outputs) * batch, distance(np.array(y), weights @ x))

    return once


def tensors(ts: Any, ring: Ring, layer: Layer) -> Callable[[], Once]:
    """Measure a block of the whole batch."""
    size, (inputs, outputs) = layer.size, BLOCK
    keys, weights = context(ts, ring), layer.weights(outputs, inputs)
    matrix = ts.plain_tensor(weights.T.tolist())

    def once() -> Once:
        x = layer.inputs(layer.batch, inputs)
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
    size, batch, cores = layer.size, layer.batch, os.cpu_count() or 1
    inputs, outputs = BLOCK
    keys, weights = context(ts, ring), layer.weights(outputs, inputs)
    pieces = inputs * batch * 2 // ring.degree
    matrix = [[ts.plain_tensor(np.repeat(piece, batch).tolist()) for piece in np.split(row, pieces)] for row in weights]

    def once() -> Once:
        x = layer.inputs(layer.batch, inputs)
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


def kernel(ts: Any, ring: Ring, layer: Layer) -> Callable[[], Once]:
    """Measure one sample on one core; with more samples than cores, those are taken to share the work without loss."""
    weights, batch = layer.weights(layer.size, layer.size), layer.batch
    multiply = Kernel(ts.sealapi, ring, weights)
    cores = min(os.cpu_count() or 1, batch)

    def once() -> Once:
        x = layer.inputs(1, layer.size)[0]
        start = perf_counter()
        y = multiply(x)
        seconds = perf_counter() - start
        return Once(seconds * batch / cores, distance(y, weights @ x))

    return once


WAYS: Final = {"vectors": vectors, "tensors": tensors, "slots": slots, "kernel": kernel}


def answer(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=list(WAYS), default="kernel", help="tensors and slots are for a batch of 64")
    parser.add_argument("--degree", type=int, choices=list(RINGS), default=8192, help="of the ring")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="measure once, whatever standard input says, on one line")
    options, _ = parser.parse_known_args()
    try:
        ts = importlib.import_module("tenseal")
        importlib.import_module("tenseal.sealapi")  # which becomes an attribute of the package
    except ImportError:
        answer(skipped="this Python has no package tenseal: pip install 'awfulowl[bench]'")
        return
    once = WAYS[options.way](ts, RINGS[options.degree], Layer(options.size, options.batch))
    if options.quick:
        answer(version=ts.__version__, **once()._asdict())
        return
    answer(version=ts.__version__)
    for _ in sys.stdin:
        answer(**once()._asdict())


if __name__ == "__main__":
    main()
