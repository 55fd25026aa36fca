"""Whom an `asyncio.CancelledError` is for: the task that meets it, or a call that it waits for."""

import asyncio
import sys


def is_task_cancelled(closed: bool) -> bool:
    """Whether someone cancelled the current task, rather than a call alone.

    `closed`: whether the client was closed, which cancels its calls and no task.
    """
    if sys.version_info < (3, 11):
        # A task does not say there whether it was cancelled. But only closing cancels a call alone.
        return not closed
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
