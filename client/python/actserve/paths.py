"""Paths of request fields: where in a request something is.

A path is a tuple of the names of fields and of indices into repeated ones. On the wire, and where
a person reads it, `("interventions", 2, "add", "vector")` is `interventions[2].add.vector`.
"""

import re

FieldPath = tuple[str | int, ...]

_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(0|[1-9][0-9]{0,9})\]")


def format_path(path: FieldPath) -> str:
    """The path as it is written; empty for the empty one."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def parse_path(text: str) -> FieldPath:
    """The path that is written so. Text that is no path is one name, so that it is told as it
    came."""
    dotted, steps, end = f".{text}", [], 0
    while step := _STEP.match(dotted, end):
        steps.append(step[1] or int(step[2]))
        end = step.end()
    if end == len(dotted):
        return tuple(steps)
    return (text,) if text else ()
