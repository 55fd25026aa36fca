"""The commands about monitors: what watches, how it is fitted, and how it is tried before it
does."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actserve._names import named
from actserve.aggregators import aggregator as checked_aggregator
from actserve.cli import arguments as arg
from actserve.cli.examples import read_examples, read_keyed
from actserve.cli.interventions import NAME, array_of
from actserve.cli.monitor_levels import read_level
from actserve.cli.output import plain_text, print_json, printed, say
from actserve.cli.prompts import read_prompts
from actserve.errors import InvalidRequest
from actserve.monitor_fits import method_to_proto
from actserve.monitors import MONITORS, Monitor, Watch
from actserve.probes import Probe
from actserve.sites import Site

monitors = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_INTERRUPTED = 130
"""The exit code of what Ctrl-C ends."""


def _name(text: str) -> str:
    return named(MONITORS, text).name


def _aggregator(text: str) -> str:
    return str(checked_aggregator(text))


def _method(text: str) -> str:
    method_to_proto(text)
    return text


def _probe(text: str) -> Probe:
    """`SITE=VECTOR+BIAS`, where the vector is a `.npy` file or the name of a stored one."""
    site, separator, vector = text.partition("=")
    vector, _, bias = vector.partition("+")
    if not separator:
        raise typer.BadParameter(f"{text!r} is no probe; write it as resid_post.12=toxic+0.5")
    try:
        number = float(bias or 0)
    except ValueError:
        raise typer.BadParameter(f"the bias {bias!r} is not a number") from None
    return Probe(Site.parse(site), vector if NAME.fullmatch(vector) else array_of(vector), number)


_Name = Annotated[str, typer.Argument(metavar="NAME", parser=arg.reader(_name), help="Its name.")]
_NewName = Annotated[
    str,
    typer.Argument(metavar="NAME", parser=arg.reader(_name), help="What it is to be called."),
]
_Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", parser=arg.reader(_name), help="Their names."),
]
_Probes = Annotated[
    list[Any] | None,
    typer.Option(
        "--probe",
        metavar="SITE=VECTOR",
        parser=arg.reader(_probe),
        help="A linear probe: a stored vector's name or a .npy file, and with +0.5 its bias. "
        "Repeat for more, whose numbers are added.",
    ),
]
_Aggregator = Annotated[
    Any,
    typer.Option(
        metavar="HOW",
        parser=arg.reader(_aggregator),
        help="How tokens' numbers become a score: each, mean, max, 'ema(0.5)', "
        "'rolling_mean_max(10)', attention, 'rolling_attention_max(10)'.",
    ),
]
_Level = typer.Option(
    metavar="THRESHOLD[,...]",
    parser=arg.reader(read_level),
    help="A threshold and what happens above it: 0.9,stop or 0.5,flag or 0.7,pause=30; also "
    "explain, webhook=URL and intervene=SITE=VECTOR*4.",
)
_Lower = Annotated[Any, _Level]
_Upper = Annotated[Any, _Level]
_Labels = Annotated[
    list[Any] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", parser=arg.label, help="What it is. Repeat for more."
    ),
]
_OptionalPositions = Annotated[
    Any,
    typer.Option(
        "--positions",
        metavar="POSITIONS",
        parser=arg.read_positions,
        help="Which tokens count: all, prompt, generated, last and so on.",
    ),
]
_NamedOnly = Annotated[bool, typer.Option("--named-only", help="Watch only calls that name it.")]
_EndUsers = Annotated[
    list[str] | None,
    typer.Option(
        "--end-user", metavar="ID", help="Watch only calls for this user. Repeat for more."
    ),
]
_Share = Annotated[
    float | None, typer.Option(help="Watch only this share of calls, above 0 and at most 1.")
]
_Sites = Annotated[
    list[str],
    typer.Option(
        "--site",
        "-s",
        metavar="SITE",
        parser=arg.reader(arg.site),
        help="What to probe, such as resid_post.12, or 'resid_post.*' for the best of all layers. "
        "Repeat for more.",
    ),
]
_Data = Annotated[
    Path,
    typer.Argument(
        exists=True,
        metavar="DATA",
        help="Labelled examples, .jsonl or .parquet: text, prompt or messages, and label; if you "
        "like group and span.",
    ),
]


@monitors.command()
def create(
    name: _NewName,
    probe: _Probes = None,
    aggregator: _Aggregator = None,
    positions: _OptionalPositions = None,
    lower: _Lower = None,
    upper: _Upper = None,
    named_only: _NamedOnly = False,
    end_users: _EndUsers = None,
    share: _Share = None,
    paused: Annotated[bool, typer.Option("--paused", help="Watch nothing for now.")] = False,
    labels: _Labels = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Store a monitor of linear probes, which watches from then on.

    [bold]Example[/bold]

    [cyan]actserve monitors create rude --probe resid_post.12=rude --aggregator mean --upper \
2.5,stop,flag[/cyan]
    """
    if not probe:
        raise typer.BadParameter("give at least one --probe, as in --probe resid_post.12=rude")
    watch = _watch(named_only, end_users, share)
    with arg.connect(server, model, token, tls) as client:
        made = client.monitors.create(
            name,
            probe=probe,
            aggregator=aggregator,
            positions=positions,
            lower=lower,
            upper=upper,
            watch=watch,
            labels=dict(labels or ()),
            paused=paused,
        )
    printed(made, as_json)


def _watch(named_only: bool, end_users: list[str] | None, share: float | None) -> Watch | None:
    """Which calls are watched; None where nothing says so."""
    try:
        watch = Watch(named_only, end_users or (), share)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None
    return None if watch == Watch() else watch


@monitors.command("list")
def list_monitors(
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """List the monitors.

    [bold]Example[/bold]

    [cyan]actserve monitors list[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        found = list(client.monitors.list())
    if as_json:
        print_json(found)
        return
    table = Table("name", "probe", "aggregator", "lower", "upper", "watches", "held-out AUROC")
    for each in found:
        table.add_row(*map(plain_text, _row(each)))
    Console().print(table)


def _row(monitor: Monitor) -> tuple[str, ...]:
    where = monitor.sites[0] if len(monitor.sites) == 1 else f"{len(monitor.sites)} sites"
    report = monitor.fit
    watches = "nothing" if monitor.paused else "" if monitor.watch == Watch() else "some"
    if report and report.work.state != "succeeded":
        watches = f"fit {report.work.state}"
    return (
        monitor.id,
        f"{monitor.kind} {where}" if monitor.sites else "",
        str(monitor.aggregator),
        str(monitor.lower or ""),
        str(monitor.upper or ""),
        watches or "all",
        f"{report.held_out.auroc:.3f}" if report and report.held_out else "",
    )


@monitors.command()
def show(
    name: _Name,
    plot: arg.Plot = None,
    draw: Annotated[bool, typer.Option("--draw", help="Print the ROC curve of its fit.")] = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show a monitor, and how far its fit has come and how well it does.

    [bold]Example[/bold]

    [cyan]actserve monitors show rude[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        _show(client.monitors.get(name), plot, draw=draw, as_json=as_json)


@monitors.command()
def update(
    name: _Name,
    probe: _Probes = None,
    aggregator: _Aggregator = None,
    positions: _OptionalPositions = None,
    lower: _Lower = None,
    upper: _Upper = None,
    no_lower: Annotated[
        bool, typer.Option("--no-lower", help="Take the lower level away.")
    ] = False,
    no_upper: Annotated[
        bool, typer.Option("--no-upper", help="Take the upper level away.")
    ] = False,
    named_only: _NamedOnly = False,
    end_users: _EndUsers = None,
    share: _Share = None,
    all_calls: Annotated[
        bool, typer.Option("--all-calls", help="Watch all calls, as without the three above.")
    ] = False,
    labels: _Labels = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Change a monitor; what is not named stays. Levels, labels and what it watches are replaced as
    a whole.

    [bold]Examples[/bold]

    [cyan]actserve monitors update rude --upper 3.0,stop,flag[/cyan]

    [cyan]actserve monitors update rude --end-user user-7 --share 0.5[/cyan]
    """
    watch = _watch(named_only, end_users, share)
    if all_calls and watch:
        raise typer.BadParameter("--all-calls goes with none of --named-only, --end-user, --share")
    given: dict[str, Any] = {
        "probe": probe,
        "aggregator": aggregator,
        "positions": positions,
        "lower": lower,
        "upper": upper,
        "watch": watch,
        "labels": None if labels is None else dict(labels),
    }
    changes = {key: each for key, each in given.items() if each is not None and each != []}
    changes |= {"lower": None} if no_lower else {}
    changes |= {"upper": None} if no_upper else {}
    changes |= {"watch": None} if all_calls else {}
    with arg.connect(server, model, token, tls) as client:
        printed(client.monitors.update(name, **changes), as_json)


def _paused(paused: bool, names: list[str], *connection: Any) -> None:
    with arg.connect(*connection) as client:
        for name in names:
            client.monitors.update(name, paused=paused)
            say(f"{name} {'watches nothing for now' if paused else 'watches'}")


@monitors.command()
def pause(
    names: _Names,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Let monitors watch nothing for now.

    [bold]Example[/bold]

    [cyan]actserve monitors pause rude[/cyan]
    """
    _paused(True, names, server, model, token, tls)


@monitors.command()
def resume(
    names: _Names,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Let monitors watch: those that were paused, or have just been fitted.

    [bold]Example[/bold]

    [cyan]actserve monitors resume rude[/cyan]
    """
    _paused(False, names, server, model, token, tls)


@monitors.command()
def rm(
    names: _Names,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Delete monitors, and end the work that fits them; their alerts stay.

    [bold]Example[/bold]

    [cyan]actserve monitors rm rude[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        for name in names:
            client.monitors.delete(name)
            say(f"deleted {name}")


@monitors.command()
def fit(
    data: _Data,
    sites: _Sites,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            parser=arg.reader(_name),
            help="What it is to be called; as the file is by default.",
        ),
    ] = None,
    method: Annotated[
        Any,
        typer.Option(
            metavar="METHOD",
            parser=arg.reader(_method),
            help="logistic, mean_difference, streamed, mlp or attention; the first by default.",
        ),
    ] = None,
    aggregator: _Aggregator = None,
    positions: _OptionalPositions = None,
    all_sites: Annotated[
        bool, typer.Option("--all-sites", help="Probe all sites side by side; else the best one.")
    ] = False,
    benign: Annotated[
        Path | None,
        typer.Option(
            help="Texts like those that will be watched, to set thresholds by: .jsonl, .parquet, "
            "or one a line."
        ),
    ] = None,
    longer: Annotated[
        Path | None, typer.Option(help="Longer labelled examples, to see whether it works there.")
    ] = None,
    false_positives: Annotated[
        float | None,
        typer.Option(help="Share of harmless texts above the upper level; 0.001 by default."),
    ] = None,
    lower_false_positives: Annotated[
        float | None, typer.Option(help="The same of the lower level, which else there is not.")
    ] = None,
    plot: arg.Plot = None,
    draw: Annotated[bool, typer.Option("--draw", help="Print the ROC curve.")] = False,
    cancel_on_interrupt: Annotated[
        bool,
        typer.Option("--cancel-on-interrupt", help="Let Ctrl-C end the fit, which else goes on."),
    ] = False,
    chat: arg.Chat = False,
    labels: _Labels = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Make a monitor of labelled examples, and show how well it does on those held out. It watches
    nothing before you resume it.

    A line of DATA: {"text": "You idiot", "label": true, "group": "author-7", "span": "idiot"};
    in place of text a prompt of token ids, or messages.

    [bold]Examples[/bold]

    [cyan]actserve monitors fit rude.jsonl --site 'resid_post.*'[/cyan]

    [cyan]actserve monitors fit rude.jsonl -s resid_post.10:20 --method attention --plot roc.png\
[/cyan]
    """
    examples = read_examples(data, chat)
    extra: dict[str, Any] = {
        "benign": read_prompts(benign, None, chat) if benign else (),
        "longer": read_examples(longer, chat) if longer else (),
    }
    with arg.connect(server, model, token, tls) as client:
        begun = client.monitors.fit(
            name or arg.reader(_name)(data.stem.lower().replace("_", "-")),
            examples,
            sites=sites,
            method=method,
            aggregator=aggregator,
            positions=positions,
            all_sites=all_sites,
            upper_false_positives=false_positives,
            lower_false_positives=lower_false_positives,
            labels=dict(labels or ()),
            **extra,
        )
        try:
            made = begun.wait()
        except KeyboardInterrupt:
            if cancel_on_interrupt:
                begun.cancel()
                say(f"the fit of {begun.monitor.id} was ended")
            else:
                say(f"the fit goes on; actserve monitors show {begun.monitor.id} tells how far")
            raise typer.Exit(_INTERRUPTED) from None
    _show(made, plot, draw=draw, as_json=as_json)
    if not as_json:
        say(f"it watches nothing yet; actserve monitors resume {made.id} lets it")


@monitors.command("test")
def measure(
    name: _Name,
    data: _Data,
    positions: Annotated[
        Any,
        typer.Option(
            "--positions",
            metavar="POSITIONS",
            parser=arg.read_positions,
            help="Which tokens count, in place of the monitor's own: all, last and so on. No token "
            "of an example is a generated one.",
        ),
    ] = None,
    plot: arg.Plot = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Score labelled examples by a monitor, and show how well it tells them apart.

    [bold]Example[/bold]

    [cyan]actserve monitors test rude more.jsonl[/cyan]
    """
    examples = read_examples(data, chat)
    with arg.connect(server, model, token, tls) as client:
        monitor = client.monitors.get(name)
        quality = client.monitors.test(name, examples, positions=positions)
    above = {
        level: quality.above(stored.threshold)
        for level, stored in (("lower", monitor.lower), ("upper", monitor.upper))
        if stored
    }
    if plot:
        figure: Any = quality.plot_roc().figure
        figure.savefig(plot)
    if as_json:
        levels = {
            name: {"recall": recall, "false_positives": false}
            for name, (recall, false) in above.items()
        }
        print_json({**quality.to_json(), "levels": levels})
        return
    printed(quality, False)
    table = Table("level", "threshold", "positive above", "negative above")
    for level, (recall, false) in above.items():
        threshold = getattr(monitor, level).threshold
        table.add_row(level, f"{threshold:.6g}", f"{recall:.1%}", f"{false:.2%}")
    Console().print(table)


@monitors.command()
def replay(
    traffic: Annotated[
        Path,
        typer.Argument(
            exists=True, metavar="TRAFFIC", help="Recorded prompts or conversations, with a key."
        ),
    ],
    candidate: Annotated[
        str, typer.Option(metavar="NAME", parser=arg.reader(_name), help="The new monitor.")
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME", parser=arg.reader(_name), help="The one that watches now."),
    ] = None,
    positions: Annotated[
        Any,
        typer.Option(
            metavar="POSITIONS",
            parser=arg.read_positions,
            help="Which tokens count, in place of each monitor's own: all, last and so on. No "
            "token of what is recorded is a generated one.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to write all scores, .jsonl."),
    ] = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Score recorded prompts by a monitor without acting, and show where two disagree.

    A line of TRAFFIC: {"key": "c-17", "messages": [...]}; or a text or a prompt. A prompt that
    fails says why, and the exit code is 1.

    [bold]Example[/bold]

    [cyan]actserve monitors replay traffic.jsonl --candidate new --against old[/cyan]
    """
    if out and out.suffix != ".jsonl":
        raise typer.BadParameter(f"{out} must end in .jsonl")
    prompts = read_keyed(traffic, chat)
    with arg.connect(server, model, token, tls) as client:
        names = [candidate, *([against] if against else [])]
        found = client.monitors.replay(prompts, names, positions=positions)
    if out:
        arg.write_lines(out, found.to_json()["items"])
        say(f"wrote the scores of {len(found)} prompts to {out}")
    if as_json:
        print_json(found)
    else:
        Console().print(found)
    if found.failed:
        raise typer.Exit(1)


@monitors.command()
def scores(
    name: _Name,
    plot: arg.Plot = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show how the scores of a monitor are distributed, hour by hour, and how far they drift.

    [bold]Example[/bold]

    [cyan]actserve monitors scores rude[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        found = client.monitors.scores(name)
    if plot:
        try:
            figure: Any = found.plot().figure
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        figure.savefig(plot)
    printed(found, as_json)


def _show(monitor: Monitor, plot: Path | None, *, draw: bool, as_json: bool) -> None:
    try:
        if plot:
            monitor.report.plot(plot)
        if draw and not as_json:
            monitor.report.print_plot()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    printed(monitor, as_json)
