"""What the isolation test asks of an engine at once: runs of every kind, the same from one seed.

Captures at every hook point, and changes at every hook point by every operation, in turn so that
none is left out, a third of them under a condition; captures of rows, predictions, projections and
what networks of probes make of rows, as monitors read them; some at heads, some at several sites,
some several in order, at positions of many kinds; prompts of 3 to 900 tokens, some with a common
beginning, some sent again by a run of another kind; several samples of one request; and plain runs.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from typing import TypeVar

import numpy as np

from actserve_server.domain.conditions import Condition
from actserve_server.domain.positions import (
    NO_END,
    AllPositions,
    GeneratedPositions,
    LastPosition,
    PositionList,
    PositionRange,
    Positions,
    PromptPositions,
    Selection,
    TextPositions,
    TokenIdPositions,
)
from actserve_server.domain.probes import Probe
from actserve_server.domain.projection import Identity, Projected, Projection, ReLU
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Capture, Intervention, Run, Unembed
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from tests.integration.harness import EngineThread, again, every_site, greedy, make_run, select
from tests.integration.operations import OPERATIONS
from tests.unit.networks import KINDS, network, reading
from tests.unit.test_probes import AGGREGATORS

WORDS = ("river", "stone", "music", "engine", "letter", "winter", "garden", "silver", "paper")
LONGEST_PROMPT_WORDS = 600
LAYERS = (0, 9, 20, 29)
LOGITS = Site(HookPoint.LOGITS)
EMBEDDING = Site(HookPoint.EMBEDDING)
TOP_K = 3
"""Of whatever is given by its largest."""

T = TypeVar("T")


class Mixture:
    """Makes runs; the engine tells it widths, tokens, and rows like those that it is to change."""

    def __init__(self, engine: EngineThread, seed: int) -> None:
        self._engine, self._info = engine, engine.info
        self._rng, self._numbers = random.Random(seed), np.random.default_rng(seed)
        self._shared = self._words(150)
        self._prompts: list[TokenizedPrompt] = []
        # Not the first token's rows, which at some sites are a hundred times the others.
        sample = make_run(engine.tokenize(self._words(40)).ids, sites=every_site(self._info))
        self._sample = {site: rows[1:] for site, rows in engine.run(sample).rows.items()}
        points = [point for point in HookPoint if point is not HookPoint.LOGITS]
        self._captured, self._changed = (cycle(self._shuffled(points)) for _ in range(2))
        self._operations = cycle(self._shuffled(OPERATIONS))

    def runs(self, count: int) -> Iterator[Run]:
        last: Run | None = None
        for _ in range(count):
            if last and self._rng.random() < 0.15:
                # Another sample of the request before: a call for n samples is n runs.
                yield again(last)
                continue
            last = self._run()
            yield last

    def _prompt(self) -> TokenizedPrompt:
        if self._prompts and self._rng.random() < 0.2:
            # What is plain to one run is changed by another, or by both in different places.
            return self._rng.choice(self._prompts)
        text = self._words(self._rng.choice([2, 2, 5, 10, 40, 80, 200, LONGEST_PROMPT_WORDS]))
        if self._rng.random() < 0.3:
            text = f"{self._shared} {text}"
        self._prompts.append(self._engine.tokenize(text))
        return self._prompts[-1]

    def _run(self) -> Run:
        prompt = self._prompt()
        max_tokens = self._rng.choice([1, 6, 40, 40])
        kind = self._rng.choice(["plain", "plain", "captured", "steered", "both"])
        captures: list[Capture] = []
        changes: list[Intervention] = []
        if kind in ("captured", "both"):
            captures = list(self._captures(prompt, max_tokens))
        if kind in ("steered", "both"):
            number = self._rng.choice([1, 1, 2, 3])
            changes = [self._change(prompt, max_tokens) for _ in range(number)]
        run = make_run(prompt.ids, *changes, captures=captures, sampling=greedy(max_tokens))
        # As a run that a monitor may end at any token.
        return replace(run, rows_at_once=self._rng.random() < 0.3)

    def _captures(self, prompt: TokenizedPrompt, max_tokens: int) -> Iterator[Capture]:
        number = self._rng.choice([1, 3])
        sites = {self._site(next(self._captured)): None for _ in range(number)}
        yield Capture(tuple(sites), self._selection(prompt, max_tokens))
        if self._rng.random() < 0.3:
            # At few positions: a row is 49,152 wide.
            few = self._rng.choice([LastPosition(), self._two(prompt)])
            yield Capture((LOGITS,), select(few, prompt, max_tokens))
        if self._rng.random() < 0.3:
            streams = (self._site(HookPoint.RESID_POST), Site(HookPoint.FINAL_NORM))
            lens = Unembed(TOP_K, token_ids=(30, 504), next_token=True)
            yield Capture(streams, self._selection(prompt, max_tokens), lens)
        if self._rng.random() < 0.3:
            directions = self._numbers.standard_normal((8, self._info.width)).astype(np.float32)
            projection = Projection(directions, activation=self._rng.choice([Identity(), ReLU()]))
            projected = Projected(projection, self._rng.choice([None, TOP_K]))
            streams = (self._site(HookPoint.RESID_POST), self._site(HookPoint.MLP_OUT))
            yield Capture(streams, self._selection(prompt, max_tokens), projected)
        if self._rng.random() < 0.4:
            streams = (self._site(HookPoint.RESID_MID), self._site(HookPoint.ATTN_OUT))
            yield self._networks(streams, self._selection(prompt, max_tokens))

    def _networks(self, sites: tuple[Site, Site], selection: Selection) -> Capture:
        """Of all kinds; some read one of the sites and some both. Few seeds, so that runs have
        networks in common."""
        widths = [{each: self._info.at(each).width for each in some} for some in (sites[:1], sites)]
        seed = self._rng.randrange(3)
        kinds = self._rng.sample([*KINDS.values()], 3)
        every = [network(read, seed=seed, **kind) for read in widths for kind in kinds]
        return reading(every, selection)

    def _change(self, prompt: TokenizedPrompt, max_tokens: int) -> Intervention:
        hook_point = next(self._changed)
        sites = {self._site(hook_point): None, self._site(hook_point): None}
        heads: tuple[int, ...] = ()
        rows = self._sample[next(iter(sites))]
        count = self._info.hook_points[hook_point].heads
        if count and self._rng.random() < 0.5:
            heads = tuple(self._rng.sample(range(count), self._rng.choice([1, 2])))
            rows = rows.reshape(len(rows), count, -1)[:, heads[0]]
        selection = self._selection(prompt, max_tokens)
        # For an operation of a row for each position, as many as there are; else one for all.
        certain = selection.token_ids is None and selection.spans.ranges[-1][1] != NO_END
        rows = self._numbers.choice(rows, selection.spans.count(NO_END) if certain else 1)
        operation = OPERATIONS[next(self._operations)](rows, self._numbers)
        when = self._condition() if self._rng.random() < 0.3 else None
        # Where a generated token is to be met, it may not come.
        return Intervention(tuple(sites), selection, operation, heads, allow_unused=True, when=when)

    def _condition(self) -> Condition:
        """By what no batch rounds, so that a score is never on the other side of a bound."""
        direction = self._numbers.standard_normal(self._info.width).astype(np.float32)
        probe = Probe(EMBEDDING, direction)
        numbers = np.unique(probe.numbers(self._sample[EMBEDDING]))
        low = self._rng.randrange(len(numbers) - 1)
        bound = float(numbers[low : low + 2].mean())
        bounds = self._rng.choice([{"above": bound}, {"below": bound}])
        return Condition(probe, self._rng.choice(AGGREGATORS), **bounds)

    def _selection(self, prompt: TokenizedPrompt, max_tokens: int) -> Selection:
        count = len(prompt.ids)
        kinds: list[Positions] = [
            AllPositions(),
            LastPosition(),
            PromptPositions(),
            PositionRange(count // 2, count + 3),
            PositionRange(-1),
            TextPositions(self._rng.choice(prompt.texts).strip() or "r"),
            TokenIdPositions((self._rng.choice(prompt.ids), 30)),
            self._two(prompt),
        ]
        if max_tokens > 1:
            kinds.append(GeneratedPositions())
        return select(self._rng.choice(kinds), prompt, max_tokens)

    def _two(self, prompt: TokenizedPrompt) -> PositionList:
        return PositionList(tuple(self._rng.sample(range(len(prompt.ids)), 2)))

    def _site(self, hook_point: HookPoint) -> Site:
        return Site(hook_point, None if hook_point in LAYERLESS else self._rng.choice(LAYERS))

    def _words(self, count: int) -> str:
        return " ".join(self._rng.choices(WORDS, k=count))

    def _shuffled(self, items: Iterable[T]) -> list[T]:
        listed = list(items)
        return self._rng.sample(listed, len(listed))
