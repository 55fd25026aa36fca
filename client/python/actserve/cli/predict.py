"""The predict command: what the model would say next, and how likely what is said was."""

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actserve.cli import arguments as arg
from actserve.predictions import Predict, SitePredictions
from actserve.results import Activations


def predict(
    prompt: Annotated[str, typer.Argument(help="Text to run the model on.")],
    sites: arg.PredictSites = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, max=1000, help="How many likely tokens to show.")
    ] = 5,
    score: Annotated[
        bool, typer.Option("--score", help="Show how likely each token of the prompt was instead.")
    ] = False,
    chat: arg.Chat = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Show the likeliest next tokens after each token, at any depth: the logit lens.

    With --score, the log probability of each token given those before it, and their sum.

    [bold]Examples[/bold]

    [cyan]actserve predict "The capital of France is" --top-k 3[/cyan]

    [cyan]actserve predict "The capital of France is" -s resid_post.20 -s final_norm[/cyan]

    [cyan]actserve predict "The capital of France is Paris" --score[/cyan]
    """
    asked = Predict(sites or "final_norm", top_k=0 if score else top_k, next_token=score)
    with arg.connect(server, model, token, tls) as client:
        acts = client.fetch(arg.prompt(prompt, chat), predictions=asked)
    if as_json:
        print(json.dumps(_scores(acts) if score else _predictions(acts), indent=2))
    else:
        Console().print(_score_table(acts) if score else _prediction_table(acts))


def _prediction_table(acts: Activations) -> Table:
    """A row for each token, and in it a line for each token that may follow."""
    table = Table("position", "token", *acts.predictions, show_lines=True)
    for position, token in enumerate(acts.tokens):
        cells = (_likeliest(at, position) for at in acts.predictions.values())
        # Quoted, so that spaces and line breaks show; as Text, since brackets are markup to rich.
        table.add_row(str(position), Text(repr(token)), *cells)
    return table


def _likeliest(at: SitePredictions, row: int) -> Text:
    pairs = zip(at.top_tokens[row], at.top_logprobs[row].tolist(), strict=True)
    return Text("\n".join(f"{math.exp(logprob):.3f} {token!r}" for token, logprob in pairs))


def _predictions(acts: Activations) -> list[dict[str, Any]]:
    return [
        _token(acts, position)
        | {
            "predictions": {
                site: [
                    {"id": token_id, "token": token, "logprob": logprob}
                    for token_id, token, logprob in zip(
                        at.top_ids[position].tolist(),
                        at.top_tokens[position],
                        at.top_logprobs[position].tolist(),
                        strict=True,
                    )
                ]
                for site, at in acts.predictions.items()
            }
        }
        for position in range(len(acts.tokens))
    ]


def _score_table(acts: Activations) -> Table:
    scores = _scores(acts)
    table = Table("position", "token", *acts.predictions, show_footer=True)
    table.columns[1].footer = "sum"
    for column, total in zip(table.columns[2:], scores["sums"].values(), strict=True):
        column.footer = f"{total:.3f}"
    for each in scores["tokens"]:
        cells = ("" if value is None else f"{value:.3f}" for value in each["logprobs"].values())
        table.add_row(str(each["position"]), Text(repr(each["token"])), *cells)
    return table


def _scores(acts: Activations) -> dict[str, Any]:
    """Each token with its log probability at each site, None for the first, and their sums."""
    logprobs = {site: _logprobs(at) for site, at in acts.predictions.items()}
    tokens = [
        _token(acts, position)
        | {"logprobs": {site: values[position] for site, values in logprobs.items()}}
        for position in range(len(acts.tokens))
    ]
    return {
        "tokens": tokens,
        "sums": {site: math.fsum(values[1:]) for site, values in logprobs.items()},
    }


def _logprobs(at: SitePredictions) -> list[Any]:
    """Of each token of the prompt; nothing predicts the first."""
    assert at.next_token_logprobs is not None  # Asked for.
    return [None, *at.next_token_logprobs[:-1].tolist()]


def _token(acts: Activations, position: int) -> dict[str, Any]:
    return {
        "position": position,
        "id": acts.token_ids[position],
        "token": acts.tokens[position],
    }
