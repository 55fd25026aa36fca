"""The options --lower and --upper: a threshold, and what happens above it."""

from typing import Any

import typer

from actserve.cli.interventions import read_addition
from actserve.monitors import Level, Pause, Stop


def read_level(text: str) -> Level:
    """`0.9,stop`, `0.5,flag`, `0.7,pause=30,proceed` and so on, each part once; `explain` may
    name an NLA, and `intervene=SITE=VECTOR*COEFFICIENT` may come several times."""
    number, *parts = text.split(",")
    try:
        threshold = float(number)
    except ValueError:
        raise typer.BadParameter(f"{number!r} is not a threshold; write it as 0.9,stop") from None
    action: Any = None
    adds: list[Any] = []
    options: dict[str, Any] = {}
    goes_on = False
    for part in parts:
        name, _, value = part.partition("=")
        match name:
            case "stop" if not value:
                action = _only(action, Stop())
            case "pause":
                action = _only(action, Pause(_seconds(value) if value else None))
            case "proceed" if not value:
                goes_on = True
            case "intervene" if value:
                adds += _additions(value)
            case "flag" if not value:
                options["flag"] = True
            case "explain":
                options["explain"] = value or True
            case "webhook" if value:
                options["webhook"] = value
            case _:
                raise typer.BadParameter(
                    f"{part!r} is nothing that happens; use stop, pause, pause=SECONDS, proceed, "
                    "intervene=SITE=VECTOR*4, flag, explain or webhook=URL"
                )
    if adds:
        action = _only(action, adds)
    if goes_on:
        if not isinstance(action, Pause):
            raise typer.BadParameter("proceed says how a pause ends; write pause=30,proceed")
        action = Pause(action.time_limit, proceed_after=True)
    return Level(threshold, action, **options)


def _only(before: Any, action: Any) -> Any:
    if before is not None:
        raise typer.BadParameter("a level does one of stop, pause and intervene; name one")
    return action


def _additions(text: str) -> tuple[Any, ...]:
    adds = read_addition(text).adds
    if not adds:
        raise typer.BadParameter(f"say where to add {text!r}, as in intervene=resid_post.12={text}")
    return adds


def _seconds(text: str) -> float:
    try:
        return float(text.removesuffix("s"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number of seconds") from None
