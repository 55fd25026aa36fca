"""A tour in two minutes: start a server, fetch activations, check them, steer, explain, take apart.

Run it with `make demo`. It starts a server with the embedded model on a free port, talks to it
through the Python client as any program would, and stops it.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import actserve

START_TIMEOUT_S = 600.0
"""vLLM compiles the model at its first start; later starts find it cached."""

NLA = DICTIONARY = "smollm2-135m"
"""Explain activations, and take them apart; both come with the server."""

LAYERS = [0, 5, 10, 15, 20, 25, 29]
STEER_SITE = "resid_post.15"

LIKED = [
    "I loved this film, it was wonderful.",
    "What a beautiful and moving story, a joy to watch.",
    "Brilliant acting and a delightful script; I was thrilled.",
    "The best movie I have seen in years, simply superb.",
]
DISLIKED = [
    "I hated this film, it was terrible.",
    "What an ugly and boring story, a pain to watch.",
    "Awful acting and a dreadful script; I was disgusted.",
    "The worst movie I have seen in years, simply horrible.",
]

EXPLAINED = "In 1804, in Paris, Napoleon crowned himself emperor of the French."

console = Console()


def main() -> None:
    console.rule("[bold]1. A server")
    with serve() as address, actserve.Client(address) as client:
        model = client.models()[0]
        console.print(
            f"[bold]{model.id}[/] ({model.architecture}): {model.layer_count} layers, "
            f"width {model.width}, computing in {model.element_type}\n"
        )
        fetch(client)
        compare(client, Path(model.path))
        steer(client)
        explain(client)
        take_apart(client)
    console.print(
        'To look for yourself, in a browser: make serve ARGS="--http-port 8080 --nla '
        f'{NLA} --dictionary {DICTIONARY}", then open http://localhost:8080/'
    )


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """A server process with the default model and an NLA; yields its address once it serves."""
    port = free_port()
    environment = {**os.environ, "ACTSERVE_PORT": str(port), "ACTSERVE_METRICS_PORT": "0"}
    started = time.monotonic()
    log = Path(os.environ.get("ACTSERVE_DEMO_LOG", os.devnull))
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "actserve_server",
                "serve",
                "--nla",
                NLA,
                "--dictionary",
                DICTIONARY,
            ],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with console.status("starting (the first time converts and compiles the model) ..."):
            wait_until_it_listens(process, port)
        console.print(f"serving on port {port} after {time.monotonic() - started:.0f} s")
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait(60)
        console.print("server stopped")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(
                f"the server ended with {process.returncode}; ACTSERVE_DEMO_LOG=server.log make "
                "demo keeps what it said"
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.5)
    raise SystemExit(f"the server did not listen within {START_TIMEOUT_S:.0f} s")


def fetch(client: actserve.Client) -> None:
    console.rule("[bold]2. Fetch: the residual stream, token by token")
    sites = [f"resid_post.{layer}" for layer in LAYERS]
    acts = client.fetch("The capital of France is", sites=sites)
    table = Table(title="norm of resid_post, by token and layer")
    table.add_column("token")
    for layer in LAYERS:
        table.add_column(str(layer), justify="right")
    norms = np.stack([np.linalg.norm(acts[site], axis=1) for site in sites], axis=1)
    for token, row in zip(acts.tokens, norms, strict=True):
        table.add_row(repr(token), *(Text(f"{norm:.0f}", style=shade(norm)) for norm in row))
    console.print(table)
    console.print("The first token's norm explodes: an attention sink.\n")


def shade(norm: float) -> str:
    return "bold red" if norm > 1000 else "yellow" if norm > 200 else "green"


def compare(client: actserve.Client, path: Path) -> None:
    console.rule("[bold]3. Compare: are these the numbers transformers computes?")
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    sites = [f"resid_post.{layer}" for layer in LAYERS[:-1]]
    acts = client.fetch("Activations are numbers that a model computes on the way.", sites=sites)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        hidden = reference(torch.tensor([acts.token_ids]), output_hidden_states=True).hidden_states
    table = Table(title="cosine to transformers in float32, over tokens")
    for column in ("site", "median", "worst"):
        table.add_column(column, justify="right")
    for layer, site in zip(LAYERS, sites, strict=False):
        # hidden_states[k + 1] is resid_post.k; the very last one is after the final norm.
        cosines = cosine(acts[site], hidden[layer + 1][0].numpy())
        table.add_row(site, f"{np.median(cosines):.6f}", f"{cosines.min():.6f}")
    console.print(table)
    console.print("The server computes in bfloat16; in float32 rows agree within 1e-3.\n")


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def steer(client: actserve.Client) -> None:
    console.rule("[bold]4. Steer: add a direction while the model writes")
    liked, disliked = (
        np.mean(
            [
                acts[STEER_SITE][1:].mean(0)  # Without the attention sink.
                for acts in client.fetch(texts, sites=[STEER_SITE], progress=False)
            ],
            axis=0,
        )
        for texts in (LIKED, DISLIKED)
    )
    direction = liked - disliked
    console.print(
        f"The direction is the mean difference of {STEER_SITE} between {len(LIKED)} kind and "
        f"{len(DISLIKED)} unkind reviews; its norm is {np.linalg.norm(direction):.0f}.\n"
    )
    table = Table(title='"I watched the film last night and I thought it was ..."', show_lines=True)
    table.add_column("coefficient", justify="right")
    table.add_column("the model writes")
    for coefficient in (-3.0, -1.5, 0.0, 1.5, 3.0):
        out = client.generate(
            "I watched the film last night and I thought it was",
            max_tokens=24,
            temperature=0.0,
            intervene=[actserve.Add(STEER_SITE, direction, coefficient=coefficient)],
        )
        table.add_row(f"{coefficient:+.1f}", " ".join(out.text.split()))
    console.print(table)
    console.print()


def explain(client: actserve.Client) -> None:
    console.rule("[bold]5. Explain: activations in words, and how far to trust them")
    found = client.explain_text(
        EXPLAINED,
        positions=actserve.ByText("in Paris, Napoleon crowned himself"),
        nla=NLA,
        samples=4,
        best=True,
        temperature=0.8,
        seed=0,
        progress=False,
    )
    table = Table(title=f'{found.site} of "{EXPLAINED}"', show_lines=True)
    for column in ("token", "what the row holds", "variance explained"):
        table.add_column(column)
    for token, explanation in found:
        score = explanation.score
        fve = score.variance_explained if score else None
        table.add_row(repr(token), explanation.text, "" if fve is None else f"{fve:.2f}")
    console.print(table)
    texts = [explanation.text for _, explanation in found]
    rows = client.fetch(EXPLAINED, sites=[found.site], progress=False)[found.site]
    rows = rows[list(found.positions)]
    own, others = (
        np.mean([score.variance_explained or 0.0 for score in scores])
        for order in (texts, texts[1:] + texts[:1])
        for scores in [client.score_explanations(rows, order, site=found.site)]
    )
    console.print(
        f"A second model reads each text and makes a row of it. Those rows account for {own:.0%} "
        f"of the variance; with every text given to the next token, for {others:.0%}.\n"
    )


def take_apart(client: actserve.Client) -> None:
    console.rule("[bold]6. Take apart: which features of a dictionary are active")
    where = actserve.ByText("in Paris, Napoleon crowned himself")
    top = client.features.top(EXPLAINED, DICTIONARY, k=2, positions=where)
    named = {feature.index for _, active in top for feature in active}
    effects = client.features.logit_effects(
        [actserve.Feature(DICTIONARY, index) for index in sorted(named)], k=4
    )
    raises = {effect.feature: " ".join(map(repr, effect.top_tokens)) for effect in effects}
    table = Table(title=f'{top.site} of "{EXPLAINED}"')
    for column in ("token", "feature", "value", "what it makes likelier by itself"):
        table.add_column(column)
    for position, active in top:
        for feature in active:
            table.add_row(
                Text(repr(top.tokens[position])),
                str(feature.index),
                f"{feature.value:.0f}",
                Text(raises[feature.index]),
            )
    console.print(table)
    console.print(
        "A feature that makes scraps of words likelier does not act on the next token by itself; "
        "look at the texts it is active in: client.features.top_examples."
    )
    console.print()


if __name__ == "__main__":
    main()
