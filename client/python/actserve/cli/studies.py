"""The commands that ask what a prompt would say, attends to and depends on."""

from typing import Annotated, Any

import typer

from actserve.cli import arguments as arg
from actserve.cli.output import printed, waiting
from actserve.errors import ActserveError

_Heads = Annotated[
    str, typer.Option("--heads", metavar="HEADS", help="Query heads, such as 3,5; all by default.")
]


def lens(
    prompt: Annotated[str, typer.Argument(help="Text to run the model on.")],
    sites: arg.LensSites = None,
    top_k: Annotated[
        int,
        typer.Option("--top-k", "-k", min=1, max=1000, help="How many likely tokens to report."),
    ] = 5,
    tokens: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="A token to report on, such as ' Paris'. Repeatable."),
    ] = None,
    positions: arg.PositionsText = "all",
    intervene: arg.Intervene = None,
    when: arg.Condition = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show what the model would say next at each depth: the logit lens.

    [bold]Examples[/bold]

    [cyan]actserve lens "The capital of France is"[/cyan]

    [cyan]actserve lens "The capital of France is" -s resid_post.20:30:2 -t " Paris"[/cyan]
    """
    with arg.connect(server, model, token, tls) as client, waiting("running the prompt"):
        found = client.logit_lens(
            arg.prompt(prompt, chat),
            sites or "resid_post.*",
            top_k=top_k,
            tokens=tokens or (),
            positions=positions,
            intervene=arg.additions(client, intervene, when),
        )
    printed(found, as_json)


def attention(
    prompt: Annotated[str, typer.Argument(help="Text to run the model on.")],
    layers: Annotated[
        str, typer.Option("--layers", "-l", metavar="LAYERS", help="Such as 5,9; all by default.")
    ] = "all",
    heads: _Heads = "all",
    intervene: arg.Intervene = None,
    when: arg.Condition = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show how every token attends to those before it.

    [bold]Example[/bold]

    [cyan]actserve attention "The cat sat on the mat. The cat" --layers 9 --heads 1,4[/cyan]
    """
    with arg.connect(server, model, token, tls) as client, waiting("running the prompt"):
        found = client.attention(
            arg.prompt(prompt, chat),
            arg.numbers(layers),
            arg.numbers(heads),
            intervene=arg.additions(client, intervene, when),
        )
    printed(found, as_json)


def patch(
    clean: Annotated[str, typer.Argument(help="The prompt whose answer is right.")],
    corrupt: Annotated[str, typer.Argument(help="The prompt that is patched; as many tokens.")],
    answers: Annotated[
        list[str],
        typer.Option(
            "--answer", "-a", help="The right answer, such as ' Paris'; give a wrong one as well."
        ),
    ],
    sites: arg.LensSites = None,
    positions: Annotated[
        Any,
        typer.Option(
            "--positions",
            metavar="POSITIONS",
            parser=arg.read_positions,
            help="Which positions to patch, one at a time: all, last, 2:8 or 0,3,-1.",
        ),
    ] = "all",
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show which rows carry the answer: those of one prompt put into a run of another.

    [bold]Example[/bold]

    [cyan]actserve patch "Paris is in" "Rome is in" -a " France" -a " Italy"[/cyan]
    """
    given: Any = answers[0] if len(answers) == 1 else tuple(answers)
    with arg.connect(server, model, token, tls) as client, waiting("running the patches"):
        found = client.patch(
            arg.prompt(clean, chat),
            arg.prompt(corrupt, chat),
            sites or "resid_post.*",
            positions,
            answers=given,
            progress=False,
        )
    printed(found, as_json)


def score(
    text: Annotated[str | None, typer.Argument(help="Text to score.")] = None,
    file: arg.PromptFile = None,
    column: arg.Column = None,
    intervene: arg.Intervene = None,
    when: arg.Condition = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show how likely a text is to the model, token by token, or each text of a file.

    A text that cannot be scored says why in its place, and the exit code is 1.

    [bold]Examples[/bold]

    [cyan]actserve score "The capital of France is Paris"[/cyan]

    [cyan]actserve score --file texts.jsonl --column text --json > scores.json[/cyan]
    """
    texts = arg.prompts(text, file, column, chat)
    with arg.connect(server, model, token, tls) as client:
        found: list[Any] = client.score(
            texts, intervene=arg.additions(client, intervene, when), on_error="return"
        )
    if text is not None and isinstance(found[0], ActserveError):
        raise found[0]
    printed(found[0] if text is not None else found, as_json)
    if any(isinstance(each, ActserveError) for each in found):
        raise typer.Exit(1)


def compare(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    intervene: arg.InterveneRequired,
    when: arg.Condition = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 40,
    temperature: Annotated[float, typer.Option(help="Zero is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show what the model says plain and steered, side by side, and where they part.

    [bold]Examples[/bold]

    [cyan]actserve compare "I think the movie was" --steer joy*4.0[/cyan]

    [cyan]actserve compare "I think the movie was" --steer resid_post.15=joy.npy*4.0[/cyan]

    [cyan]actserve compare "I think" --steer joy*4 --when "resid_post.8=films>1.5"[/cyan]
    """
    with arg.connect(server, model, token, tls) as client, waiting("generating"):
        found = client.compare(
            arg.prompt(prompt, chat),
            arg.additions(client, intervene, when),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
    printed(found, as_json)
