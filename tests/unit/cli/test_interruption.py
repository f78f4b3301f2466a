"""The first request to end is noted, the second is obeyed, and afterwards all is as it was."""

import signal

import pytest

from awfulowl.cli.interruption import in_order

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_the_first_is_noted_and_the_second_obeyed(first: signal.Signals, second: signal.Signals) -> None:
    noticed: list[int] = []
    with in_order(lambda: noticed.append(1)) as asked:
        assert not asked()
        signal.raise_signal(first)
        assert asked()
        assert noticed == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert noticed == [1]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with pytest.raises(ZeroDivisionError), in_order(lambda: None):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in BOTH] == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with in_order(lambda: None) as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            assert asked()
    finally:
        signal.signal(signal.SIGINT, before)
