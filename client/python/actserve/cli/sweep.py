"""The sweep command: prompts under a grid of interventions, into a table and plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from actserve._show.sweep_cards import sweep_card
from actserve._show.terminal import Printed
from actserve._sweep_requests import checked_answers
from actserve.cli import arguments as arg
from actserve.cli.output import print_json, say
from actserve.cli.sweep_spec import read_spec, sweep_arguments
from actserve.errors import ActserveError
from actserve.sweeps import Sweep, value_names


def _table(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".parquet":
        raise typer.BadParameter(f"{text} must end in .parquet")
    return path


def sweep(
    spec: Annotated[Path, typer.Argument(help="What to try, in YAML.", exists=True)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            parser=_table,
            help="Where to write the table, .parquet; beside SPEC by default.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=arg.picture, help="Draw curves: .png, .svg or .pdf."),
    ] = None,
    heat: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=arg.picture, help="Draw a heat map, site by coefficient."
        ),
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What to print and draw: an answer, a score, perplexity, repetition, "
            "relative_change, or 'good - bad'; the first answer by default.",
        ),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Print the curves.")] = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Run prompts under a grid of interventions, and tabulate and draw what comes of them.

    Cells are written into OUT.partial.jsonl as they come. After a cut the same command goes on
    from there. A cell that fails says why in its place, and the exit code is 1.

    [bold]Example[/bold]

    [cyan]actserve sweep joy.yaml --plot joy.svg --value "good - bad"[/cyan]
    """
    asked = read_spec(spec)
    out = out or spec.with_suffix(".parquet")
    partial = out.with_name(f"{out.stem}.partial.jsonl")
    with arg.connect(server, model, token, tls) as client:
        try:
            arguments = arg.reader(lambda _: sweep_arguments(asked, client))("")
            _check_value(value, arguments)
            found = client.sweep(partial=partial, **arguments)
        except (ActserveError, KeyboardInterrupt):
            if partial.exists():
                say(f"{partial} has the cells that came; the same command goes on from there")
            raise
        except (TypeError, ValueError) as error:  # Of a field that takes something else.
            raise typer.BadParameter(str(error)) from None
    found.save(out)
    partial.unlink(missing_ok=True)
    say(f"wrote {len(found)} cells to {out}")
    _show(found, value, plot, heat, draw=draw and not as_json)
    if as_json:
        print_json(found)
    elif not draw:
        Console().print(Printed(sweep_card(found, value)))
    if found.failed:
        raise typer.Exit(1)


def _check_value(value: str | None, arguments: Mapping[str, Any]) -> None:
    """Whether cells can have it, before any is run."""
    if value is None:
        return
    named = checked_answers(arguments.get("answers", ()))
    there = [*named, *arguments.get("scores", {}), "repetition"]
    if arguments.get("perplexity"):
        there.append("perplexity")
    if arguments.get("variants"):
        there.append("relative_change")
    value_names(value, there)


def _show(
    found: Sweep, value: str | None, plot: Path | None, heat: Path | None, *, draw: bool
) -> None:
    try:
        for path, drawn in ((plot, found.plot), (heat, found.plot_heat)):
            if path:
                figure: Any = drawn(value).figure
                figure.savefig(path)
        if draw:
            found.print_plot(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
