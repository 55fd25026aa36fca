"""The commands."""

import errno
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from actserve import __version__
from actserve._show.token_text import harmless
from actserve.cli import arguments as arg
from actserve.cli.alerts import alerts
from actserve.cli.dictionaries import dictionaries, features
from actserve.cli.explain import explain
from actserve.cli.graph import graph
from actserve.cli.heads import heads
from actserve.cli.monitors import monitors
from actserve.cli.output import plain_text, print_json, say, write, write_any_character
from actserve.cli.pairs import pairs
from actserve.cli.studies import attention, compare, lens, patch, score
from actserve.cli.sweep import sweep
from actserve.cli.top import top
from actserve.cli.vectors import vectors
from actserve.errors import ActserveError
from actserve.events import Tokens
from actserve.files import save
from actserve.models import Model
from actserve.results import Activations
from actserve.sites import SPELLINGS, HookPoint


class _Commands(TyperGroup):
    """Turns what can go wrong into one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        write_any_character()
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ActserveError as error:
            problem = str(error)
        except OSError as error:
            if error.errno == errno.EPIPE:  # The reader of a pipe has left; not an error.
                raise
            problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except typer.BadParameter as error:  # Which may name what a file says.
            error.message = harmless(error.message)
            raise
        say(Text("error: ", "bold red") + plain_text(problem))
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fetch activations of a served language model, explain them in words, and steer it."""


@app.command()
def models(
    server: arg.Server = arg.DEFAULT_TARGET,
    token: arg.Token = None,
    tls: arg.Tls = False,
    as_json: arg.Json = False,
) -> None:
    """List the served models and their hook points.

    [bold]Example[/bold]

    [cyan]actserve models --server localhost:50051[/cyan]
    """
    with arg.connect(server, None, token, tls) as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    table = Table("model", "architecture", "layers", "width", "tokens", "type")
    for model in found:
        table.add_row(
            plain_text(model.id),
            plain_text(model.architecture),
            str(model.layer_count),
            str(model.width),
            str(model.limits.max_sequence_tokens),
            plain_text(model.element_type),
        )
    console = Console()
    console.print(table, *map(_hook_points, found), *(_nlas(each) for each in found if each.nlas))


def _hook_points(model: Model) -> Table:
    """What can be captured and changed, as sites are written, with L for the layer."""
    table = Table(
        "site", "width", "heads", "limits", title=plain_text(f"hook points of {model.id}")
    )
    for name, how in model.hook_points.items():
        site, *_ = SPELLINGS[HookPoint(name)]
        limits = how.unserved_reason and f"not served: {how.unserved_reason}"
        limits = limits or (how.unchangeable_reason and f"no changes: {how.unchangeable_reason}")
        table.add_row(
            site.format(layer="L"), str(how.width or ""), str(how.heads or ""), plain_text(limits)
        )
    return table


def _nlas(model: Model) -> Table:
    """What explains its activations."""
    table = Table(
        "nla", "site", "family", "can", "baselines", title=plain_text(f"NLAs of {model.id}")
    )
    for nla in model.nlas:
        can = {
            "explain": nla.verbalizes,
            "answer questions": nla.answers_questions,
            "reconstruct": nla.reconstructs,
        }
        table.add_row(
            plain_text(nla.id),
            plain_text(nla.site),
            plain_text(nla.family),
            ", ".join(name for name, able in can.items() if able),
            plain_text(", ".join(nla.baselines)),
        )
    return table


@app.command()
def tokenize(
    prompt: Annotated[str, typer.Argument(help="Text to tokenize.")],
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show a prompt as the model sees it, and where each token comes from.

    [bold]Examples[/bold]

    [cyan]actserve tokenize "The capital of France is"[/cyan]

    [cyan]actserve tokenize "What is the capital of France?" --chat[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        tokenized = client.tokenize(arg.prompt(prompt, chat))
    if as_json:
        print_json(tokenized)
        return
    sources = tokenized.sources
    columns: dict[str, list[str | Text]] = {
        "position": [str(position) for position in range(len(tokenized))],
        "id": [str(token_id) for token_id in tokenized.token_ids],
        # Quoted, so that spaces and line breaks show; as Text, since brackets are markup to rich.
        "token": [Text(repr(text)) for text in tokenized.tokens],
        "turn": ["" if source.turn is None else str(source.turn) for source in sources],
        "role": [plain_text(source.role) for source in sources],
        "characters": [
            "" if source.start is None else f"{source.start}:{source.end}" for source in sources
        ],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(*shown)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    Console().print(table)


@app.command()
def fetch(
    sites: arg.Sites,
    prompt: Annotated[str | None, typer.Argument(help="Text to run the model on.")] = None,
    file: arg.PromptFile = None,
    column: arg.Column = None,
    chat: arg.Chat = False,
    positions: arg.PositionsText = "all",
    reduce: arg.Reduce = None,
    intervene: arg.Intervene = None,
    when: arg.Condition = None,
    adapter: arg.Adapter = None,
    out: arg.Out = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Fetch activations of a prompt, or of many, into a file or as a summary.

    The file holds one row for each prompt and position, or for each prompt with --reduce.

    [bold]Examples[/bold]

    [cyan]actserve fetch "The capital of France is" --site resid_post.15 --out acts.npz[/cyan]

    [cyan]actserve fetch --file prompts.txt -s resid_post.15 --positions last -o acts.parquet[/cyan]

    [cyan]actserve fetch --file prompts.jsonl -s resid_post.15 --reduce mean -o means.npz[/cyan]
    """
    prompts = arg.prompts(prompt, file, column, chat)
    with arg.connect(server, model, token, tls) as client:
        many: Any = client.fetch(
            prompts,
            sites,
            positions=positions,
            reduce=reduce,
            intervene=arg.additions(client, intervene, when),
            adapter=adapter,
        )
    if out:
        _write(out, many, model)
    if as_json:
        print_json(many[0] if prompt is not None else many)
    elif not out:
        Console().print(_summary(many))


for command in (
    lens,
    attention,
    patch,
    score,
    heads,
    compare,
    sweep,
    explain,
    features,
    graph,
    top,
):
    app.command()(command)
app.add_typer(vectors, name="vectors", help="Stored vectors: what is there, files, new ones.")
app.add_typer(
    dictionaries,
    name="dictionaries",
    help="Dictionaries: sparse autoencoders and transcoders that are there, and uploads.",
)
app.add_typer(
    monitors, name="monitors", help="Monitors: what watches generation, fitted and tried."
)
app.add_typer(
    pairs, name="pairs", help="Pairs of NLAs, for operators: what can be loaded, and unloaded."
)
app.add_typer(alerts, name="alerts", help="Alerts of monitors: followed, listed and decided about.")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    chat: arg.Chat = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="Zero is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling, in (0, 1].")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Off the logits of tokens already generated, -2 to 2.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="The same, as often as they were generated.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A string that ends the output; repeatable.")
    ] = None,
    bad_word: Annotated[
        list[str] | None, typer.Option(help="A word not to generate; repeatable.")
    ] = None,
    intervene: arg.Intervene = None,
    when: arg.Condition = None,
    adapter: arg.Adapter = None,
    monitor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A monitor that watches this call; repeatable."),
    ] = None,
    end_user: Annotated[
        str | None, typer.Option(metavar="ID", help="For whom, as alerts will tell.")
    ] = None,
    sites: arg.GeneratedSites = None,
    positions: arg.PositionsText = "all",
    out: arg.Out = None,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Continue a prompt, steered, watched and captured if you like. Standard error tells of alerts,
    and where a monitor has stopped it.

    [bold]Examples[/bold]

    [cyan]actserve generate "I think the movie was" --max-tokens 40[/cyan]

    [cyan]actserve generate "I think the movie was" --steer resid_post.15=joy.npy*4.0[/cyan]

    [cyan]actserve generate "I think" --site resid_post.20 --out acts.safetensors[/cyan]
    """
    if bool(sites) != bool(out):
        raise typer.BadParameter("--site and --out go together: what to read, and into which file")
    sampling: Any = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "stop": stop,
        "bad_words": bad_word,
    }
    with arg.connect(server, model, token, tls) as client:
        stream = client.stream(
            arg.prompt(prompt, chat),
            sites or (),
            intervene=arg.additions(client, intervene, when),
            adapter=adapter,
            positions=positions,
            monitors=monitor or (),
            end_user=end_user,
            collect=True,
            **sampling,
        )
        text = ""
        try:
            for event in stream:
                if isinstance(event, Tokens) and not as_json:
                    text = event.text or text
                    write(event.text)
        finally:
            if text:  # The shell's prompt, or an error, begins on a line of its own.
                print()
    generation = stream.result()
    if as_json:
        print_json(generation)
    for alert in generation.alerts:
        say(f"{alert.monitor} {alert.level} {alert.score:.4g} at {alert.position}")
    if generation.finish_reason == "monitor":
        say(f"stopped by the monitor {generation.stopped_by}")
    if out:
        _write(out, [generation.activations], model)


def _write(path: Path, many: list[Activations], model: str | None) -> None:
    save(path, many, model=model or "")
    rows = sum(len(one.positions) for one in many)
    say(f"wrote {rows} rows of {', '.join(many[0].sites) if many else 'nothing'} to {path}")


def _summary(many: list[Activations]) -> Table:
    """Each row by its length: enough to see that there is something, and where."""
    sites = many[0].sites if many else ()
    table = Table("prompt", "position", "token", *(f"|{site}|" for site in sites))
    for index, one in enumerate(many):
        norms = [np.linalg.norm(one[site], axis=1) for site in sites]
        for row, position in enumerate(one.positions):
            lengths = (f"{norm[row]:.4g}" for norm in norms)
            token = Text(repr(one.tokens[position]))
            table.add_row(str(index), str(position), token, *lengths)
    return table
