"""Jobs that explain: a method's arguments as calls, and the calls' results as its return value."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from typing_extensions import Unpack

from actserve._checks import UINT32, integer, rereadable, several
from actserve._explain_calls import ExplainRowsCall, ExplainTextCall
from actserve._generate_jobs import itself, prompt_part, prompt_parts
from actserve._jobs import Job, Part
from actserve._names import adapter_name
from actserve._prompt_lists import check_on_error
from actserve._row_jobs import RowJobs, given_rows, is_empty, nothing
from actserve.errors import InvalidRequest
from actserve.explained_corpora import AskedCorpus
from actserve.explaining import Explaining, spec_from_row, spec_to_proto
from actserve.interventions import interventions_to_proto
from actserve.nlas import nla_name
from actserve.positions import Positions, positions_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.sites import Site, SiteLike
from actserve.tensors import Float32Array, as_array, check_nonzero, encode
from actserve.v1 import explanation_service_pb2 as pb


class ExplainJobs(RowJobs):
    """Jobs that explain."""

    def explain(
        self,
        rows: Any,
        site: SiteLike,
        nla: str | None,
        positions: Any,
        **options: Unpack[Explaining],
    ) -> Job[Any]:
        spec = spec_to_proto(options, nla)
        if is_empty(rows):
            return nothing("explain")
        given = given_rows(rows)
        call = self._explain_calls(given, site, nla, positions, spec)
        # Neighbours are sought within a call.
        return self._explained("explain", call, given, spec, split=not spec.neighbor_distance)

    def streamed(
        self,
        rows: Any,
        site: SiteLike,
        nla: str | None,
        positions: Any,
        **options: Unpack[Explaining],
    ) -> tuple[ExplainRowsCall, Callable[[Any], Any]]:
        """One call for all rows, which says what is written while it is, and what becomes of its
        result."""
        spec = spec_to_proto(options, nla, partial=True)
        given = given_rows(rows)
        call = self._explain_calls(given, site, nla, positions, spec)(slice(0, None))
        return call, lambda explanations: _of_rows(given, spec, [explanations])

    def _explain_calls(
        self,
        given: Float32Array,
        site: SiteLike,
        nla: str | None,
        positions: Any,
        spec: pb.ExplainSpec,
    ) -> Callable[[slice], ExplainRowsCall]:
        """Makes the calls with some of the rows."""
        at, wire = _positions(positions, given), Site.parse(site).to_proto()

        def call(part: slice) -> ExplainRowsCall:
            request = pb.ExplainActivationsRequest(
                nla=nla_name(nla),
                site=wire,
                activations=encode(np.atleast_2d(given)[part]),
                positions=at[part],
                spec=spec_from_row(spec, part.start),
            )
            return ExplainRowsCall("ExplainActivations", request, part.start)

        return call

    def explain_difference(
        self,
        rows: Any,
        reference: Any,
        site: SiteLike,
        nla: str | None,
        **options: Unpack[Explaining],
    ) -> Job[Any]:
        spec = spec_to_proto(options, nla)
        if is_empty(rows):
            return nothing("explain_difference")
        given = as_array(rows, "rows", ("rows", "width"), ("width",))
        other = as_array(reference, "reference", ("rows", "width"), ("width",))
        if given.shape[-1] != other.shape[-1] or other.shape not in (
            given.shape,
            given.shape[-1:],
        ):
            raise InvalidRequest(
                f"reference has shape {list(other.shape)}, and rows {list(given.shape)}; give one "
                "row of reference for each row, or one for all",
                reason="TENSOR_WIDTH_MISMATCH",
                path=("reference",),
            )
        other = np.broadcast_to(other, given.shape)
        check_nonzero(given - other, "rows - reference")
        wire = Site.parse(site).to_proto()

        def call(part: slice) -> ExplainRowsCall:
            request = pb.CompareActivationsRequest(
                nla=nla_name(nla),
                site=wire,
                activations=encode(np.atleast_2d(given)[part]),
                reference=encode(np.atleast_2d(other)[part]),
                spec=spec_from_row(spec, part.start),
            )
            return ExplainRowsCall("CompareActivations", request, part.start)

        return self._explained("explain_difference", call, given, spec)

    def _explained(
        self,
        name: str,
        call: Callable[[slice], ExplainRowsCall],
        given: Float32Array,
        spec: pb.ExplainSpec,
        *,
        split: bool = True,
    ) -> Job[Any]:
        combine = partial(_of_rows, given, spec)
        return self.job(name, call, len(np.atleast_2d(given)), combine, split=split)

    def explain_text(self, prompts: Any, on_error: Any = "raise", **options: Any) -> Job[Any]:
        """`options` are those of `text_call`."""
        if not is_many(prompts):
            check_on_error(on_error)
            part = prompt_part(self.text_call, prompts, None, options)
            return Job("explain_text", [part], 1, lambda results: results[0])
        parts = prompt_parts(self.text_call, prompts, on_error, options)
        # A prompt is many rows.
        return Job("explain_text", parts, self.in_flight, lambda results: results)

    def corpus_asked(self, model: str, site: str, *, nla: str, **options: Any) -> AskedCorpus:
        """What is asked of each prompt of a corpus; `options` are those of `text_call`."""
        request = self.text_call("", nla=nla, **options).request
        request.ClearField("prompt")
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        return AskedCorpus(model=model, nla=nla, site=site, asked=digest)

    def corpus_parts(
        self, prompts: Iterable[tuple[int, Any]], **options: Any
    ) -> Iterator[Part[Any]]:
        """The calls of prompts, with their numbers, as they are taken; an error that is about a
        prompt stands in the place of its result. `options` are those of `text_call`."""
        options = {name: rereadable(value) for name, value in options.items()}
        for number, prompt in prompts:
            part = prompt_part(self.text_call, prompt, number, options)
            yield replace(part, failed=itself)

    def text_call(
        self,
        prompt: Any,
        request_id: str = "",
        *,
        nla: str | None,
        positions: Positions,
        intervene: Any,
        adapter: Any = None,
        partial: bool = False,
        **options: Unpack[Explaining],
    ) -> ExplainTextCall:
        """The call of one prompt; nothing is kept, so its request needs no id."""
        request = pb.ExplainTextRequest(
            model=self.model,
            nla=nla_name(nla),
            prompt=prompt_to_proto(prompt),
            positions=positions_to_proto(positions),
            interventions=interventions_to_proto(intervene),
            spec=spec_to_proto(options, nla, partial=partial),
            adapter=adapter_name(adapter),
        )
        return ExplainTextCall(request, positions)

    def text_streamed(self, **asked: Any) -> tuple[ExplainTextCall, Callable[[Any], Any]]:
        """A call that says what is written while it is, and what becomes of its result."""
        return self.text_call(**asked, partial=True), lambda explained: explained


def _of_rows(given: Float32Array, spec: pb.ExplainSpec, results: list[Any]) -> Any:
    """The explanations of calls with some of the rows each, in the shape of what was given."""
    one = spec.best or not spec.HasField("samples")
    rows = [row[0] if one else row for row in chain.from_iterable(results)]
    return rows[0] if given.ndim == 1 else rows


def _positions(positions: Any, rows: Float32Array) -> list[int]:
    """The position of each row; empty for None."""
    if positions is None:
        return []
    given = [
        integer(each, "a position", UINT32, "POSITION_OUT_OF_RANGE") for each in several(positions)
    ]
    count = len(np.atleast_2d(rows))
    if len(given) != count or given != sorted({*given}):
        raise InvalidRequest(
            f"the positions {given} are not one for each of {count} rows, ascending; give the rows "
            "of one sequence in their order",
            reason="POSITION_OUT_OF_RANGE",
            path=("positions",),
        )
    return given
