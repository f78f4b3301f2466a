"""A loop that stands still between calls: nothing happens but in a call, and no call waits, since its clock jumps.

So a whole `Fleet` with all its devices runs in the caller's thread: a lease of 30 seconds passes in no time, a device
that is killed between two lines is gone exactly there, and nothing depends on how busy the machine is.
"""

import asyncio
import concurrent.futures
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from awfulowl.errors import ClosedError, UnavailableError
from awfulowl.owner.loop import LoopThread
from tests.simulated.world import JumpingLoop

T = TypeVar("T")


class StillLoop(LoopThread):
    """Runs coroutines in the caller's thread, under a clock that jumps."""

    def __init__(self) -> None:
        self._still = JumpingLoop()
        self._process = os.getpid()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run `work` to its end; `timeout_s` are seconds of the clock that jumps."""

        async def within() -> T:
            try:
                async with asyncio.timeout(timeout_s):
                    return await work
            except TimeoutError as error:
                raise UnavailableError(f"no result within timeout_s={timeout_s}") from error

        if self._still.is_closed():
            work.close()
            raise ClosedError("this fleet is closed; open a new one")
        return self._still.run_until_complete(within())

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin `work`: it goes on in later calls, and when its result is asked for."""
        return _Pumping(self, self._still.create_task(work))

    def close(self) -> None:
        """Cancel what still runs."""
        if self._still.is_closed():
            return
        tasks = asyncio.all_tasks(self._still)
        for task in tasks:
            task.cancel()
        if tasks:
            self._still.run_until_complete(asyncio.wait(tasks))
        self._still.close()


class _Pumping(concurrent.futures.Future[T]):
    """A future whose loop runs while somebody waits for it."""

    def __init__(self, loop: StillLoop, task: asyncio.Task[T]) -> None:
        self._loop = loop
        self._task = task
        super().__init__()

    @property
    def _state(self) -> str:
        """What `concurrent.futures.wait` looks at, and would wait for while nothing runs."""
        self.exception()
        return "FINISHED"

    @_state.setter
    def _state(self, _: str) -> None:
        """Leave it to the task."""

    def done(self) -> bool:
        """Say whether the result is there, without running anything."""
        return self._task.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what went wrong."""
        if not self._task.done():
            self._loop.run(asyncio.wait([self._task], timeout=timeout))
        return self._task.exception()

    def result(self, timeout: float | None = None) -> T:
        """Wait, and return the result."""
        self.exception(timeout)
        return self._task.result()
