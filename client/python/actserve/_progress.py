"""Progress: a bar on a terminal, if rich is installed and there is more than one item."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

from actserve._jobs import Job


def bar(job: Job[object], show: bool | None) -> AbstractContextManager[Callable[[int], object]]:
    """`counting` of the items of a job."""
    return counting(job.name, job.items, show)


@contextmanager
def counting(name: str, items: int, show: bool | None) -> Iterator[Callable[[int], object]]:
    """Yields a function that says how many more items are done.

    `show` forces the bar on or off; None shows it on a terminal, and in a notebook that has
    ipywidgets, without which a bar there is a warning and empty space. It goes to standard error,
    so that output in a pipe stays clean.
    """
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        reach(done, items)

    with reaching(name, False if show is None and items < 2 else show) as reach:
        reach(0, items)
        yield advance


@contextmanager
def reaching(name: str, show: bool | None) -> Iterator[Callable[[int, int | None], object]]:
    """Yields a function that says how many items are done, and how many there are in all; None
    while that is not known. `show` is as for `counting`."""
    if show is False:
        yield lambda done, items: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:
        yield lambda done, items: None
        return
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    drawn = bool(find_spec("ipywidgets")) if console.is_jupyter else console.is_terminal
    hidden = not (show or drawn)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, items: progress.update(task, completed=done, total=items)
