"""The commands about pairs of NLAs, for operators: what can be loaded, loading, unloading."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from actserve._names import named
from actserve.cli import arguments as arg
from actserve.cli.output import plain_text, print_json, printed, say
from actserve.nla_pairs import NLA_PAIRS

pairs = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


def _pair_name(text: str) -> str:
    return named(NLA_PAIRS, text).name


_Name = Annotated[
    str, typer.Argument(metavar="NAME", parser=arg.reader(_pair_name), help="Its name.")
]
_Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Return when it is done, or when it has begun.")
]


@pairs.command("list")
def list_pairs(
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """List the pairs that the server may load, and those that it has.

    [bold]Example[/bold]

    [cyan]actserve pairs list[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        found = list(client.nla_pairs.list())
    if as_json:
        print_json(found)
        return
    table = Table("pair", "state", "calls", "loading")
    for each in found:
        work, told = each.loading, ""
        if work is not None:
            told = f"{work.state}, {work.steps_done} of {work.steps or '?'} engines"
            told += f": {work.error.message}" if work.error else ""
        table.add_row(
            plain_text(each.id), plain_text(each.state), str(each.running_calls), plain_text(told)
        )
    Console().print(table)


@pairs.command()
def load(
    name: _Name,
    wait: _Wait = True,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Load a pair beside those that there are, which takes minutes.

    [bold]Example[/bold]

    [cyan]actserve pairs load smollm2-135m[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        pair = client.nla_pairs.load(name, wait=wait, timeout=None)
    if as_json:
        printed(pair, as_json)
    else:
        say(f"{pair.id} is {pair.state}")


@pairs.command()
def unload(
    name: _Name,
    wait: _Wait = True,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Unload a pair, once it has finished what it works on.

    [bold]Example[/bold]

    [cyan]actserve pairs unload smollm2-135m[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        pair = client.nla_pairs.unload(name, wait=wait)
    if as_json:
        printed(pair, as_json)
    else:
        say(f"{pair.id} is {pair.state}")
