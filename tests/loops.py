"""Run asynchronous code in tests: always with a bound on its time."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from awfulowl.fabric.loop import new_event_loop

T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(
    work: Coroutine[Any, Any, T], *, timeout_s: float = 30.0, loop_factory: LoopFactory | None = new_event_loop
) -> T:
    """Run `work` in a loop of its own; fails with TimeoutError when it hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            return await work

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds; `run` bounds the wait."""
    while not condition():  # noqa: ASYNC110  any condition, also of other threads and processes
        await asyncio.sleep(0.001)


class LoopThread:
    """A loop that runs in a thread, for what must live longer than one `run`."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = 30.0) -> T:
        """Run `work` there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
