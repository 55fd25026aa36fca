"""What travels to the worker with a vLLM request: `SamplingParams.extra_args["actserve"]`.

vLLM carries extra_args as msgpack, so this is plain ints, floats, lists and bytes. Both ends are
ours, but the reader still refuses what it does not know: a run that is not understood must not go
through unsteered.

Vectors travel along if they are small. Others were uploaded before (`vector_uploads.py`), and only
their digests are here.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actserve_server.domain.attention_rows import (
    LargestWeights,
    PatternRows,
    QueryMeasures,
    ReceivedWeights,
)
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.probes import Aggregator, Attention, Ema, RollingMean, ScoreReduction
from actserve_server.domain.projection import Projected
from actserve_server.domain.runs import Capture, Run, Unembed, conditions_of
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.forms import (
    Activated,
    ConditionForm,
    Form,
    Kernel,
    NetworkForm,
    OutputsForm,
    ProjectionForm,
    Vectors,
    condition_form,
    form_of,
    outputs_form,
    projection_form,
)
from actserve_server.engine.pattern_memory import PatternMemory, pattern_memory
from actserve_server.engine.vllm.layout import SiteKey

EXTRA_ARG = "actserve"

_VERSION = 10

INLINE_BYTES = 256 << 10
"""Of a run's vectors: so many travel along with it, and more are uploaded once for all runs that
have them."""


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One intervention: `form` at every site, where `selection` says, head by head if `heads`."""

    sites: tuple[SiteKey, ...]
    selection: Selection
    heads: tuple[int, ...]
    form: Form
    condition: int | None = None
    """Which of the run's conditions decides where it acts, if any."""


Derived = Unembed | ProjectionForm | OutputsForm | PatternRows | None
"""What is given in place of rows."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One capture: rows of every site in the spans, as they are or what is made of them."""

    sites: tuple[SiteKey, ...]
    spans: Spans
    derived: Derived

    @property
    def columns(self) -> tuple[Hashable, ...] | None:
        """What tells the rows it gives from others of the same tokens, column by column. None where
        they are of tokens after them too."""
        match self.derived:
            case None:
                return self.sites
            case ProjectionForm() as form:
                return tuple((site, form.key) for site in self.sites)
            case OutputsForm() as form:
                return (form.key,)
            case QueryMeasures() | LargestWeights() as rows:
                return tuple((site, rows) for site in self.sites)
            case Unembed() | ReceivedWeights():
                return None

    @property
    def of_patterns(self) -> bool:
        """Whether what it gives takes the keys of every position before."""
        return isinstance(self.derived, QueryMeasures | LargestWeights | ReceivedWeights)


@dataclass(frozen=True, slots=True, eq=False)
class RunTaps:
    """What to read and change in one run. `key` names the run in everything the worker sends."""

    key: int
    captures: tuple[Reading, ...]
    edits: tuple[Edit, ...]
    conditions: tuple[ConditionForm, ...] = ()
    patterns: PatternMemory | None = None
    """What to hold where any capture is of patterns."""

    @property
    def remembers(self) -> bool:
        """Whether a score depends on tokens before its own, all of which must then be computed."""
        return any(each.aggregator.has_memory for each in self.conditions)

    @property
    def vectors(self) -> Mapping[bytes, Vectors]:
        """Those of all edits, conditions and captures, by digest."""
        vectors = [each for edit in self.edits for each in edit.form.every]
        vectors += [each.direction for each in self.conditions]
        for reading in self.captures:
            if isinstance(reading.derived, ProjectionForm | OutputsForm):
                vectors += reading.derived.vectors
        return {each.digest: each for each in vectors}

    def without_patterns(self) -> "RunTaps":
        """For a worker that need not make `PatternRows`, because all are there. It could not where
        vLLM has the prompt's first keys in its cache."""
        captures = [
            replace(each, spans=Spans(())) if each.of_patterns else each for each in self.captures
        ]
        return replace(self, captures=tuple(captures), patterns=None)

    @property
    def uploads(self) -> bool:
        """Whether the vectors are to be uploaded before the run begins."""
        return sum(each.nbytes for each in self.vectors.values()) > INLINE_BYTES


def taps_of(run: Run, key: int) -> RunTaps | None:
    """The taps of a run, or None if it is plain."""
    if not run.captures and not run.interventions:
        return None
    conditions = conditions_of(run.interventions)
    return RunTaps(
        key=key,
        captures=tuple(
            Reading(
                tuple(map(SiteKey.of, capture.sites)),
                capture.spans,
                _derived(capture),
            )
            for capture in run.captures
        ),
        edits=tuple(
            Edit(
                sites=tuple(map(SiteKey.of, change.sites)),
                selection=change.selection,
                heads=change.heads,
                form=form_of(change.operation),
                condition=None if change.when is None else conditions.index(change.when),
            )
            for change in run.interventions
        ),
        conditions=tuple(map(condition_form, conditions)),
        patterns=pattern_memory(run),
    )


def _derived(capture: Capture) -> Derived:
    match capture.derived:
        case Projected() as projected:
            return projection_form(projected)
        case ProbeOutputs() as outputs:
            return outputs_form(outputs)
        case other:
            return other


def encode(taps: RunTaps) -> dict[str, Any]:
    sent = {} if taps.uploads else taps.vectors
    return {
        "version": _VERSION,
        "key": taps.key,
        "captures": [
            {
                "sites": [list(site) for site in reading.sites],
                "spans": _encode_spans(reading.spans),
                **_encode_derived(reading.derived),
            }
            for reading in taps.captures
        ],
        "vectors": {digest: each.encoded() for digest, each in sent.items()},
        "edits": [
            {
                "sites": [list(site) for site in edit.sites],
                "spans": _encode_spans(edit.selection.spans),
                "token_ids": None if (ids := edit.selection.token_ids) is None else sorted(ids),
                "heads": list(edit.heads),
                "kernel": int(edit.form.kernel),
                "scalars": list(edit.form.scalars),
                "vectors": _encode_vectors(edit.form.vectors),
                "reads": None if edit.form.reads is None else _encode_derived(edit.form.reads),
                "columns": list(edit.form.columns),
                "condition": edit.condition,
            }
            for edit in taps.edits
        ],
        "conditions": [_encode_condition(each) for each in taps.conditions],
        "patterns": _encode_memory(taps.patterns),
    }


def decode(message: dict[str, Any]) -> RunTaps:
    if message.get("version") != _VERSION:
        raise ValueError(f"taps of version {message.get('version')}, this worker reads {_VERSION}")
    return RunTaps(
        key=message["key"],
        captures=tuple(
            Reading(
                tuple(SiteKey(*site) for site in reading["sites"]),
                _decode_spans(reading["spans"]),
                _decode_derived(reading, message["vectors"]),
            )
            for reading in message["captures"]
        ),
        edits=tuple(_decode_edit(edit, message["vectors"]) for edit in message["edits"]),
        conditions=tuple(
            _decode_condition(each, message["vectors"]) for each in message["conditions"]
        ),
        patterns=_decode_memory(message["patterns"]),
    )


def _decode_edit(message: dict[str, Any], sent: Mapping[bytes, bytes]) -> Edit:
    ids, vectors = message["token_ids"], _decode_vectors(message["vectors"], sent)
    reads = None if message["reads"] is None else _decode_derived(message["reads"], sent)
    assert reads is None or isinstance(reads, ProjectionForm)
    return Edit(
        sites=tuple(SiteKey(*site) for site in message["sites"]),
        selection=Selection(
            _decode_spans(message["spans"]), None if ids is None else frozenset(ids)
        ),
        heads=tuple(message["heads"]),
        form=Form(
            Kernel(message["kernel"]),
            vectors,
            tuple(message["scalars"]),
            reads,
            tuple(message["columns"]),
        ),
        condition=message["condition"],
    )


def _encode_condition(form: ConditionForm) -> dict[str, Any]:
    match form.aggregator.smoothing:
        case Ema(weight):
            smoothing = ["ema", weight]
        case RollingMean(tokens):
            smoothing = ["rolling_mean", tokens]
        case None:
            smoothing = None
        case Attention():
            raise ValueError("a condition's probe has no queries; the edge refuses attention")
    return {
        "site": list(SiteKey.of(form.site)),
        "direction": _encode_vectors(form.direction),
        "bias": form.bias,
        "smoothing": smoothing,
        "reduction": form.aggregator.reduction.name,
        "bounds": [form.low, form.high],
    }


def _decode_condition(message: dict[str, Any], sent: Mapping[bytes, bytes]) -> ConditionForm:
    match message["smoothing"]:
        case ["ema", weight]:
            smoothing = Ema(weight)
        case ["rolling_mean", tokens]:
            smoothing = RollingMean(tokens)
        case None:
            smoothing = None
        case other:
            raise ValueError(f"smoothing {other} is not known to this worker")
    low, high = message["bounds"]
    return ConditionForm(
        SiteKey(*message["site"]).site,
        _decode_vectors(message["direction"], sent),
        message["bias"],
        Aggregator(smoothing, ScoreReduction[message["reduction"]]),
        low,
        high,
    )


def _encode_vectors(vectors: Vectors) -> list[Any]:
    return [vectors.digest, vectors.count, vectors.width, vectors.element_type.value]


def _decode_vectors(message: list[Any], sent: Mapping[bytes, bytes]) -> Vectors:
    digest, count, width, named = message
    element_type, rows = ElementType(named), None
    if digest in sent:
        bits = np.frombuffer(sent[digest], element_type.storage).reshape(-1, width)
        rows = to_float32(bits, element_type)
    return Vectors(digest, count, width, rows, element_type)


def _encode_derived(derived: Derived) -> dict[str, Any]:
    match derived:
        case Unembed(top_k, token_ids, next_token):
            return {"unembed": [top_k, list(token_ids), next_token]}
        case ProjectionForm(directions, offsets, activated, kept, top_k):
            vectors = [_encode_vectors(directions), _encode_vectors(offsets)]
            return {"project": [*vectors, int(activated), kept, top_k]}
        case OutputsForm(groups, matrices, networks, rest, key):
            sites = [[list(SiteKey.of(site)) for site in group] for group in groups]
            shapes = [[each.group, each.outputs, each.units] for each in networks]
            vectors = [[*map(_encode_vectors, matrices)], _encode_vectors(rest)]
            return {"outputs": [sites, shapes, *vectors, key]}
        case QueryMeasures(heads, offsets):
            return {"measures": [heads, list(offsets)]}
        case LargestWeights(heads, count):
            return {"largest": [list(heads), count]}
        case ReceivedWeights(heads, queries):
            return {"received": [heads, _encode_spans(queries)]}
    return {}


def _decode_derived(message: dict[str, Any], sent: Mapping[bytes, bytes]) -> Derived:
    if "unembed" in message:
        top_k, token_ids, next_token = message["unembed"]
        return Unembed(top_k, tuple(token_ids), next_token)
    if "project" in message:
        directions, offsets, activated, kept, top_k = message["project"]
        return ProjectionForm(
            _decode_vectors(directions, sent),
            _decode_vectors(offsets, sent),
            Activated(activated),
            kept,
            top_k,
        )
    if "outputs" in message:
        groups, networks, matrices, rest, key = message["outputs"]
        return OutputsForm(
            tuple(tuple(SiteKey(*site).site for site in group) for group in groups),
            tuple(_decode_vectors(each, sent) for each in matrices),
            tuple(NetworkForm(*each) for each in networks),
            _decode_vectors(rest, sent),
            key,
        )
    if "measures" in message:
        heads, offsets = message["measures"]
        return QueryMeasures(heads, tuple(offsets))
    if "largest" in message:
        heads, count = message["largest"]
        return LargestWeights(tuple(heads), count)
    if "received" in message:
        heads, queries = message["received"]
        return ReceivedWeights(heads, _decode_spans(queries))
    return None


def _encode_memory(memory: PatternMemory | None) -> list[Any] | None:
    return None if memory is None else [list(memory.layers), memory.tokens, memory.received]


def _decode_memory(message: list[Any] | None) -> PatternMemory | None:
    if message is None:
        return None
    layers, tokens, received = message
    return PatternMemory(tuple(layers), tokens, received)


def _encode_spans(spans: Spans) -> list[list[int]]:
    return [list(span) for span in spans.ranges]


def _decode_spans(ranges: list[list[int]]) -> Spans:
    return Spans(tuple((start, end) for start, end in ranges))
