"""Calls to all services, one after the other by as many streams as a test likes, and whether their
answers are those that a caller gets who is alone.

No call has a deadline: one that waits too long is found by how many others were answered meanwhile.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import actserve
from actserve import AsyncClient, HiddenLayer, Level, Probe, ProbeNetwork, Stop, Watch

OVERTAKEN = 10
"""Times that every other stream may be answered before a call is. In a fair line it is once or
twice, however long that takes."""
SAMPLED = 60
"""Answers, any of them as likely, that are compared with what is given to a caller who is alone."""
TOLERANCE = 1e-3
"""Relative, in float32: what the composition of a batch does to rounding."""
STATED = {"QUEUE_FULL", "QUOTA_EXCEEDED", "READER_STALLED"}
"""The reasons for which a loaded server may refuse a call, or end one that reads too slowly."""

WIDTH, LAYERS = 576, 30
WORDS = ("river", "stone", "music", "engine", "letter", "winter")
PROMPTS = [
    " ".join(random.Random(number).choices(WORDS, k=size))
    for number, size in enumerate([3, 8, 20, 60, 150, 400] * 10)
]


def _vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def _site(seed: int) -> str:
    return f"resid_post.{seed % LAYERS}"


def _rows(answer: actserve.Activations, *sites: str) -> list[np.ndarray]:
    return [np.asarray(answer[site]) for site in sites]


async def _fetch(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    sites = [_site(seed), _site(seed + 7)]
    return _rows(await client.fetch(prompt, sites), *sites)


async def _fetch_all_layers(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    sites = [f"resid_post.{layer}" for layer in range(LAYERS)]
    return _rows(await client.fetch(prompt, sites, positions="last"), *sites)


async def _project(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    directions = np.stack([_vector(seed), _vector(seed + 1)])
    site = _site(seed)
    projection = actserve.Projection(directions)
    return _rows(await client.fetch(prompt, site, projection=projection), site)


async def _generate(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    made = await client.generate(prompt, temperature=0.0, max_tokens=1 + seed % 24)
    return [np.array(made.token_ids)]


async def _steer(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    site, push = _site(seed), actserve.Add(_site(seed), _vector(seed), coefficient=4.0)
    made = await client.generate(
        prompt, site, intervene=push, temperature=0.0, max_tokens=1 + seed % 12
    )
    assert made.activations is not None
    return [np.array(made.token_ids), *_rows(made.activations, site)]


async def _replace(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    site = _site(seed)
    put = actserve.Replace(site, _vector(seed), positions="last")
    return _rows(await client.fetch(prompt, site, intervene=put, positions="last"), site)


def _matrix(*shape: int) -> np.ndarray:
    scale = shape[-1] ** -0.5
    return (scale * np.random.default_rng(len(shape)).standard_normal(shape)).astype(np.float32)


MONITORS: dict[str, dict[str, Any]] = {
    "linear": {
        "probe": Probe("resid_post.12", _vector(1000)),
        "aggregator": "ema(0.5)",
        "lower": Level(0.0, flag=True),
        "upper": Level(1e9),
    },
    "network": {
        "probe": ProbeNetwork(
            ["resid_post.8", "mlp_out.20"],
            _matrix(1, 64),
            hidden=HiddenLayer(_matrix(64, 2 * WIDTH), np.zeros(64, np.float32)),
        ),
        "aggregator": "rolling_mean_max(4)",
        "upper": Level(1e9),
    },
    "stopping": {
        "probe": Probe("resid_post.20", _vector(1001)),
        "positions": "generated",
        "upper": Level(20.0, Stop(), flag=True),
    },
}


async def _watch_text(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    made = await client.generate(
        prompt, temperature=0.0, max_tokens=1 + seed % 12, monitors=[*MONITORS], scores="token"
    )
    scores = [made.monitor_scores[name].scores for name in MONITORS]
    return [
        np.array(made.token_ids),
        *(np.asarray([] if each is None else each) for each in scores),
    ]


async def _sweep(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    sweep = await client.sweep(
        prompt[:200],
        _vector(seed),
        coefficients=[2.0, 4.0],
        sites=[_site(seed)],
        answers=[" stone"],
        scores={"probe": Probe("resid_post.20", _vector(seed + 2))},
        max_tokens=4,
        afresh=True,
    )
    cells = sorted(sweep.cells, key=lambda cell: (cell.variant_index, cell.coefficient or 0.0))
    if failed := next((cell.error for cell in cells if cell.error is not None), None):
        raise failed
    texts = [np.frombuffer(cell.text.encode(), np.uint8).astype(float) for cell in cells]
    numbers = [[*cell.answers.values(), *cell.scores.values()] for cell in cells]
    return [*texts, np.array(numbers)]


Ask = Callable[[AsyncClient, str, int], Awaitable[list[np.ndarray]]]
KINDS: list[Ask] = [
    _fetch,
    _fetch_all_layers,
    _project,
    _generate,
    _steer,
    _replace,
    _watch_text,
    _sweep,
]


Answered = tuple[AsyncClient, Ask, str, int, list[np.ndarray]]
"""Who asked what how, and the answer."""


@dataclass
class Outcome:
    given: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sampled: list[Answered] = field(default_factory=list)
    samples: int = 0
    """Of which those are."""
    asked: "dict[asyncio.Task[Any], tuple[Ask, int]]" = field(default_factory=dict)
    """What waits for its answer, and how many were answered before it was asked."""
    most_overtaken: int = 0

    @property
    def answered(self) -> int:
        return self.given.total() + self.refused.total()

    def sample(self, answer: Answered, rng: random.Random) -> None:
        self.samples += 1
        if len(self.sampled) < SAMPLED:
            self.sampled.append(answer)
        elif (place := rng.randrange(self.samples)) < SAMPLED:
            self.sampled[place] = answer

    def overtaken(self, streams: int) -> None:
        """Gives up what has waited for too many others, of so many streams."""
        for task, (ask, before) in [*self.asked.items()]:
            self.most_overtaken = max(self.most_overtaken, self.answered - before)
            if self.answered - before > OVERTAKEN * streams and not task.done():
                self.wrong.append(f"{ask.__name__}: {self.answered - before} were answered before")
                task.cancel()


async def stream(
    client: AsyncClient, number: int, goes_on: Callable[[], bool], outcome: Outcome
) -> None:
    """One call after the other; some are given up halfway."""
    rng = random.Random(number)
    while goes_on():
        ask, prompt, seed = rng.choice(KINDS), rng.choice(PROMPTS), rng.randrange(300)
        asked = asyncio.ensure_future(ask(client, prompt, seed))
        outcome.asked[asked] = ask, outcome.answered
        try:
            if rng.random() < 0.1:
                await asyncio.wait({asked}, timeout=rng.random())
                asked.cancel()
            answer = await asked
        except asyncio.CancelledError:
            outcome.given["given up"] += 1
        except actserve.ActserveError as error:
            outcome.refused[error.reason or type(error).__name__] += 1
            if error.reason not in STATED:
                outcome.wrong.append(f"{ask.__name__}: {error!r}")
        else:
            outcome.given[ask.__name__] += 1
            outcome.sample((client, ask, prompt, seed, answer), rng)
        finally:
            del outcome.asked[asked]


async def make_monitors(client: AsyncClient) -> None:
    """Those that the calls name."""
    for name, monitor in MONITORS.items():
        await client.monitors.create(name, **monitor, watch=Watch(named_only=True))


async def compare(sampled: list[Answered]) -> None:
    """Asks again, one by one, and raises AssertionError where an answer was another one."""
    for client, ask, prompt, seed, answer in sampled:
        alone = await ask(client, prompt, seed)
        assert len(answer) == len(alone)
        for mine, other in zip(answer, alone, strict=True):
            asked = (ask.__name__, prompt, seed)
            assert mine.shape == other.shape, asked
            scale = np.abs(other).max(initial=1.0)
            assert np.abs(mine - other).max(initial=0.0) <= TOLERANCE * scale, asked
