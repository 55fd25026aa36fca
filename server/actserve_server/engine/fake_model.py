"""The made-up model of the fake engine: what its rows are, and what interventions do to them.

A row is a pure function of the tokens up to its position and of the site. An intervention changes
the rows of its own sites by its operation's formula, and what a site's row was changed by is added
to the rows of all later sites of the same width, as if one stream ran through them. Logits are read
off the final norm, so changes that reach it show in the text; its norm divides a row by its root
mean square.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.conditions import Condition, score_not_finite
from actserve_server.domain.model import HookPointInfo
from actserve_server.domain.operations import Replace
from actserve_server.domain.probes import RunningScore
from actserve_server.domain.runs import Intervention, Unembed
from actserve_server.domain.sites import HookPoint, Site

GENERATED = np.arange(32, 127)
"""The ids it generates: printable ASCII."""
NEVER = -100.0
"""The score of every other one."""

EMBEDDING = Site(HookPoint.EMBEDDING)
FINAL_NORM, LOGITS = Site(HookPoint.FINAL_NORM), Site(HookPoint.LOGITS)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the model is. The width of the stream is a multiple of the heads, and they of the
    key-value heads."""

    layers: int
    width: int
    heads: int
    key_value_heads: int
    mlp_width: int
    vocabulary_size: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What one intervention did to a row, or with heads to their parts of it, in order of the row.

    `before` and `after` are float32 [rows, width], of rows as the operation sees them.
    """

    intervention: int
    site: Site
    columns: np.ndarray
    """Where in the row they lie, int64 [rows, width]."""
    before: np.ndarray
    after: np.ndarray


class Placed(int):
    """A vector in place of a token: an id that no token has, made of the vector's bytes."""

    vector: np.ndarray

    @classmethod
    def of(cls, vector: np.ndarray) -> "Placed":
        digest = hashlib.blake2b(np.asarray(vector, "<f4").tobytes(), digest_size=6).digest()
        placed = cls(-1 - int.from_bytes(digest, "little"))
        placed.vector = vector
        return placed


class FakeModel:
    """Rows are float32 [width of the site]; changes are those made at the last of `ids`."""

    def __init__(self, hook_points: Mapping[HookPoint, HookPointInfo], adapter: str = "") -> None:
        """With a LoRA adapter all its rows are others, and the weights of tokens are not."""
        self._hook_points = hook_points
        self._adapter = f"{adapter}|" if adapter else ""
        self._vocabulary_size = hook_points[HookPoint.LOGITS].width
        width = hook_points[HookPoint.FINAL_NORM].width
        self._unembedding = np.random.default_rng(0).standard_normal((len(GENERATED), width))

    def row(self, site: Site, ids: Sequence[int], changes: Sequence[Change] = ()) -> np.ndarray:
        """The row of a site at the last of `ids`."""
        if site == LOGITS:
            return self.logits(FINAL_NORM, ids, changes)
        width = self._width(site)
        if site == EMBEDDING and isinstance(ids[-1], Placed):
            row = np.array(ids[-1].vector, np.float32)
        else:
            row = noise(f"{self._adapter}{site}|{','.join(map(str, ids))}", width)
        for change in changes:
            if change.site == site:
                row[change.columns] = change.after
            elif self._width(change.site) == width and change.site.depth < site.depth:
                row[change.columns] += change.after - change.before
        return row

    def logits(self, site: Site, ids: Sequence[int], changes: Sequence[Change] = ()) -> np.ndarray:
        """What a row of the stream or of the final norm unembeds to, float32 [vocabulary]."""
        row = self.row(site, ids, changes)
        if site != FINAL_NORM:
            row = row / np.sqrt(np.mean(row * row))
        scores = np.full(self._vocabulary_size, NEVER, np.float32)
        scores[GENERATED] = self._unembedding @ row
        return scores

    def generates(self, token_id: int) -> bool:
        """Whether a token has a score of its own."""
        return token_id in range(GENERATED[0], GENERATED[-1] + 1)

    def unembedding(self, token_id: int) -> np.ndarray:
        """What makes the score of a token of a row, float32 [width]; zero for tokens that have
        none."""
        if not self.generates(token_id):
            return np.zeros(self._unembedding.shape[1], np.float32)
        return self._unembedding[token_id - GENERATED[0]].astype(np.float32)

    def changes(
        self,
        ids: Sequence[int],
        interventions: Sequence[Intervention],
        scores: Mapping[Condition, RunningScore],
    ) -> list[Change]:
        """What interventions do at the last of `ids`, in the order in which they do it. `scores`
        are those of all tokens before, for every condition, and go on by this one."""
        made: list[Change] = []
        scored: dict[Condition, float] = {}

        def score(condition: Condition) -> None:
            row = self.row(condition.probe.site, ids, made)
            scored[condition] = scores[condition].add(condition.probe.numbers(row[None])[0])

        sites = {site for item in interventions for site in item.sites}
        sites |= {condition.probe.site for condition in scores}
        for site in sorted(sites, key=lambda site: site.depth):
            here = [condition for condition in scores if condition.probe.site == site]
            for index, item in enumerate(interventions):
                if site not in item.sites:
                    continue
                if item.when in here and item.when not in scored:
                    score(item.when)
                if _selects(item, ids) and _acts(index, item.when, scored, len(ids) - 1):
                    columns = self._columns(site, item.heads)
                    before = self.row(site, ids, made)[columns]
                    after = _apply(item, before, position=len(ids) - 1)
                    made.append(Change(index, site, columns, before, after))
            for condition in here:
                if condition not in scored:
                    score(condition)
        return made

    def _width(self, site: Site) -> int:
        return self._hook_points[site.hook_point].width

    def _columns(self, site: Site, heads: Sequence[int]) -> np.ndarray:
        row = np.arange(self._width(site))
        if not heads:
            return row[None]
        return row.reshape(self._hook_points[site.hook_point].heads, -1)[list(heads)]


def predict(unembed: Unembed, logits: np.ndarray, next_id: int | None) -> np.ndarray:
    """What `Unembed` says of one position, float32 [unembed.width]."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = np.argsort(-logprobs, kind="stable")[: unembed.top_k]
    parts = [top, logprobs[top], logprobs[list(unembed.token_ids)]]
    if unembed.next_token:
        parts.append(np.array([np.nan if next_id is None else logprobs[next_id]]))
    return np.concatenate(parts).astype(np.float32)


def attention_rules(shape: Shape) -> tuple[AttentionRule, ...]:
    """How the layers of a model attend; every second one within a window."""
    return tuple(
        AttentionRule(
            heads=shape.heads,
            key_value_heads=shape.key_value_heads,
            head_dim=shape.head_width,
            scale=shape.head_width**-0.5,
            sliding_window=4 if layer % 2 else None,
        )
        for layer in range(shape.layers)
    )


def describe(shape: Shape, unserved: Mapping[HookPoint, str]) -> dict[HookPoint, HookPointInfo]:
    """The hook points of a model."""
    key_values = (shape.key_value_heads * shape.head_width, shape.key_value_heads)
    shapes = {
        HookPoint.Q: (shape.width, shape.heads),
        HookPoint.K: key_values,
        HookPoint.V: key_values,
        HookPoint.Z: (shape.width, shape.heads),
        HookPoint.MLP_ACT: (shape.mlp_width, 0),
        HookPoint.LOGITS: (shape.vocabulary_size, 0),
    }
    unchangeable = {HookPoint.LOGITS: "sampling reads them; change final_norm instead"}
    return {
        hook: HookPointInfo(
            width=shapes.get(hook, (shape.width, 0))[0],
            heads=shapes.get(hook, (shape.width, 0))[1],
            unserved=unserved.get(hook, ""),
            unchangeable=unchangeable.get(hook, ""),
        )
        for hook in HookPoint
    }


def noise(key: str, width: int) -> np.ndarray:
    """Made-up numbers, float32 [width], the same for the same key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    return rng.standard_normal(width, dtype=np.float32)


def _selects(item: Intervention, ids: Sequence[int]) -> bool:
    position, wanted = len(ids) - 1, item.selection.token_ids
    here = item.selection.spans.within(position, position + 1).size > 0
    return here and (wanted is None or ids[position] in wanted)


def _acts(
    index: int, condition: Condition | None, scores: Mapping[Condition, float], position: int
) -> bool:
    if condition is None:
        return True
    if not np.isfinite(scores[condition]):
        raise score_not_finite(position, index)
    return condition.meets(scores[condition])


def _apply(item: Intervention, rows: np.ndarray, position: int) -> np.ndarray:
    operation = item.operation
    if isinstance(operation, Replace) and len(operation.rows) > 1:
        # One for each selected position: as many lie before this one as were selected before it.
        operation = Replace(operation.rows[[item.selection.spans.count(position)]])
    return operation.apply(rows)
