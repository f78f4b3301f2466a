"""Who works on cells: this process, or several beside it, one thread each."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import torch

from awfulowl.lab.audit.cells import work
from awfulowl.lab.audit.record import Record
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.request import Cell, NetworkCell, Request
from awfulowl.lab.victims.fitting import OnEpoch

Stop = Callable[[], bool]
"""Says whether the user wants to end."""


class Done(NamedTuple):
    """A cell, and what came of it."""

    cell: Cell
    record: Record


class Hands(AbstractContextManager["Hands"]):
    """Works on cells, and keeps every record as soon as it is there.

    Args:
        shop: of this process.
        workers: processes; with one, this process works alone.
        opened: what the other processes open their workshops with: request, folder, cache.
    """

    def __init__(self, shop: Workshop, workers: int, opened: tuple[Request, Path, Path | None]) -> None:
        self._shop: Final = shop
        self._pool = (
            ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_open, initargs=opened)
            if workers > 1
            else None
        )
        self._ahead: Final = 2 * workers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        processes = [*(self._pool._processes or {}).values()]  # noqa: SLF001  no public way ends those at work
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        for process in processes:
            if error is not None:
                process.terminate()

    def work(self, cells: Sequence[Cell], stop: Stop, on_epoch: OnEpoch | None = None) -> Iterator[Done]:
        """Yield cells as they are done, those that were done before first; ends early when `stop` says so.

        Raises:
            InputError: a record cannot be written.
        """
        todo = []
        for cell in cells:
            found = self._shop.store.find(cell)
            if found is None or isinstance(cell, NetworkCell):
                todo.append(cell)
            else:
                yield Done(cell, found)
        for done in self._fresh(todo, stop, on_epoch):
            self._shop.store.keep(*done)
            yield done

    def _fresh(self, cells: Sequence[Cell], stop: Stop, on_epoch: OnEpoch | None) -> Iterator[Done]:
        if self._pool is None:
            for cell in cells:
                if stop():
                    return
                yield Done(cell, work(self._shop, cell, on_epoch))
            return
        waiting = iter(cells)
        under_way = {}
        while True:
            for cell in waiting if not stop() else ():
                under_way[self._pool.submit(_work, cell)] = cell
                if len(under_way) >= self._ahead:
                    break
            if not under_way:
                return
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                yield Done(under_way.pop(future), future.result())


_shops: Final[list[Workshop]] = []


def _open(request: Request, folder: Path, cache: Path | None) -> None:
    """Prepare a process: Ctrl-C is for the one that hands out work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    _shops.append(Workshop(request, folder, cache))


def _work(cell: Cell) -> Record:
    return work(_shops[0], cell)
