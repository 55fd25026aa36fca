"""Starting an engine in a thread that nobody has to wait for.

A start cannot be interrupted: it loads and compiles for a minute. Python waits at its end for every
thread of a pool, so this one is of none.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_THREAD = "actserve-engine-start"


def in_thread(start: Callable[[], T]) -> "asyncio.Future[T]":
    """What `start` returns or raises."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        try:
            value, error = start(), None
        except BaseException as failure:
            value, error = None, failure
        with suppress(RuntimeError):  # The loop is closed: the server is gone.
            loop.call_soon_threadsafe(tell, value, error)

    threading.Thread(target=work, name=_THREAD, daemon=True).start()
    return result


def is_starting() -> bool:
    """Whether such a thread still runs."""
    return any(thread.name == _THREAD for thread in threading.enumerate())
