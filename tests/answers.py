"""Answers of models, however they are nested, held to each other bit for bit."""

import torch
from torch import Tensor


def flat(answer: object) -> list[Tensor]:
    """Return the tensors of an answer: a tensor, or tuples of answers."""
    if isinstance(answer, Tensor):
        return [answer]
    return [part for one in answer for part in flat(one)] if isinstance(answer, tuple) else []


def require_equal(one: object, other: object) -> None:
    """Require the same types, shapes and bits, of at least one tensor."""
    ours, theirs = flat(one), flat(other)
    assert len(ours) == len(theirs) > 0
    assert all((mine.dtype, mine.shape) == (yours.dtype, yours.shape) for mine, yours in zip(ours, theirs, strict=True))
    assert all(map(torch.equal, ours, theirs))
