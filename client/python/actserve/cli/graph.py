"""The graph command: what a prediction comes from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from actserve._show.graph_cards import ablation_card, graph_card
from actserve._show.terminal import Printed
from actserve.cli import arguments as arg
from actserve.cli.output import print_json, say
from actserve.graphs import GraphNode


def _graph_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json":
        raise typer.BadParameter(f"{text} must end in .json")
    return path


def graph(
    prompt: Annotated[str, typer.Argument(help="Text whose next token is traced.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            parser=_graph_file,
            help="Where to write the graph, .json as Neuronpedia reads it.",
        ),
    ] = None,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="A transcoder; give the option once for each layer. Without it the nodes are the "
            "neurons of the MLPs.",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", "-n", min=1, help="Neurons at most, 1000 by default, or features."),
    ] = None,
    logits: Annotated[
        int | None, typer.Option(min=1, help="Predicted tokens at most; 10 by default.")
    ] = None,
    node_threshold: Annotated[
        float | None, typer.Option(help="Share of influence that nodes keep; 0.8 by default.")
    ] = None,
    edge_threshold: Annotated[
        float | None, typer.Option(help="Share of influence that edges keep; 0.98 by default.")
    ] = None,
    test: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            help="Ablate so many of the most influential units, but those of position 0, and "
            "compare what the graph says with what happens.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(metavar="ID", help="What to call it on the server.")] = "",
    chat: arg.Chat = False,
    as_json: arg.Json = False,
    server: arg.Server = arg.DEFAULT_TARGET,
    model: arg.ModelId = None,
    token: arg.Token = None,
    tls: arg.Tls = False,
) -> None:
    """Trace what a prediction comes from, through the neurons of the model's MLPs, or
    the features of transcoders.

    The work is done on the server, and goes on if this is cut; the graph stays there for a time.

    [bold]Examples[/bold]

    [cyan]actserve graph "The capital of France is" -o graph.json[/cyan]

    [cyan]actserve graph "The capital of France is" --nodes 300 --test 20[/cyan]
    """
    with arg.connect(server, model, token, tls) as client:
        begun = client.graphs.create(
            arg.prompt(prompt, chat),
            name=name,
            dictionaries=dictionary or (),
            max_nodes=nodes,
            max_logits=logits,
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
        )
        found = begun.wait()
        chosen = to_ablate(found.units, test or 0)
        tried = client.graphs.test(found, chosen) if chosen else None
    if out is not None:
        found.to_neuronpedia(out)
        say(f"wrote {len(found.nodes)} nodes and {len(found.weights)} edges to {out}")
    if as_json:
        print_json(found.to_neuronpedia())
        return
    console = Console()
    console.print(Printed(graph_card(found)))
    if tried is not None:
        console.print(Printed(ablation_card(tried)))


def to_ablate(units: Sequence[GraphNode], count: int) -> Sequence[GraphNode]:
    """The most influential ones, but those of position 0 where there are others: without what makes
    the row of an attention sink the model is another one."""
    elsewhere = [unit for unit in units if unit.position > 0]
    return (elsewhere or units)[:count]
