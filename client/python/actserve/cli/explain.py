"""The explain command: what the model thinks at each token, in words."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actserve._sync.client import Client
from actserve.cli import arguments as arg
from actserve.cli.output import plain_text, print_json, say
from actserve.cli.prompts import read_prompts
from actserve.events import ExplainStarted
from actserve.explained_corpora import ExplainedCorpus
from actserve.explanations import ExplainedText, Explanation, Score
from actserve.nlas import nla_id

_BAR = 10
"""Characters of a whole bar."""


def explain(
    prompt: Annotated[str | None, typer.Argument(help="Text to run the model on.")] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            "-c",
            metavar="FILE",
            help="Prompts: .jsonl, .parquet, or text with one a line; - is standard input.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where to write those of a corpus."),
    ] = None,
    column: arg.Column = None,
    positions: arg.PositionsText = "all",
    nla: Annotated[
        str | None, typer.Option(metavar="ID", help="Which NLA, where a server has several.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", "-n", min=1, help="Explanations of each token.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Show the best scored of the samples alone.")
    ] = False,
    question: Annotated[
        str | None, typer.Option(help="What to ask, of NLAs that answer questions.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Zero is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show what the model thinks at each token, in words: natural language autoencoders.

    A model writes the explanations, and details are often wrong. Where the NLA can reconstruct,
    each one has a score: how well the activation can be told from the text.

    [bold]Examples[/bold]

    [cyan]actserve explain "The capital of France is"[/cyan]

    [cyan]actserve explain "The capital of France is" --positions last --samples 8 --best[/cyan]

    [cyan]actserve explain "The capital of France is" --json > explanations.json[/cyan]

    With --corpus the explanations of many prompts go into Parquet files, --out/explanations. If it
    was cut off, the same command goes on where it was; a prompt that is refused is told, the
    others go on, and the exit code is 1.

    [cyan]actserve explain --corpus prompts.jsonl --out explained --positions last[/cyan]
    """
    if (prompt is None) == (corpus is None) or (corpus is None) != (out is None):
        raise typer.BadParameter("give either a prompt, or --corpus with --out")
    asked = {
        "nla": nla,
        "positions": positions,
        "samples": samples,
        "best": best,
        "question": question,
        "temperature": temperature,
        "seed": seed,
    }
    if corpus is not None and out is not None:
        prompts = read_prompts(corpus, column, chat)
        with arg.connect(server, model, token, tls) as client:
            asked["score"] = _reconstructs(client, nla)
            found = client.explain_corpus(prompts, out, **asked)
        _told(found, as_json)
        return
    assert prompt is not None
    with arg.connect(server, model, token, tls) as client:
        asked["score"] = _reconstructs(client, nla)
        explained = _explain(client, prompt=arg.prompt(prompt, chat), **asked)
    if as_json:
        print_json(_tokens(explained))
    else:
        Console().print(_table(explained))


def _told(found: ExplainedCorpus, as_json: bool) -> None:
    """What came of a corpus. Exits with 1 if a prompt has failed."""
    failed = found.failed
    if as_json:
        print_json({"nla": found.of.nla, "site": found.of.site, "failed": failed})
    for each in failed:
        say(plain_text(f"prompt {each.key}: {each.message}", "red"))
    say(f"explained {found.prompts} prompts in {found.folder / 'explanations'}")
    if failed:
        raise typer.Exit(1)


def _reconstructs(client: Client, nla: str | None) -> bool:
    """Whether the NLA that will explain can score; False if the server will refuse to choose."""
    wanted = nla and nla_id(nla)
    nlas = [each for model in client.models() for each in model.nlas]
    found = [each for each in nlas if wanted in (None, each.id)]
    return len(found) == 1 and found[0].reconstructs


def _explain(client: Client, **asked: Any) -> ExplainedText:
    """What `Client.explain_text` does, but with a count of what is done: a token takes seconds on a
    small machine."""
    stream = client.explain_text_stream(**asked)
    console = Console(stderr=True)
    with console.status("running the prompt") as status:
        rows, done = 0, set[int]()
        for event in stream:
            match event:
                case ExplainStarted():
                    rows = event.rows
                case Explanation():
                    done.add(event.row)
            status.update(f"explained {len(done)} of {rows} tokens")
    return stream.result()


def _table(explained: ExplainedText) -> Table:
    scores = [each.score for each in explained.explanations if each.score]
    relative = any(score.variance_explained is not None for score in scores)
    flagged = any(each.flags for each in explained.explanations)
    table = Table("position", "token", show_lines=True)
    table.add_column("explanation", overflow="fold")
    if scores:
        table.add_column("variance explained" if relative else "cosine", no_wrap=True)
    if flagged:
        table.add_column("flags")
    for token, each in explained:
        # Quoted, so that spaces and line breaks show; as Text, since brackets are markup to rich.
        cells: list[str | Text] = [str(each.position), Text(repr(token)), plain_text(each.text)]
        cells += [_bar(each.score, relative)] if scores else []
        cells += [plain_text("\n".join(each.flags).replace("_", " "), "yellow")] if flagged else []
        table.add_row(*cells)
    return table


def _bar(score: Score | None, relative: bool) -> Text:
    """A score as a number and as the part of a bar that it fills; none if it is negative."""
    if score is None:
        return Text()
    value = score.variance_explained if relative else score.cosine
    if value is None:
        return Text()
    eighths = round(8 * _BAR * min(max(value, 0.0), 1.0))
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return Text(f"{value:6.3f} ") + Text(bar.ljust(_BAR), "green")


def _tokens(explained: ExplainedText) -> dict[str, Any]:
    """Every detail, by token."""
    return {
        "nla": explained.nla,
        "site": explained.site,
        "tokens": [
            {
                "position": position,
                "id": explained.token_ids[position],
                "token": explained.tokens[position],
                "explanations": [each for each in explained.explanations if each.row == row],
            }
            for row, position in enumerate(explained.positions)
        ],
    }
