"""The commands about stored vectors: what is there, in and out of files, and new ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actserve._checks import number_of
from actserve.cli import arguments as arg
from actserve.cli.interventions import counted
from actserve.cli.output import plain_text, print_json, printed, say
from actserve.cli.prompts import read_prompts
from actserve.errors import InvalidRequest
from actserve.sites import Site, SitePattern, parse_sites
from actserve.steering_vectors import SteeringVector
from actserve.stored_vectors import StoredRow, VectorTerm, stored, vector_method
from actserve.vector_files import load_vectors, save_vectors

vectors = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

_SUFFIXES = ".safetensors, .npz, .npy, .gguf or .json"


def _method(text: str) -> str:
    vector_method(text)
    return text


def _term(text: str) -> VectorTerm:
    return VectorTerm(*counted(text))


def _vector_name(text: str) -> str:
    return stored(text).name


_Name = Annotated[
    str, typer.Argument(metavar="NAME", parser=arg.reader(_vector_name), help="Its name.")
]
_NewName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", parser=arg.reader(_vector_name), help="What it is to be called."
    ),
]
_Labels = Annotated[
    list[Any] | None,
    typer.Option(
        "--label",
        metavar="KEY=VALUE",
        parser=arg.label,
        help="What it is, for list. Repeat for more.",
    ),
]


@vectors.command("list")
def list_vectors(
    labels: Annotated[
        list[Any] | None,
        typer.Option(
            "--label",
            metavar="KEY=VALUE",
            parser=arg.label,
            help="Only vectors with this label. Repeat for more.",
        ),
    ] = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """List the stored vectors.

    [bold]Example[/bold]

    [cyan]actserve vectors list --label concept=joy[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        found = list(client.vectors.list(dict(labels or ())))
    if as_json:
        print_json(found)
        return
    table = Table("name", "sites", "width", "norm", "held-out AUROC", "labels")
    for vector in found:
        best = vector.best
        auroc = "" if best.held_out_auroc is None else f"{best.held_out_auroc:.3f}"
        labelled = ", ".join(f"{key}={value}" for key, value in vector.labels.items())
        table.add_row(
            plain_text(vector.id),
            plain_text(_ends(vector.rows)),
            str(vector.width),
            f"{best.norm:.4g}",
            auroc,
            plain_text(labelled),
        )
    Console().print(table)


@vectors.command()
def show(
    name: _Name,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show what is known of a vector, row by row.

    [bold]Example[/bold]

    [cyan]actserve vectors show joy[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        printed(client.vectors.get(name), as_json)


@vectors.command("import")
def import_vector(
    name: _NewName,
    file: Annotated[Path, typer.Argument(help=f"Its file: {_SUFFIXES}.")],
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            "-s",
            metavar="SITE",
            parser=arg.reader(arg.site),
            help="Where its rows belong, for files that do not say it. Repeat for more.",
        ),
    ] = None,
    labels: _Labels = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Store the vector of a file: of ours, of numpy, of llama.cpp and repeng, of Neuronpedia.

    [bold]Examples[/bold]

    [cyan]actserve vectors import joy joy.gguf[/cyan]

    [cyan]actserve vectors import joy joy.npy --site resid_post.12 --label concept=joy[/cyan]
    """
    where = _plain_sites(sites)
    with arg.connect(server, model, token, tls) as client:
        try:
            rows = load_vectors(file, where or None)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        printed(client.vectors.store(name, rows, labels=dict(labels or ())), as_json)


@vectors.command()
def export(
    name: _Name,
    file: Annotated[Path, typer.Argument(help=f"Where to write it: {_SUFFIXES}.")],
    called: Annotated[
        str,
        typer.Option(
            "--called",
            metavar="MODEL",
            help="What the format calls the model: of .gguf its type, such as llama, and of .json "
            "its id at Neuronpedia.",
        ),
    ] = "",
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            "-s",
            metavar="SITE",
            parser=arg.reader(arg.site),
            help="Only its row of this site; all by default. Repeat for more.",
        ),
    ] = None,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Write a stored vector into a file.

    [bold]Example[/bold]

    [cyan]actserve vectors export joy joy.gguf --called llama[/cyan]

    [cyan]actserve vectors export joy joy.json --site resid_post.12 --called gemma-2-2b[/cyan]
    """
    wanted = _plain_sites(sites)
    with arg.connect(server, model, token, tls) as client:
        vector = client.vectors.get(name, elements=True)
    rows = vector.vectors()
    if missing := [site for site in wanted if site not in {row.site for row in rows}]:
        raise typer.BadParameter(f"{name} has no row for {missing[0]}; it has {_ends(rows)}")
    rows = [row for row in rows if not wanted or row.site in wanted]
    try:
        save_vectors(file, rows, model=called)
    except InvalidRequest:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    say(f"wrote {number_of(len(rows), 'row')} of {_ends(rows)} to {file}")


@vectors.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", parser=arg.reader(_vector_name), help="Their names."),
    ],
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Delete stored vectors; what runs with them keeps them.

    [bold]Example[/bold]

    [cyan]actserve vectors rm joy anger[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        for name in names:
            client.vectors.delete(name)
            say(f"deleted {name}")


@vectors.command()
def create(
    name: _NewName,
    positive: Annotated[
        Path,
        typer.Option(
            "--positive", "-p", help="Prompts that have it: .jsonl, .parquet, or one a line."
        ),
    ],
    negative: Annotated[
        Path, typer.Option("--negative", "-n", help="Prompts that lack it, in a file like that.")
    ],
    sites: arg.Sites,
    method: Annotated[
        Any,
        typer.Option(
            metavar="METHOD",
            parser=arg.reader(_method),
            help="mean_difference, pca or logistic_regression; the first by default.",
        ),
    ] = None,
    positions: Annotated[
        Any,
        typer.Option(
            "--positions",
            metavar="POSITIONS",
            parser=arg.read_positions,
            help="Which tokens of each prompt count; the last by default.",
        ),
    ] = None,
    column: arg.Column = None,
    chat: arg.Chat = False,
    labels: _Labels = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Make a vector of prompts that have something and of others that lack it, at one site or at
    many, which are ranked.

    [bold]Example[/bold]

    [cyan]actserve vectors create joy -p liked.txt -n hated.txt --site resid_post.5:20[/cyan]
    """
    having, lacking = (read_prompts(each, column, chat) for each in (positive, negative))
    with arg.connect(server, model, token, tls) as client:
        made = client.vectors.create(
            name,
            having,
            lacking,
            sites,
            method=method,
            positions=positions,
            labels=dict(labels or ()),
        )
    printed(made, as_json)
    if not as_json and len(made.rows) > 1 and made.best.held_out_auroc is not None:
        say(f"best at {', '.join(row.site for row in made.ranked()[:3])}")


@vectors.command()
def combine(
    name: _NewName,
    terms: Annotated[
        list[Any],
        typer.Argument(
            metavar="VECTOR*COEFFICIENT...", parser=arg.reader(_term), help="What is added up."
        ),
    ],
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            parser=arg.reader(_vector_name),
            help="A vector to make the sum orthogonal to. Repeat for more.",
        ),
    ] = None,
    norm: Annotated[float | None, typer.Option(help="The norm that each row is to have.")] = None,
    labels: _Labels = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Compute a vector from stored ones.

    [bold]Example[/bold]

    [cyan]actserve vectors combine calm joy anger*-0.5 --without arousal --norm 1[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        made = client.vectors.combine(
            name, terms, without=without or (), norm=norm, labels=dict(labels or ())
        )
    printed(made, as_json)


def _plain_sites(sites: list[str] | None) -> tuple[Site, ...]:
    """The sites that --site names, which are rows one by one."""
    named: tuple[Any, ...] = parse_sites(sites) if sites else ()
    if any(isinstance(each, SitePattern) for each in named):
        raise typer.BadParameter("name each site by itself, so that it is known which row is which")
    return named


def _ends(rows: Sequence[StoredRow | SteeringVector]) -> str:
    """The sites of rows, or the ends of them if there are many."""
    sites = [str(row.site) for row in rows]
    if len(sites) > 3:
        return f"{sites[0]}, ..., {sites[-1]} ({len(sites)})"
    return ", ".join(sites)
