"""Run asynchronous code in tests: always with a bound on its time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from awfulowl.fabric.loop import new_event_loop

T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"uvloop": new_event_loop, "asyncio": asyncio.new_event_loop}
"""What a connection has to work on."""


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
