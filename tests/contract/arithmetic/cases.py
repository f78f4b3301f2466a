"""Products in Python's own integers, which neither round nor wrap, and random ones to hold backends to."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from awfulowl.blocks.kernels import Convolution, Dense, Kernel

DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64)

Numbers = np.ndarray[Any, np.dtype[np.object_]]
"""Python integers."""


class Case(NamedTuple):
    """What is multiplied by what."""

    kernel: Kernel
    weight: Tensor
    x: Tensor
    groups: int = 1


def exact(x: Tensor) -> Numbers:
    """Integers as Python has them."""
    return x.numpy().astype(object)


def oracle(case: Case) -> Numbers:
    """The product, in integers of any length."""
    weight, x = exact(case.weight), exact(case.x)
    if isinstance(case.kernel, Dense):
        return np.asarray(x @ weight.T, dtype=object)
    kernel, groups, size = case.kernel, case.groups, weight.shape[2:]
    x = exact(functional.pad(case.x, [pad for pad in reversed(kernel.padding) for _ in range(2)]))
    space = [
        (length - spread * (taps - 1) - 1) // step + 1
        for length, taps, spread, step in zip(x.shape[2:], size, kernel.dilation, kernel.stride, strict=True)
    ]
    y = np.zeros((len(x), len(weight), *space), dtype=object)
    for at, tap in enumerate(itertools.product(*map(range, size))):
        seen = tuple(
            slice(spread * first, spread * first + step * (length - 1) + 1, step)
            for first, spread, step, length in zip(tap, kernel.dilation, kernel.stride, space, strict=True)
        )
        of_inputs = np.split(x[:, :, *seen], groups, axis=1)
        of_weights = np.split(weight.reshape(*weight.shape[:2], -1)[:, :, at], groups, axis=0)
        parts = [np.moveaxis(one, 1, -1) @ other.T for one, other in zip(of_inputs, of_weights, strict=True)]
        y += np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
    return y


def modulo(y: Numbers | Tensor, width: int) -> list[int]:
    """The residues of numbers modulo 256^width: an answer may have more bytes than were asked for."""
    numbers = exact(y) if isinstance(y, Tensor) else y
    return [int(number) % 256**width for number in numbers.reshape(-1)]


def integers(dtype: torch.dtype, shape: Sequence[int], seed: int) -> Tensor:
    """Random integers of the whole range, of which a part are the ends of it, and 0 and 1 and -1."""
    ends = torch.iinfo(dtype)
    generator = np.random.default_rng(seed)
    numbers = generator.integers(ends.min, ends.max, tuple(shape), np.int64, endpoint=True)
    special = generator.choice(np.array([ends.min, ends.max, ends.max - 128, 0, 1, -1], dtype=np.int64), tuple(shape))
    share = generator.choice([0.0, 0.1, 0.5, 1.0])
    return torch.from_numpy(np.where(generator.random(tuple(shape)) < share, special, numbers)).to(dtype)


def strided(x: Tensor, how: int) -> Tensor:
    """The same numbers, laid out in memory in one of several ways."""
    if how == 1:
        return x.mT.contiguous().mT
    if how == 2:
        room = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        room[..., 1::2] = x
        return room[..., 1::2]
    return x


SEEDS = st.integers(0, 2**31)
LAYOUTS = st.integers(0, 2)
WIDTHS = st.integers(1, 8)
_SIDES = st.integers(1, 40)
_DTYPES = st.sampled_from(DTYPES)


@st.composite
def denses(draw: st.DrawFn) -> Case:
    """Dense products of any types, shapes and layouts."""
    terms = draw(_SIDES)
    weight = integers(draw(_DTYPES), (draw(_SIDES), terms), draw(SEEDS))
    x = integers(draw(_DTYPES), (draw(_SIDES), terms), draw(SEEDS))
    return Case(Dense(), strided(weight, draw(LAYOUTS)), strided(x, draw(LAYOUTS)))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Convolutions of any types, shapes and layouts, with and without groups."""
    axes = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    size = [draw(st.integers(1, 3)) for _ in range(axes)]
    steps = st.tuples(*[st.integers(1, 3)] * axes)
    kernel = Convolution(draw(steps), draw(st.tuples(*[st.integers(0, 2)] * axes)), draw(steps))
    space = [
        draw(st.integers(max(1, spread * (taps - 1) + 1 - 2 * pad), 12))
        for taps, spread, pad in zip(size, kernel.dilation, kernel.padding, strict=True)
    ]
    inputs = draw(st.integers(1, 4))
    weight = integers(draw(_DTYPES), (groups * draw(st.integers(1, 4)), inputs, *size), draw(SEEDS))
    x = integers(draw(_DTYPES), (draw(st.integers(1, 3)), groups * inputs, *space), draw(SEEDS))
    return Case(kernel, strided(weight, draw(LAYOUTS)), strided(x, draw(LAYOUTS)), groups)
