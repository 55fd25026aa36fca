"""Jobs of the reconstructor: rows from texts, scores of texts, and what scores are relative to."""

from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from actserve._jobs import Job, Part
from actserve._reconstruct_calls import ReconstructCall, ScoreCall, SetBaselineCall
from actserve._row_jobs import RowJobs, given_rows
from actserve.edits import ExplanationEdit, check_text
from actserve.errors import InvalidRequest
from actserve.nlas import Baseline, baseline_name, nla_name
from actserve.sites import Site, SiteLike
from actserve.tensors import Float32Array, as_array, check_nonzero, encode
from actserve.v1 import explanation_service_pb2 as pb


class ReconstructJobs(RowJobs):
    """Jobs that reconstruct."""

    def reconstruct(self, texts: Any, site: SiteLike, nla: str | None) -> Job[Float32Array]:
        given, wire = _texts(texts), Site.parse(site).to_proto()

        def call(part: slice) -> ReconstructCall:
            request = pb.ReconstructActivationsRequest(
                nla=nla_name(nla), site=wire, texts=given[part]
            )
            return ReconstructCall(request)

        def combine(results: list[Float32Array]) -> Float32Array:
            return results[0][0] if isinstance(texts, str) else np.concatenate(results)

        return self.job("reconstruct", call, len(given), combine)

    def edit_vector(self, edit: ExplanationEdit, site: SiteLike) -> Job[Float32Array]:
        job = self.reconstruct([edit.edited, edit.original], site, edit.nla)

        def combine(results: list[Float32Array]) -> Float32Array:
            edited, original = job.combine(results)
            return edited - original

        return Job("edit_vector", job.parts, job.in_flight, combine)

    def score_explanations(
        self, rows: Any, texts: Any, site: SiteLike, nla: str | None, baseline: str | None
    ) -> Job[Any]:
        given, written = np.atleast_2d(given_rows(rows)), _texts(texts)
        if len(given) != len(written):
            raise InvalidRequest(
                f"there are {len(written)} texts for {len(given)} rows; give one for each",
                reason="FIELD_INVALID",
                path=("texts",),
            )
        common = pb.ScoreExplanationsRequest(
            nla=nla_name(nla),
            site=Site.parse(site).to_proto(),
            baseline=baseline_name(baseline, nla),
        )

        def call(part: slice) -> ScoreCall:
            request = pb.ScoreExplanationsRequest(
                activations=encode(given[part]), texts=written[part]
            )
            request.MergeFrom(common)
            return ScoreCall(request)

        def combine(results: list[Any]) -> Any:
            return results[0][0] if isinstance(texts, str) else [*chain.from_iterable(results)]

        return self.job("score_explanations", call, len(given), combine)

    def set_baseline(
        self, rows: Any, site: SiteLike, nla: str | None, name: str, shared: bool
    ) -> Job[Baseline]:
        request = pb.SetExplanationBaselineRequest(
            name=baseline_name(name, nla),
            site=Site.parse(site).to_proto(),
            activations=encode(check_nonzero(as_array(rows, "rows", ("rows", "width")), "rows")),
            shared=shared,
        )
        part = Part(partial(SetBaselineCall, request), None)
        return Job("set_baseline", [part], 1, lambda results: results[0])


def _texts(texts: Any) -> list[str]:
    """One text or several. Raises `InvalidRequest` for anything else."""
    if isinstance(texts, str):
        return [check_text(texts, "texts")]
    given = [check_text(text, "texts", index) for index, text in enumerate(texts)]
    if not given:
        raise InvalidRequest(
            "the list of texts is empty; give at least one",
            reason="FIELD_REQUIRED",
            path=("texts",),
        )
    return given
