"""The command that measures heads over a corpus."""

from pathlib import Path
from typing import Annotated, Any

import typer

from actserve.cli import arguments as arg
from actserve.cli.output import printed, say, waiting
from actserve.errors import ActserveError
from actserve.heads import Patterns


def heads(
    text: Annotated[str | None, typer.Argument(help="Text to run the model on.")] = None,
    file: arg.PromptFile = None,
    column: arg.Column = None,
    layers: Annotated[
        str, typer.Option("--layers", "-l", metavar="LAYERS", help="Such as 5,9; all by default.")
    ] = "all",
    answers: Annotated[
        list[str] | None,
        typer.Option(
            "--answer", "-a", help="An answer to attribute to heads; give a wrong one as well."
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FOLDER", help="Write HeadVis' data into this folder."),
    ] = None,
    intervene: arg.Intervene = None,
    when: arg.Condition = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Measure every head over a text, or over the texts of a file.

    A prompt that fails counts nowhere and is named, and the exit code is 1.

    [bold]Examples[/bold]

    [cyan]actserve heads "one two three one two three"[/cyan]

    [cyan]actserve heads --file texts.jsonl --column text --export headvis[/cyan]
    """
    prompts = [*arg.prompts(text, file, column, chat)]
    given: Any = None
    if answers:
        given = tuple(answers) if len(answers) > 1 else answers[0]
    with arg.connect(server, model, token, tls) as client, waiting("measuring heads"):
        found = client.heads(
            prompts,
            arg.numbers(layers),
            intervene=arg.additions(client, intervene, when),
            answers=given,
            patterns=None if export is None else Patterns(),
            on_error="return",
        )
    failed = [each for each in found.prompts if isinstance(each, ActserveError)]
    if len(failed) == len(found.prompts):
        raise failed[0]
    printed(found, as_json)
    if export is not None:
        found.export_headvis(export, file.name if file else "")
        if not as_json:
            say(f"wrote {export / 'data'}")
    if failed:
        raise typer.Exit(1)
