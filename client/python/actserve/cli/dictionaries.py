"""The commands about dictionaries: what is there, uploads, and the features of a prompt."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actserve._names import named
from actserve._sync.client import Client
from actserve.cli import arguments as arg
from actserve.cli.output import plain_text, print_json, printed, say
from actserve.dictionaries import DICTIONARIES
from actserve.dictionary_matrices import Dictionary

dictionaries = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


def _dictionary_name(text: str) -> str:
    return named(DICTIONARIES, text).name


_Name = Annotated[
    str, typer.Argument(metavar="NAME", parser=arg.reader(_dictionary_name), help="Its name.")
]


@dictionaries.command("list")
def list_dictionaries(
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """List the dictionaries: those that the server has loaded, and yours.

    [bold]Example[/bold]

    [cyan]actserve dictionaries list[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        found = list(client.dictionaries.list())
    if as_json:
        print_json(found)
        return
    table = Table("name", "kind", "site", "features", "explained", "active")
    for each in found:
        check = each.check
        table.add_row(
            plain_text(each.id),
            plain_text(each.kind.removeprefix("sparse_")),
            plain_text(each.site),
            str(each.features),
            "" if check is None else f"{check.explained:.3f}",
            "" if check is None else f"{check.active_features:.1f}",
        )
    Console().print(table)


@dictionaries.command()
def show(
    name: _Name,
    find: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="List the features whose label holds this, instead."),
    ] = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show what is known of a dictionary, or find features by their labels.

    [bold]Examples[/bold]

    [cyan]actserve dictionaries show smollm2-135m[/cyan]

    [cyan]actserve dictionaries show smollm2-135m --find river[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        if find is None:
            printed(client.dictionaries.get(name), as_json)
            return
        found = list(client.dictionaries.labels(name, find))
    if as_json:
        print_json(found)
        return
    table = Table("feature", "label", "source")
    for each in found:
        table.add_row(str(each.index), plain_text(each.label), plain_text(each.source))
    Console().print(table)


@dictionaries.command()
def upload(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is to be called.")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of SAELens: cfg.json and its weights.")
    ],
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            "-s",
            metavar="SITE",
            parser=arg.reader(arg.site),
            help="Where it reads, if its folder does not say.",
        ),
    ] = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Store a dictionary. If it was cut off, the same command goes on where it was.

    [bold]Example[/bold]

    [cyan]actserve dictionaries upload mine saes/layer-10[/cyan]
    """
    given = Dictionary.from_saelens(folder, site=site)
    with arg.connect(server, model, token, tls) as client:
        printed(client.dictionaries.upload(name, given), as_json)


@dictionaries.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", parser=arg.reader(_dictionary_name), help="Their names."),
    ],
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Delete uploaded dictionaries; what runs with them keeps them.

    [bold]Example[/bold]

    [cyan]actserve dictionaries rm mine[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        for name in names:
            client.dictionaries.delete(name)
            say(f"deleted {name}")


def features(
    prompt: Annotated[str, typer.Argument(help="Text to run the model on.")],
    dictionary: Annotated[
        str | None,
        typer.Option(
            "--dictionary",
            "-d",
            metavar="NAME",
            help="Which dictionary; not needed where there is only one.",
        ),
    ] = None,
    chat: arg.Chat = False,
    positions: arg.PositionsText = "all",
    top: Annotated[int, typer.Option(min=1, help="Features of each token to show.")] = 4,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show the largest features of each token of a prompt.

    [bold]Examples[/bold]

    [cyan]actserve features "The capital of France is"[/cyan]

    [cyan]actserve features "Rivers run." --dictionary smollm2-135m --positions last --top 10[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        name = dictionary or _only(client)
        found = client.features.top(arg.prompt(prompt, chat), name, top, positions=positions)
    if as_json:
        print_json(found)
        return
    table = Table("position", "token", "feature", "value", "label")
    for position, active in found:
        for row, each in enumerate(active):
            table.add_row(
                "" if row else str(position),
                "" if row else Text(repr(found.tokens[position])),
                str(each.index),
                f"{each.value:.4g}",
                plain_text(each.label),
            )
    Console().print(table)


def _only(client: Client) -> str:
    """The name of the only dictionary."""
    there = [each.id for each in client.dictionaries.list()]
    if len(there) != 1:
        raise typer.BadParameter(
            f"name one of the dictionaries with --dictionary: {', '.join(there)}"
            if there
            else "the server has no dictionaries; its operator can load one with --dictionary"
        )
    return there[0]
