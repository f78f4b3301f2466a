"""Randomness: keystreams are AES's, seeded streams repeat, and numbers are uniform where they say so."""

import hashlib
import math
from functools import reduce
from operator import and_, or_

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.limits import MIB
from awfulowl.randomness import HANDLE_BYTES, SEED_BYTES, SYSTEM, Entropy, Seeded, derive, keystream

SEED = bytes(range(32))
TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.bfloat16]
SHAPES = [(), (1,), (5,), (3, 7), (2, 3, 4), (0,), (0, 4), (4, 0, 2)]


def by_blocks(seed: bytes, count: int) -> bytes:
    """The keystream by its definition: the cipher of 0, 1, 2, ..., each one block of 16 bytes, big-endian."""
    cipher = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()  # noqa: S305 - the oracle of counter mode
    return b"".join(cipher.update(block.to_bytes(16, "big")) for block in range(-(-count // 16)))[:count]


def in_one_go(seed: bytes, count: int) -> bytes:
    """The keystream as `cryptography` makes it without being given memory."""
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(count))


def streamed(seed: bytes, count: int) -> bytes:
    into = bytearray(b"\xaa" * count)  # what was there before does not show
    keystream(seed, memoryview(into))
    return bytes(into)


def content(numbers: torch.Tensor) -> bytes:
    return numbers.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_keystream_is_that_of_the_published_vectors() -> None:
    # AES-256 under the key of zeros: test cases 13 and 14 of McGrew and Viega, "The Galois/Counter Mode of Operation",
    # where block 0 is H, block 1 the cipher of Y0, and block 2 the ciphertext of 16 zeros.
    published = "dc95c078a2408989ad48a21492842087 530f8afbc74536b9a963b4f1c4cb738b cea7403d4d606b6e074ec5d3baf39d18"
    assert streamed(bytes(32), 48) == bytes.fromhex(published)


@given(seed=st.binary(min_size=32, max_size=32), count=st.integers(0, 300))
def test_the_keystream_is_aes_in_counter_mode(seed: bytes, count: int) -> None:
    assert streamed(seed, count) == by_blocks(seed, count) == in_one_go(seed, count)


@pytest.mark.parametrize(
    "count", [MIB - 16, MIB - 1, MIB, MIB + 1, MIB + 16, 2 * MIB - 1, 2 * MIB, 2 * MIB + 17, 3 * MIB + 5]
)
def test_the_keystream_goes_on_from_chunk_to_chunk(count: int) -> None:
    assert streamed(SEED, count) == in_one_go(SEED, count)


def test_the_keystream_goes_on_by_blocks_over_a_chunk() -> None:
    assert streamed(SEED, MIB + 48)[MIB - 64 :] == by_blocks(SEED, MIB + 48)[MIB - 64 :]


def test_the_keystream_stays_within_its_memory() -> None:
    whole = bytearray(b"\xaa" * 100)
    keystream(SEED, memoryview(whole)[20:63])
    assert bytes(whole) == b"\xaa" * 20 + by_blocks(SEED, 43) + b"\xaa" * 37


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33, 64])
def test_a_seed_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="key size"):
        keystream(bytes(length), memoryview(bytearray(16)))
    with pytest.raises(ValueError, match="key size"):
        Seeded(bytes(length), torch.int32, (4,)).expand()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_seed_stands_for_the_bytes_of_its_keystream(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    numbers = Seeded(SEED, dtype, shape).expand()
    assert (numbers.dtype, numbers.shape, numbers.is_contiguous()) == (dtype, shape, True)
    assert content(numbers) == by_blocks(SEED, math.prod(shape) * dtype.itemsize)


def test_integers_are_read_little_endian_and_signed() -> None:
    stream = by_blocks(SEED, 16)
    for dtype, size in ((torch.int8, 1), (torch.int16, 2), (torch.int32, 4), (torch.int64, 8)):
        numbers = [int.from_bytes(stream[at : at + size], "little", signed=True) for at in range(0, 16, size)]
        assert Seeded(SEED, dtype, (16 // size,)).expand().tolist() == numbers


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.int32, MIB // 4), (torch.int32, MIB // 4 + 1), (torch.int64, MIB // 4 - 1)], ids=str
)
def test_long_tensors_go_on_from_chunk_to_chunk(dtype: torch.dtype, count: int) -> None:
    assert content(Seeded(SEED, dtype, (count,)).expand()) == in_one_go(SEED, count * dtype.itemsize)


def test_the_same_seed_stands_for_the_same_numbers_in_memory_of_their_own() -> None:
    one, other = (Seeded(SEED, torch.int64, (3, 5)) for _ in range(2))
    first, second = one.expand(), other.expand()
    assert one == other
    assert torch.equal(first, second)
    first.zero_()
    assert torch.equal(one.expand(), second)
    assert torch.equal(Seeded(SEED, torch.int64, (2, 5)).expand(), second[:2])


def test_another_bit_of_the_seed_is_another_stream() -> None:
    seeds = [(1 << bit).to_bytes(32, "little") for bit in range(256)] + [bytes(32)]
    assert len({streamed(seed, 16) for seed in seeds}) == 257


def test_expansions_do_not_depend_on_the_default_type() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert Seeded(SEED, torch.int32, (4,)).expand().dtype == torch.int32
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_text_shows_a_seed() -> None:
    secret = Seeded(b"not to be read by all the others", torch.int64, (3, 5))
    for shown in (repr(secret), str(secret), f"{secret}", repr([secret])):
        assert "not to be read" not in shown
    assert repr(secret) == "Seeded(torch.int64, (3, 5))"


def chi_square(counts: torch.Tensor) -> float:
    """How far counts are from even ones: of even draws, normal with mean 0 and deviation 1 (Wilson and Hilferty)."""
    expected = counts.sum().item() / len(counts)
    freedom = len(counts) - 1
    ratio = ((counts - expected) ** 2 / expected).sum().item() / freedom
    return float((ratio ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)))


def test_expansions_are_uniform() -> None:
    # n = 2^20 bytes under one fixed seed; 4 standard deviations, which one even stream in 16,000 passes.
    numbers = Seeded(SEED, torch.uint8, (MIB,)).expand()
    assert abs(chi_square(torch.bincount(numbers.long(), minlength=256))) < 4


def test_derived_seeds_are_keyed_blake2b_and_differ_by_every_number() -> None:
    message = (3).to_bytes(8, "little") + (2**64 - 1).to_bytes(8, "little")
    assert derive(SEED, 3, 2**64 - 1) == hashlib.blake2b(message, key=SEED, digest_size=SEED_BYTES).digest()
    places = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (256,), (0, 256), (2**32, 1)]
    assert len({derive(key, *place) for place in places for key in (SEED, bytes(32))}) == 2 * len(places)
    assert len(derive(SEED)) == SEED_BYTES


@pytest.mark.parametrize("number", [-1, 2**64])
def test_numbers_that_do_not_fit_derive_nothing(number: int) -> None:
    with pytest.raises(OverflowError):
        derive(SEED, number)


@pytest.mark.parametrize("entropy", [SYSTEM, Entropy(), Entropy(1)], ids=["system", "fresh", "seeded"])
def test_seeds_and_handles_are_fresh(entropy: Entropy) -> None:
    seeds, handles = ({make() for _ in range(500)} for make in (entropy.seed, entropy.handle))
    assert {len(seed) for seed in seeds} == {SEED_BYTES} == {32}
    assert {len(handle) for handle in handles} == {HANDLE_BYTES} == {16}
    assert len(seeds) == len(handles) == 500


def test_a_seed_of_the_stream_can_be_expanded() -> None:
    assert Seeded(Entropy(1).seed(), torch.int32, (4,)).expand().shape == (4,)


def test_only_seeded_streams_are_unsafe_and_they_repeat() -> None:
    assert not SYSTEM.unsafe
    assert not Entropy().unsafe
    assert Entropy(0).unsafe

    def drawn(entropy: Entropy) -> list[object]:
        return [
            entropy.seed(),
            entropy.integers(2**62, 3, 2).tolist(),
            entropy.handle(),
            entropy.integers(8, 9).tolist(),
        ]

    assert drawn(Entropy(7)) == drawn(Entropy(7))
    assert drawn(Entropy(7)) != drawn(Entropy(8))
    assert drawn(Entropy()) != drawn(Entropy())


def test_draws_go_on_and_do_not_come_again() -> None:
    entropy = Entropy(7)
    assert entropy.seed() != entropy.seed()
    assert entropy.integers(2**62, 4).tolist() != entropy.integers(2**62, 4).tolist()


@pytest.mark.parametrize("entropy", [SYSTEM, Entropy(1)], ids=["system", "seeded"])
@pytest.mark.parametrize("bits", [0, 1, 2, 7, 8, 31, 32, 33, 53, 61, 62])
def test_integers_are_below_their_bound_and_reach_all_its_bits(entropy: Entropy, bits: int) -> None:
    numbers = entropy.integers(1 << bits, 400)
    assert numbers.dtype == torch.int64
    assert min(numbers.tolist()) >= 0
    assert max(numbers.tolist()) < 1 << bits
    # By chance a bit is the same in all of 400 numbers once in 2^399.
    assert reduce(or_, numbers.tolist()) == (1 << bits) - 1
    assert reduce(and_, numbers.tolist()) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_have_the_shape_that_is_asked_for(shape: tuple[int, ...]) -> None:
    for entropy in (SYSTEM, Entropy(1)):
        assert entropy.integers(16, *shape).shape == shape


@pytest.mark.parametrize("bound", [0, -1, -8, 3, 6, 7, 9, 2**61 + 1, 2**62 - 1, 2**62 + 1, 2**63, 2**64, 2**70])
def test_integers_below_other_bounds_are_refused(bound: int) -> None:
    with pytest.raises(ValueError, match=rf"a bound of {bound} is no power of two up to 2\^62"):
        SYSTEM.integers(bound, 3)


def test_integers_may_be_written_to() -> None:
    numbers = Entropy(1).integers(16, 8)
    numbers.zero_()
    assert not numbers.any()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bound", [2, 16, 256])
def test_integers_are_uniform(bound: int, seed: int) -> None:
    # n = 100,000 under each fixed seed; 4 standard deviations, which one even stream in 16,000 passes.
    counts = torch.bincount(Entropy(seed).integers(bound, 1000, 100).reshape(-1), minlength=bound)
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_bit_of_wide_integers_is_even_and_so_are_neighbours(seed: int) -> None:
    # n = 100,000 under each fixed seed for each of 62 bits and 61 pairs of neighbours; 5 standard deviations of a mean.
    numbers = Entropy(seed).integers(1 << 62, 100_000)
    bits = (numbers[:, None] >> torch.arange(62)) & 1
    pairs = bits[:, 1:] ^ bits[:, :-1]
    for coins in (bits, pairs):
        means = coins.double().mean(dim=0)
        assert (means - 0.5).abs().max().item() < 5 * 0.5 / math.sqrt(len(numbers))
