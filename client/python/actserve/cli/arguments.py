"""Arguments: options that several commands share, and how their text is read."""

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer

from actserve._channel import DEFAULT_TARGET as DEFAULT_TARGET
from actserve._sync.client import Client
from actserve.cli.interventions import Addition, read_addition, read_when
from actserve.cli.interventions import additions as additions
from actserve.cli.prompts import read_prompts, user_turn
from actserve.errors import InvalidRequest
from actserve.files import SUFFIXES
from actserve.positions import Positions, parsed, positions_to_proto
from actserve.prompts import Prompt
from actserve.readouts import reduction_to_proto
from actserve.sites import parse_sites

T = TypeVar("T")

_CONNECTION = "Connection"


def reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read`, with its refusals as usage errors."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except InvalidRequest as error:
            raise typer.BadParameter(error.message) from None

    return checked


def _positions(text: str) -> Positions:
    """Positions from `last`, `2:8`, `0,3,-1` or `text:France`."""
    positions = parsed(text)
    positions_to_proto(positions)
    return positions


read_positions = reader(_positions)


def site(text: str) -> str:
    """A site, or a pattern of layers, as it is spelled."""
    parse_sites(text)
    return text


def numbers(text: str) -> Any:
    """The numbers of `5,9`, or `all`."""
    if text == "all":
        return text
    if not re.fullmatch(r"-?[0-9]+(,-?[0-9]+)*", text):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 5,9, or all")
    return [int(number) for number in text.split(",")]


def _reduction(text: str) -> str:
    reduction_to_proto(text)
    return text


def label(text: str) -> tuple[str, str]:
    """The key and value of `concept=joy`."""
    key, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text!r} is no label; write it as concept=joy")
    return key, value


def picture(text: str) -> Path:
    """A file to draw into."""
    path = Path(text)
    if path.suffix not in _PICTURES:
        raise typer.BadParameter(f"{text} must end in one of {', '.join(_PICTURES)}")
    return path


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Writes records as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def _out(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{text} must end in one of {', '.join(SUFFIXES)}")
    return path


_PICTURES = (".png", ".svg", ".pdf")

Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", parser=picture, help="Draw it into a file: .png, .svg or .pdf."
    ),
]
Server = Annotated[
    str,
    typer.Option(
        envvar="ACTSERVE_SERVER", help="Address of the server.", rich_help_panel=_CONNECTION
    ),
]
ModelId = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="ACTSERVE_MODEL",
        help="Which model, where a server has several.",
        rich_help_panel=_CONNECTION,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="ACTSERVE_TOKEN",
        help="Bearer token. The variable keeps it out of the process list.",
        rich_help_panel=_CONNECTION,
    ),
]
_TLS_CA, _CLIENT_CERT, _CLIENT_KEY = (
    "ACTSERVE_TLS_CA",
    "ACTSERVE_CLIENT_CERT",
    "ACTSERVE_CLIENT_KEY",
)
Tls = Annotated[
    bool,
    typer.Option(
        "--tls",
        envvar="ACTSERVE_TLS",
        help=f"Use TLS. {_TLS_CA} names a file of authorities in place of the system's, "
        f"{_CLIENT_CERT} and {_CLIENT_KEY} a certificate to show and its key.",
        rich_help_panel=_CONNECTION,
    ),
]

Chat = Annotated[
    bool, typer.Option("--chat", help="Put each prompt to the model as a user's turn.")
]
Sites = Annotated[
    list[str],
    typer.Option(
        "--site",
        "-s",
        metavar="SITE",
        parser=reader(site),
        help="What to fetch, such as resid_post.15 or resid_post.*. Repeat for more.",
    ),
]
LensSites = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        "-s",
        metavar="SITE",
        parser=reader(site),
        help="Residual stream sites, or a pattern such as resid_post.5:20:5; every layer by "
        "default. Repeat for more.",
    ),
]
GeneratedSites = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        "-s",
        metavar="SITE",
        parser=reader(site),
        help="What to read meanwhile, into --out. Repeat for more.",
    ),
]
PositionsText = Annotated[
    Any,
    typer.Option(
        "--positions",
        metavar="POSITIONS",
        parser=read_positions,
        help="Which tokens: all, last, prompt, generated, 2:8, 0,3,-1 or text:France.",
    ),
]
Reduce = Annotated[
    Any,
    typer.Option(
        metavar="HOW",
        parser=reader(_reduction),
        help="Send one row a prompt: that of the last position, or their mean or max.",
    ),
]
_STEER = typer.Option(
    "--steer",
    metavar="VECTOR",
    parser=reader(read_addition),
    help="Add a vector: SITE=FILE.npy*4.0 for 4 times it, FILE*4.0 where the file says the site; "
    "or in the place of the file the name of a stored vector. Repeat for more.",
)
Intervene = Annotated[list[Addition] | None, _STEER]
InterveneRequired = Annotated[list[Addition], _STEER]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="NAME", help="The LoRA adapter that the model runs with."),
]
Condition = Annotated[
    Any,
    typer.Option(
        "--when",
        metavar="CONDITION",
        parser=reader(read_when),
        help="Steer only at tokens where SITE=VECTOR>BOUND holds, or <BOUND: the product of the "
        "row and the vector; with 'max ' before it from the first such token on.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="Prompts: .jsonl, .parquet, or text with one a line; - is standard input.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(help="Where records have the prompt; prompt, text or messages by default."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        parser=_out,
        help=f"Where to write activations; ends in {', '.join(SUFFIXES)}.",
    ),
]


def prompt(text: str, chat: bool) -> Prompt:
    """The prompt that a text is, alone or as a user's turn."""
    return user_turn(text) if chat else text


def prompts(text: str | None, file: Path | None, column: str | None, chat: bool) -> list[Any]:
    """The one prompt that was given, or those of a file."""
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a prompt or --file, not both and not neither")
    if text is not None:
        return [prompt(text, chat)]
    assert file is not None
    return read_prompts(file, column, chat)


def connect(server: str, model: str | None, token: str | None, tls: bool) -> Client:
    """The client that the connection options describe."""
    return Client(server, model=model, token=token, tls=_credentials() if tls else False)


def _credentials() -> bool | grpc.ChannelCredentials:
    """Of the files that the environment names, if it does."""
    authorities, cert, key = (_file_named_by(each) for each in (_TLS_CA, _CLIENT_CERT, _CLIENT_KEY))
    if (cert is None) != (key is None):
        raise typer.BadParameter(f"set both of {_CLIENT_CERT} and {_CLIENT_KEY}, or neither")
    if authorities is None and cert is None:
        return True
    return grpc.ssl_channel_credentials(authorities, key, cert)


def _file_named_by(variable: str) -> bytes | None:
    path = os.environ.get(variable)
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{variable}: {path}: {error.strerror}") from None
