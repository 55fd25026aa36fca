"""Features: what dictionaries make of prompts."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from itertools import count
from os import PathLike
from typing import Any

from actserve._async.dictionaries import AsyncDictionaryStore
from actserve._async.runs import AsyncRuns
from actserve._feature_rows import (
    DOSE,
    FIRST_SENT,
    MORE_SENT,
    check_among,
    checked_count,
    checked_features,
    checked_sparse,
    chosen_features,
    feature_totals,
    is_whole,
    logit_effect,
    projection,
    top_features,
)
from actserve._names import Named
from actserve._progress import reaching
from actserve.dictionaries import Feature, StoredDictionary, feature_indices
from actserve.errors import InvalidRequest
from actserve.feature_index import (
    FeatureExample,
    FeatureIndex,
    IndexBuilder,
    IndexedDictionary,
    digest_of,
)
from actserve.features import LogitEffect
from actserve.interventions import Add, Zero
from actserve.positions import Positions
from actserve.prompts import Prompt, is_many
from actserve.results import Activations
from actserve.sites import HookPoint, Site
from actserve.steering_vectors import Intervene

_LABELLED_FEATURES = 1 << 17
"""Of larger dictionaries labels are not read by themselves: that would be a hundred calls."""


class AsyncFeatures:
    """What dictionaries make of prompts. Everywhere `dictionary` is an id, a whole name, or what
    `client.dictionaries` returned, and a list of prompts gives a list of results."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._labels: dict[tuple[str, str], Mapping[int, str]] = {}

    async def top(
        self,
        prompt: Prompt | Iterable[Prompt],
        dictionary: str | Named | StoredDictionary,
        k: int = 10,
        *,
        positions: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
    ) -> Any:
        """The `k` largest features of each token, as `TopFeatures`.

        - `positions`, `intervene`: as for `fetch`.

            top = client.features.top("The capital of France is", "smollm2-135m")
            top.at(-1)  # those of the last token, with their labels
        """
        of = await self._client.dictionaries.get(dictionary, timeout=timeout)
        acts = await self._client.fetch(
            prompt,
            of.site,
            positions=positions,
            intervene=intervene,
            projection=projection(of, checked_count(k)),
            timeout=timeout,
        )
        labels = await self._labels_of(of, timeout)
        if isinstance(acts, list):
            return [top_features(each, of, labels) for each in acts]
        return top_features(acts, of, labels)

    async def chosen(
        self,
        prompt: Prompt | Iterable[Prompt],
        dictionary: str | Named | StoredDictionary,
        features: int | Iterable[int],
        *,
        positions: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
    ) -> Any:
        """Some features at each token, as `ChosenFeatures`.

        client.features.chosen("Rivers run.", "smollm2-135m", [7, 123]).values
        """
        named = feature_indices(features)
        of = checked_sparse(await self._client.dictionaries.get(dictionary, timeout=timeout))
        check_among(named, of)
        acts = await self._whole(prompt, of, positions, intervene, timeout)
        labels = await self._labels_of(of, timeout)
        if isinstance(acts, list):
            return [chosen_features(each, of, labels, named) for each in acts]
        return chosen_features(acts, of, labels, named)

    async def totals(
        self,
        prompt: Prompt | Iterable[Prompt],
        dictionary: str | Named | StoredDictionary,
        *,
        positions: Positions = "all",
        skip_first: bool = True,
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
    ) -> Any:
        """Sums, maxima and counts over the tokens of a prompt, as `FeatureTotals`.

        - `skip_first`: whether position 0 is left out, which in most models is an attention sink
          whose features are larger than all others.

            client.features.totals(text, "smollm2-135m").top(20, by="count")
        """
        of = checked_sparse(await self._client.dictionaries.get(dictionary, timeout=timeout))
        acts = await self._whole(prompt, of, positions, intervene, timeout)
        labels = await self._labels_of(of, timeout)
        if isinstance(acts, list):
            return [feature_totals(each, of, labels, skip_first=skip_first) for each in acts]
        return feature_totals(acts, of, labels, skip_first=skip_first)

    async def index(
        self,
        prompts: Iterable[Prompt],
        dictionary: str | Named | StoredDictionary,
        folder: str | PathLike[str],
        *,
        keys: Iterable[str] | None = None,
        skip_first: bool = True,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> FeatureIndex:
        """Runs the prompts of a corpus, which may be a generator, and keeps on disk where each
        feature is active. The same call goes on where it was stopped, and with more prompts after
        the first ones it adds them; about 12 bytes for each active feature of a token.

        - `folder`: where; made if it is not there.
        - `keys`: a name for each prompt, which examples tell; else its number as text.
        - `skip_first`: as for `totals`.
        - `timeout`: seconds that each call may take.

        Raises `InvalidRequest` for a folder that holds something else, and for prompts that are
        not those that it has.

            index = client.features.index(texts, "smollm2-135m", "my-features")
            index.top_examples(123)
        """
        of = checked_sparse(await self._client.dictionaries.get(dictionary, timeout=timeout))
        builder = IndexBuilder(
            folder,
            IndexedDictionary(
                dictionary=of.name,
                create_time=of.create_time.isoformat(),
                site=of.site,
                features=of.features,
                skip_first=bool(skip_first),
            ),
        )
        total = len(prompts) if isinstance(prompts, list | tuple) else None
        new = _New(prompts, keys, builder)
        with reaching("features", progress) as reach:
            rows = self._client.fetch_iter(
                new.prompts(),
                of.site,
                projection=projection(of, FIRST_SENT),
                timeout=timeout,
            )
            async with aclosing(rows) as many:
                async for acts in many:
                    prompt, key, digest = new.taken()
                    whole = await self._widened(acts, prompt, of, timeout=timeout)
                    sparse = whole.sparse[of.site]
                    builder.add(
                        key,
                        digest,
                        whole.tokens,
                        whole.positions,
                        sparse.indices,
                        sparse.values,
                    )
                    reach(new.done, total)
        builder.flush()
        return FeatureIndex(folder)

    async def top_examples(
        self,
        prompts: Iterable[Prompt],
        feature: Feature,
        k: int = 10,
        *,
        index: str | PathLike[str] | None = None,
        keys: Iterable[str] | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> list[FeatureExample]:
        """Which of some prompts activate a feature most, with their tokens and the feature at each,
        largest first.

        - `index`: a folder in which the features of the prompts are kept, and gone on with, as
          `index` does it: the next feature of the same prompts costs no run of the model. Without
          it nothing stays.

            for example in client.features.top_examples(texts, Feature("smollm2-135m", 123)):
                print(example.value, example.tokens[example.position], "".join(example.tokens))
        """
        (named,) = checked_features(feature)
        most = checked_count(k)
        with tempfile.TemporaryDirectory() as scratch:
            built = await self.index(
                prompts,
                named.dictionary,
                index if index is not None else scratch,
                keys=keys,
                timeout=timeout,
                progress=progress,
            )
            return built.top_examples(named.index, most)

    async def logit_effects(
        self,
        features: Feature | list[Feature],
        k: int = 10,
        *,
        timeout: float | None = None,
    ) -> list[LogitEffect]:
        """The tokens that features raise and lower most by themselves: the `k` first of each. The
        features are of one dictionary that writes to the residual stream.

        (effect,) = client.features.logit_effects(Feature("smollm2-135m", 123))
        effect.top_tokens
        """
        several = checked_features(features)
        most = checked_count(k)
        of = await self._client.dictionaries.get(several[0].dictionary, timeout=timeout)
        last = Site(HookPoint.RESID_POST, -1)
        # In place of the last row of the residual stream comes the feature alone; the first item,
        # to compare with, is a row of zeros.
        clear = Zero(last, positions="last")
        writes = [
            [clear, Add(last, replace(each, dictionary=of.name), DOSE, positions="last")]
            for each in several
        ]
        some_prompt = [[0]] * (1 + len(writes))
        nothing, *acts = await self._client.fetch(
            some_prompt,
            [last, HookPoint.LOGITS.value],
            positions="last",
            intervene=[[clear], *writes],
            element_type="f32",
            timeout=timeout,
            progress=False,
        )
        labels = await self._labels_of(of, timeout)
        made = [
            logit_effect(
                of,
                feature.index,
                labels.get(feature.index, ""),
                row["logits"][0],
                nothing["logits"][0],
                row[last][0],
                most,
            )
            for feature, row in zip(several, acts, strict=True)
        ]
        texts = await self._texts({int(token) for _, ids in made for token in ids}, timeout)
        return [
            replace(
                effect,
                top_tokens=tuple(texts[int(token)] for token in effect.top_ids),
                bottom_tokens=tuple(texts[int(token)] for token in effect.bottom_ids),
            )
            for effect, _ in made
        ]

    async def _whole(
        self,
        prompt: Any,
        of: StoredDictionary,
        positions: Any,
        intervene: Any,
        timeout: float | None,
    ) -> Any:
        """Sparse rows of which none is cut."""
        acts = await self._client.fetch(
            prompt,
            of.site,
            positions=positions,
            intervene=intervene,
            projection=projection(of, FIRST_SENT),
            timeout=timeout,
        )
        options = {"positions": positions, "intervene": intervene, "timeout": timeout}
        if not is_many(prompt):
            return await self._widened(acts, prompt, of, **options)
        return [
            await self._widened(each, one, of, **options)
            for each, one in zip(acts, prompt, strict=True)
        ]

    async def _widened(
        self, acts: Activations, prompt: Any, of: StoredDictionary, **options: Any
    ) -> Activations:
        """The same, asked for again with more of each row for as long as a row is cut."""
        while not is_whole(acts.sparse[of.site], of):
            more = MORE_SENT * acts.sparse[of.site].values.shape[1]
            acts = await self._client.fetch(
                prompt, of.site, projection=projection(of, more), **options
            )
        return acts

    async def _labels_of(self, of: StoredDictionary, timeout: float | None) -> Mapping[int, str]:
        """The labels of a dictionary, which hold for as long as its etag."""
        if of.features > _LABELLED_FEATURES:
            return {}
        key = (of.name, of.etag)
        if key not in self._labels:
            labels = self._client.dictionaries.labels(of.name, timeout=timeout)
            self._labels[key] = {each.index: each.label async for each in labels}
        return self._labels[key]

    async def _texts(self, ids: set[int], timeout: float | None) -> Mapping[int, str]:
        """Tokens, each decoded alone."""
        ordered = sorted(ids)
        tokenized = await self._client.tokenize(ordered, timeout=timeout)
        return dict(zip(ordered, tokenized.tokens, strict=True))


class _New:
    """The prompts of a corpus that an index does not have yet, with their keys and digests, which
    are read some calls ahead of the results."""

    def __init__(
        self, prompts: Iterable[Any], keys: Iterable[str] | None, builder: IndexBuilder
    ) -> None:
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise InvalidRequest(
                "prompts is one prompt; give an iterable of prompts, such as a list or a generator",
                reason="FIELD_INVALID",
                path=("prompts",),
            )
        self._source = iter(prompts)
        self._named = map(str, count()) if keys is None else iter(keys)
        self._waiting: deque[tuple[Any, str, str]] = deque()
        self.done = 0
        """Prompts that the index has."""
        for known in builder.known():
            prompt = next(self._source, None)
            next(self._named, None)
            if prompt is None or digest_of(prompt) != known:
                raise InvalidRequest(
                    f"prompt {self.done} is not the one that {builder.folder} has there; give the "
                    "same prompts, with new ones after them, or name another folder",
                    reason="FIELD_INVALID",
                    path=("prompts", self.done),
                )
            self.done += 1

    def prompts(self) -> Iterator[Any]:
        """Those that are to be run."""
        for number, prompt in enumerate(self._source, self.done):
            key = next(self._named, None)
            if not isinstance(key, str):
                raise InvalidRequest(
                    f"the key of prompt {number} is {key!r}; give a string for each prompt",
                    reason="FIELD_INVALID",
                    path=("keys", number),
                )
            self._waiting.append((prompt, key, digest_of(prompt)))
            yield prompt

    def taken(self) -> tuple[Any, str, str]:
        """The prompt whose result has come, its key and its digest."""
        self.done += 1
        return self._waiting.popleft()


class AsyncFeatureReading(AsyncRuns, AsyncDictionaryStore):
    """Features of prompts."""

    @cached_property
    def features(self) -> AsyncFeatures:
        """What dictionaries make of prompts.

        client.features.top("The capital of France is", "smollm2-135m").show()
        """
        return AsyncFeatures(self)
