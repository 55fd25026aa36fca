"""The top command: what a server does right now, and what its monitors find."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actserve._channel import DEFAULT_TARGET, is_local
from actserve._sync.client import Client
from actserve.alerts import Alert
from actserve.cli import arguments as arg
from actserve.cli.alerts import alert_table
from actserve.cli.metrics_page import DEFAULT_PORT, Page, checked_url, read_page
from actserve.cli.output import plain_text, print_json
from actserve.errors import ActserveError, DeadlineExceeded, Unavailable
from actserve.monitors import Monitor, Watch
from actserve.score_histories import ScoreHistory

_ALERTS = 500
"""Of the newest, which rates are counted from."""
_SHOWN_ALERTS = 10
_RATE = timedelta(minutes=10)
"""For which alerts are counted."""
_SCORES_EVERY_S = 60.0
"""The distribution of scores changes by the hour, and takes a call for each monitor."""
_MONITORS = 30
"""Monitors shown, and asked about."""
_CALL_S = 10.0
"""For each question: a server that is slower is as good as gone."""

SHOWN = (
    ("tokens", "actserve_tokens_total", "/s"),
    ("generated", "vllm:generation_tokens_total", "/s"),
    ("runs", "actserve_runs_in_flight", ""),
    ("waiting", "actserve_runs_waiting", ""),
    ("rows read", "actserve_captured_rows_total", "/s"),
    ("bytes read", "actserve_captured_bytes_total", "B/s"),
    ("calls", "grpc_server_handled_total", "/s"),
    ("errors", "actserve_rejections_total", "/s"),
    ("captures reserved", "actserve_capture_reserved_bytes", "B"),
    ("kept", "actserve_kept_bytes", "B"),
    ("tokens scored", "actserve_monitor_tokens_total", "/s"),
    ("alerts stored", "actserve_alerts_stored", ""),
    ("alerts", "actserve_alerts_total", "/s"),
)
"""What is shown of the metrics page, where it has it; what grows, by the second."""


@dataclass
class Seen:
    """What was seen at one time."""

    monitors: Sequence[Monitor] = ()
    alerts: Sequence[Alert] = ()
    histories: dict[str, ScoreHistory] = field(default_factory=dict)
    page: Page | None = None
    before: Page | None = None
    problems: dict[str, str] = field(default_factory=dict)
    """Why something cannot be seen, by what it is."""
    gone_since: datetime | None = None
    """Since when the server does not answer: monitors and alerts are as they were then."""
    back: str = ""
    """That the server answers again, and when it did."""
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def numbers(self) -> dict[str, float]:
        """Those of the metrics page that are known, by what they are."""
        if self.page is None:
            return {}
        found = {
            what: self.page.rate(name, self.before)
            if unit.endswith("/s")
            else self.page.values.get(name)
            for what, name, unit in SHOWN
        }
        return {what: number for what, number in found.items() if number is not None}

    def recent(self, monitor: str) -> list[Alert]:
        """The alerts of a monitor that count for its rate."""
        since = self.time - _RATE
        return [a for a in self.alerts if a.monitor == monitor and a.raise_time >= since]

    def rate(self, monitor: str) -> float:
        """Alerts of a monitor by the minute, over as much of the last minutes as was read."""
        span = _RATE
        if len(self.alerts) >= _ALERTS:  # There may be older ones, which were not read.
            span = min(span, max(self.time - self.alerts[-1].raise_time, timedelta(seconds=1)))
        return len(self.recent(monitor)) / (span.total_seconds() / 60)


class Watcher:
    """Looks again and again, also while the server is gone; what cannot be seen is said and leaves
    the rest as it was."""

    def __init__(self, client: Client, url: str | None) -> None:
        self._client = client
        self._url = url
        self._page: Page | None = None
        self._last = Seen()
        self._asked_scores = float("-inf")

    def look(self) -> Seen:
        last = self._last
        seen = Seen(last.monitors, last.alerts, last.histories, before=self._page, back=last.back)
        try:
            self._ask(seen)
            if last.gone_since:
                gone = (seen.time - last.gone_since).total_seconds()
                seen.back = f"connected again at {seen.time:%H:%M:%S}, after {gone:.0f} seconds"
        except ActserveError as error:
            seen.problems["monitors"] = str(error)
            if isinstance(error, Unavailable | DeadlineExceeded):
                seen.gone_since = last.gone_since or seen.time
        self._last = seen
        if self._url:
            page = read_page(self._url)
            if isinstance(page, str):
                seen.problems["metrics"] = f"{self._url}: {page}"
            else:
                seen.page = self._page = page
        return seen

    def _ask(self, seen: Seen) -> None:
        monitors, alerts = self._client.monitors, self._client.alerts
        seen.monitors = list(islice(monitors.list(timeout=_CALL_S), _MONITORS))
        seen.alerts = list(islice(alerts.list(timeout=_CALL_S), _ALERTS))
        if time.monotonic() - self._asked_scores > _SCORES_EVERY_S:
            seen.histories = {
                each.id: monitors.scores(each, timeout=_CALL_S) for each in seen.monitors
            }
            self._asked_scores = time.monotonic()


def top(
    metrics: Annotated[
        Any,
        typer.Option(
            metavar="URL",
            parser=checked_url,
            help=f"The metrics page; http://localhost:{DEFAULT_PORT}/metrics for a server on this "
            "machine.",
        ),
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, print what was seen, and end.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same as JSON; implies --once.")
    ] = False,
    server: arg.Server = DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show what a server does right now, until Ctrl-C: throughput, queue, captures, monitors with
    their rates, and the newest alerts. A server that is gone is looked for until it is back.

    [bold]Example[/bold]

    [cyan]actserve top --metrics http://gpu-1:9090/metrics[/cyan]
    """
    local = is_local(server)
    url = metrics or (f"http://localhost:{DEFAULT_PORT}/metrics" if local else None)
    with arg.connect(server, model, token, tls) as client:
        watcher = Watcher(client, url)
        console = Console()
        if once or as_json or not console.is_terminal:
            seen = watcher.look()
            if seen.page:  # Of a rate there are two looks.
                time.sleep(min(every, 1.0))
                seen = watcher.look()
            if as_json:
                print_json(_plain(seen))
            else:
                console.print(rendered(seen))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(rendered(watcher.look()), refresh=True)
                time.sleep(every)


def rendered(seen: Seen) -> RenderableType:
    """What was seen, for a terminal."""
    units = {what: unit for what, _, unit in SHOWN}
    numbers = Text("  ").join(
        Text.assemble((f"{what} ", "dim"), (_number(value, units[what]), "bold"))
        for what, value in seen.numbers().items()
    )
    parts: list[RenderableType] = [
        Text(f"actserve  {seen.time:%Y-%m-%d %H:%M:%S} UTC", "bold"),
        *([numbers] if numbers else []),
        *(plain_text(f"no {what}: {why}", "yellow") for what, why in seen.problems.items()),
        *([Text(_gone(seen), "yellow")] if seen.gone_since else []),
        *([Text(seen.back, "dim")] if seen.back and not seen.gone_since else []),
        _monitors(seen),
        Text("newest alerts", "bold"),
        alert_table(list(seen.alerts[:_SHOWN_ALERTS])) if seen.alerts else Text("none", "dim"),
    ]
    return Group(*parts)


def _gone(seen: Seen) -> str:
    since = f"{seen.gone_since:%H:%M:%S}"
    return f"no server since {since}, and looking for it; what is below is as it was then"


def _monitors(seen: Seen) -> RenderableType:
    if not seen.monitors:
        return Text("no monitors", "dim")
    names = ("monitor", "watches", "alerts/min", "upper", "samples this hour", "drift")
    table = Table(*names)
    for each in seen.monitors:
        recent, history = seen.recent(each.id), seen.histories.get(each.id)
        hour = seen.time - timedelta(hours=1)
        samples = sum(h.samples for h in history.hours if h.start_time > hour) if history else 0
        drift = history.drift if history else None
        told = [
            each.id,
            "nothing" if each.paused else "all" if each.watch == Watch() else "some",
            f"{seen.rate(each.id):.3g}",
            str(sum(alert.level == "upper" for alert in recent)),
            str(samples) if history else "",
            "" if drift is None else f"{drift:.3g}",
        ]
        table.add_row(*map(plain_text, told))
    return table


def _plain(seen: Seen) -> dict[str, Any]:
    return {
        "time": seen.time.isoformat(),
        "numbers": seen.numbers(),
        "monitors": [
            {
                "id": each.id,
                "paused": each.paused,
                "alerts": len(seen.recent(each.id)),
                "drift": seen.histories[each.id].drift if each.id in seen.histories else None,
            }
            for each in seen.monitors
        ],
        "alerts": list(seen.alerts[:_SHOWN_ALERTS]),
        "problems": seen.problems,
        "gone_since": seen.gone_since.isoformat() if seen.gone_since else None,
    }


def _number(value: float, unit: str) -> str:
    if "B" not in unit:
        return f"{value:,.4g}{unit}"
    for prefix in ("", "Ki", "Mi", "Gi"):
        if abs(value) < 1024:
            return f"{value:.4g} {prefix}{unit}"
        value /= 1024
    return f"{value:.4g} Ti{unit}"
