"""The commands about alerts: followed, listed, decided about and deleted."""

from datetime import datetime, timezone
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actserve._names import named
from actserve._sync.client import Client
from actserve.alerts import Alert, decision_to_proto, level_to_proto
from actserve.cli import arguments as arg
from actserve.cli.output import (
    connection_told,
    plain_text,
    print_json,
    print_json_line,
    printed_line,
    say,
)
from actserve.errors import InvalidRequest, NotFound
from actserve.monitors import MONITORS

alerts = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_TEXT = 60
"""Characters of an alert's text in a table."""


def _monitor(text: str) -> str:
    return named(MONITORS, text).name


def _alert(text: str) -> str:
    return named("alerts", text.removesuffix("…")).name  # As a narrow table cuts it.


def _level(text: str) -> str:
    level_to_proto(text)
    return text


def _decision(text: str) -> str:
    decision_to_proto(text)
    return text


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time such as 2026-01-31 or 2026-01-31T18:00"
        ) from (None)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


_Monitors = Annotated[
    list[Any] | None,
    typer.Option(
        "--monitor",
        "-m",
        metavar="NAME",
        parser=arg.reader(_monitor),
        help="Only of this monitor. Repeat for more.",
    ),
]
_Level = Annotated[
    Any,
    typer.Option(metavar="LEVEL", parser=arg.reader(_level), help="Only of this: lower or upper."),
]
_EndUser = Annotated[str | None, typer.Option(metavar="ID", help="Only of calls for this user.")]
_Undecided = Annotated[
    bool, typer.Option("--undecided", help="Only those that wait for a decision.")
]
_Before = Annotated[
    Any,
    typer.Option(metavar="TIME", parser=_time, help="Only those raised before this time, in UTC."),
]
_Alert = Annotated[
    str,
    typer.Argument(metavar="ALERT", parser=arg.reader(_alert), help="Its id, or how it begins."),
]


@alerts.command()
def watch(
    monitors: _Monitors = None,
    level: _Level = None,
    end_user: _EndUser = None,
    from_oldest: Annotated[
        bool, typer.Option("--from-oldest", help="Begin with the oldest that is stored.")
    ] = False,
    resume_from: Annotated[
        Any,
        typer.Option(
            metavar="ALERT",
            parser=arg.reader(_alert),
            help="Begin after this alert: the id of the last one that was printed before.",
        ),
    ] = None,
    give_up_after: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="End with an error when the server was gone for so long; it is looked for until "
            "Ctrl-C by default.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one alert a line.")] = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Print alerts as they are raised, until Ctrl-C. A connection that is lost is made again, and
    none is missed; standard error says when the server is gone, and when it is back.

    [bold]Example[/bold]

    [cyan]actserve alerts watch --monitor rude --level upper --json[/cyan]
    """
    with arg.connect(server, model, token, tls) as client, connection_told():
        for alert in client.alerts.watch(
            monitors or (),
            level=level,
            end_user=end_user,
            from_oldest=from_oldest,
            resume_from=client.alerts.get(resume_from) if resume_from else None,
            give_up_after=give_up_after,
        ):
            if alert.lost_before:
                say(f"{alert.lost_before} alerts before this one were deleted before it was read")
            if as_json:
                print_json_line(alert)
            else:
                printed_line(_told(alert))


@alerts.command("list")
def list_alerts(
    monitors: _Monitors = None,
    level: _Level = None,
    end_user: _EndUser = None,
    undecided: _Undecided = False,
    before: _Before = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 50,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """List the alerts that are stored, the newest first.

    [bold]Example[/bold]

    [cyan]actserve alerts list --monitor rude --undecided[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        listed = client.alerts.list(
            monitors or (), level=level, end_user=end_user, undecided=undecided, before=before
        )
        found = list(islice(listed, limit))
    if as_json:
        print_json(found)
    else:
        Console().print(alert_table(found))


@alerts.command()
def decide(
    alert: _Alert,
    decision: Annotated[
        Any,
        typer.Argument(metavar="DECISION", parser=arg.reader(_decision), help="proceed or stop."),
    ],
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Say what becomes of a sample that is paused. The first decision holds.

    [bold]Example[/bold]

    [cyan]actserve alerts decide 5f2c stop[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        try:
            client.alerts.decide(alert, decision)
        except NotFound:
            alert = _undecided(client, alert)
            client.alerts.decide(alert, decision)
    say(f"{alert} {'goes on' if decision == 'proceed' else 'is stopped'}")


def _undecided(client: Client, beginning: str) -> str:
    """The id of the one alert that waits for a decision and begins so."""
    found = [each.id for each in client.alerts.list(undecided=True)]
    found = [each for each in found if each.startswith(beginning)]
    if len(found) != 1:
        raise typer.BadParameter(
            f"{len(found) or 'no'} alerts that wait for a decision begin with {beginning!r}; see "
            "actserve alerts list --undecided"
        )
    return found[0]


@alerts.command()
def rm(
    monitors: _Monitors = None,
    level: _Level = None,
    end_user: _EndUser = None,
    undecided: _Undecided = False,
    before: _Before = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all of them.")] = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Delete alerts, such as those of one end user.

    [bold]Example[/bold]

    [cyan]actserve alerts rm --end-user user-7[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        try:
            count = client.alerts.delete(
                monitors or (),
                level=level,
                end_user=end_user,
                undecided=undecided,
                before=before,
                everything=everything,
            )
        except InvalidRequest as error:
            if error.reason == "FIELD_REQUIRED":
                raise typer.BadParameter(
                    "say which alerts to delete, or --all alone for all of them"
                ) from None
            raise
    say(f"deleted {count} alerts")


def alert_table(found: list[Alert]) -> Table:
    """Alerts in columns; those that nothing has are left out."""
    rows = [
        {
            "alert": each.id,
            "time (UTC)": f"{each.raise_time:%m-%d %H:%M:%S}",
            "monitor": each.monitor,
            "level": each.level,
            "score": f"{each.score:.4g}",
            "at": str(each.position),
            "action": _action(each),
            "user": each.end_user,
            "call": each.request_id,
            "text": each.text[-_TEXT:],
            "explanation": each.explanation[:_TEXT],
        }
        for each in found
    ]
    always = ("alert", "time (UTC)", "monitor", "level", "score", "at")
    names = [*always, *(rows[0] if rows else ())]
    shown = [name for name in dict.fromkeys(names) if name in always or any(r[name] for r in rows)]
    table = Table(*shown)
    for row in rows:
        table.add_row(*(plain_text(row[name]) for name in shown))
    return table


def _told(alert: Alert) -> str:
    parts = [
        f"{alert.raise_time:%Y-%m-%d %H:%M:%S}",
        alert.id,
        f"{alert.monitor} {alert.level} {alert.score:.4g} at {alert.position}",
        _action(alert),
        f"call {alert.request_id}",
        f"user {alert.end_user}" if alert.end_user else "",
        repr(alert.text[-_TEXT:]) if alert.text else "",
    ]
    return "  ".join(part for part in parts if part)


def _action(alert: Alert) -> str:
    if alert.action != "pause":
        return alert.action
    until = f" until {alert.decide_by:%H:%M:%S}" if alert.decide_by else ""
    return f"paused{until}" if not alert.decision else f"paused: {alert.decision}"
