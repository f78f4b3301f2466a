"""One event loop in one thread, for callers that are not asynchronous."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from awfulowl.errors import ClosedError, UnavailableError
from awfulowl.fabric.loop import new_event_loop

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for any number of threads, until closed."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._loop.run_forever, name="awfulowl", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run `work` in the loop and wait for its result; on a timeout or an interrupt it is cancelled.

        Raises:
            ClosedError: the loop is closed meanwhile or before, belongs to another process (after a fork), or is this
                very thread.
            UnavailableError: `timeout_s` has passed.
        """
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError as error:
            if future.done():
                raise
            future.cancel()
            raise UnavailableError(f"no result within timeout_s={timeout_s}: raise it, or see fleet.events") from error
        except concurrent.futures.CancelledError as error:
            raise ClosedError("the fleet was closed while it was asked") from error
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `work` in the loop and return at once.

        Raises:
            ClosedError: as `run`.
        """
        try:
            self._check_usable()
        except ClosedError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _check_usable(self) -> None:
        if self.is_of_another_process:
            raise ClosedError("this fleet was opened by another process; after a fork, open a new one in the child")
        if not self._thread.is_alive() or self._loop.is_closed():
            raise ClosedError("this fleet is closed; open a new one")
        if threading.current_thread() is self._thread:
            raise ClosedError("a fleet cannot be called from inside its own event loop")

    @property
    def is_of_another_process(self) -> bool:
        """Whether this is the child of a process that forked: the thread is there, and not here."""
        return os.getpid() != self._process

    def close(self) -> None:
        """Stop the loop and its thread; what still runs is cancelled."""
        if self.is_of_another_process or self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
