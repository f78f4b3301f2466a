"""Readers of jobs' files survive what a fuzzer makes of sound ones; `python -m fuzz.jobs` looks for longer."""

from hypothesis import given, settings

from fuzz.jobs import mutants, survive, whole

KEPT = whole()


@settings(max_examples=100)
@given(mutants(KEPT))
def test_mutants_are_survived(data: bytes) -> None:
    survive(data)


def test_sound_ones_are_survived() -> None:
    for data in KEPT:
        survive(data)
