"""Looking: one row under several microscopes at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from actserve._async.explaining import AsyncExplainer
from actserve._async.features import AsyncFeatureReading
from actserve._async.studies import AsyncStudies
from actserve._checks import INT32, integer
from actserve._feature_rows import checked_count, projection
from actserve._names import Named
from actserve._study_results import single_prompt
from actserve.dictionaries import Feature, StoredDictionary
from actserve.errors import InvalidRequest, NotServed
from actserve.features import ActiveFeature
from actserve.looks import LikelyToken, Look, held_together
from actserve.nlas import Nla
from actserve.predictions import Predict
from actserve.prompts import Prompt
from actserve.readouts import Read
from actserve.sites import HookPoint, Site, SiteLike
from actserve.steering_vectors import Intervene

_SEEN_BY_LENS = {
    HookPoint.EMBEDDING,
    HookPoint.RESID_PRE,
    HookPoint.RESID_MID,
    HookPoint.RESID_POST,
    HookPoint.FINAL_NORM,
}
_EFFECTS = 5
"""Features whose raised tokens are asked for."""


class AsyncLooks(AsyncStudies, AsyncFeatureReading, AsyncExplainer):
    """One row, held under what there is."""

    async def look(
        self,
        prompt: Prompt,
        position: int = -1,
        *,
        site: SiteLike | None = None,
        dictionary: str | Named | StoredDictionary | None = None,
        nla: str | None = None,
        k: int = 10,
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
    ) -> Look:
        """One row of a prompt, in words, as features, and through the logit lens, side by side, and
        where these differ.

        - `position`: of the token; negative ones count from the last.
        - `site`: the row's; where most of the microscopes see something, if it is None.
        - `dictionary`, `nla`: which; the first that sees the site, if None.
        - `k`: features and likely tokens to report.

            look = client.look("The capital of France is")
            look.explanation.text, look.features, look.lens, look.disagreements
        """
        one, count = single_prompt(prompt), checked_count(k)
        at = integer(position, "a position", INT32, "POSITION_OUT_OF_RANGE")
        given = None if site is None else Site.parse(site)
        pair, features_of = await self._microscopes(given, dictionary, nla, timeout)
        where = given or (Site.parse(features_of.site) if features_of else None)
        where = where or (Site.parse(pair.site) if pair else None)
        if where is None:
            raise InvalidRequest(
                "the server has no dictionary and no NLA, so that it is open which row to look at; "
                "name its site, as in site='resid_post.10'",
                reason="FIELD_REQUIRED",
                path=("site",),
            )
        missing: list[str] = []
        seen = where.hook_point in _SEEN_BY_LENS
        if not seen:
            missing.append(f"The lens sees the residual stream alone, not {where}.")
        readouts = {}
        if features_of:
            readouts["features"] = Read(where, [at], projection=projection(features_of, count))
        else:
            missing.append(f"The server has no dictionary that reads {where}.")
        final = HookPoint.FINAL_NORM.value
        acts = await self.fetch(
            one,
            where,
            positions=[at],
            predictions=Predict(
                [*([where] if seen and str(where) != final else []), final], [at], top_k=count
            ),
            readouts=readouts,
            intervene=intervene,
            timeout=timeout,
        )
        row = acts[where][0]
        found: tuple[ActiveFeature, ...] = ()
        effects: Any = []
        if features_of:
            sparse = acts.readouts["features"].sparse[where]
            labels = await self.features._labels_of(features_of, timeout)
            found = tuple(
                ActiveFeature(index, value, labels.get(index, ""))
                for index, value in zip(
                    sparse.indices[0].tolist(), sparse.values[0].tolist(), strict=True
                )
                if value > 0
            )
            several = [Feature(features_of.name, each.index) for each in found[:_EFFECTS]]
            if several:
                effects = await self.features.logit_effects(several, timeout=timeout)
        explanation = None
        if pair:
            explanation = await self.explain(
                row,
                where,
                nla=pair.id,
                positions=[int(acts.positions[0])],
                temperature=0.0,
                score=pair.reconstructs,
                timeout=timeout,
            )
        else:
            missing.append(f"The server has no NLA that explains {where}.")
        likely = {
            name: tuple(
                LikelyToken(token_id, str(token), float(np.exp(logprob)))
                for token_id, token, logprob in zip(
                    told.top_ids[0].tolist(), told.top_tokens[0], told.top_logprobs[0], strict=True
                )
            )
            for name, told in acts.predictions.items()
        }
        lens, last = likely.get(str(where), ()), likely[final]
        shared, disagreements = held_together(explanation, found, effects, lens, last)
        return Look(
            tokens=acts.tokens,
            token_ids=acts.token_ids,
            request_id=acts.request_id,
            usage=acts.usage,
            position=int(acts.positions[0]),
            site=str(where),
            norm=float(np.linalg.norm(row)),
            explanation=explanation,
            nla=pair.id if pair else "",
            features=found,
            dictionary=features_of.id if features_of else "",
            effects=tuple(effects),
            lens=lens,
            final=last,
            missing=tuple(missing),
            shared=shared,
            disagreements=disagreements,
        )

    async def _microscopes(
        self, site: Site | None, dictionary: Any, nla: str | None, timeout: float | None
    ) -> tuple[Nla | None, StoredDictionary | None]:
        """An NLA and a dictionary of one site, as far as there are such."""
        served = await self._served(timeout)
        model = await self.model(served.name, timeout=timeout)
        verbalizers = [
            each for each in model.nlas if each.verbalizes and not each.answers_questions
        ]
        pairs = [each for each in verbalizers if nla in (None, each.id)]
        if dictionary is not None:
            known = [await self.dictionaries.get(dictionary, timeout=timeout)]
        else:
            try:
                known = [each async for each in self.dictionaries.list(timeout=timeout)]
            except NotServed:
                known = []
        if site is not None:
            pairs = [each for each in pairs if each.site == str(site)]
            if dictionary is None:  # One that was named is used at any site of its width.
                known = [each for each in known if each.site == str(site)]
            return next(iter(pairs), None), next(iter(known), None)
        both = [(a, b) for a in pairs for b in known if a.site == b.site]
        if both:
            return both[0]
        if known and (nla is None or not pairs):
            return None, known[0]
        return next(iter(pairs), None), None
