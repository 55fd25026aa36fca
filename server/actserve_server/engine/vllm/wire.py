"""What travels to the worker with a vLLM request: `SamplingParams.extra_args["actserve"]`.

vLLM carries extra_args as msgpack, so this is plain ints, floats, lists and bytes. Both ends are
ours, but the reader still refuses what it does not know: a run that is not understood must not go
through unsteered.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Run, Unembed
from actserve_server.engine.vllm.kernels import Form, Kernel, form_of
from actserve_server.engine.vllm.layout import SiteKey

EXTRA_ARG = "actserve"

_VERSION = 3


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One intervention: `form` at every site, where `selection` says, head by head if `heads`."""

    sites: tuple[SiteKey, ...]
    selection: Selection
    heads: tuple[int, ...]
    form: Form


@dataclass(frozen=True, slots=True)
class Reading:
    """One capture: rows of every site in the spans, as they are or unembedded."""

    sites: tuple[SiteKey, ...]
    spans: Spans
    unembed: Unembed | None


@dataclass(frozen=True, slots=True, eq=False)
class RunTaps:
    """What to read and change in one run. `key` names the run in everything the worker sends."""

    key: int
    captures: tuple[Reading, ...]
    edits: tuple[Edit, ...]


def taps_of(run: Run, key: int) -> RunTaps | None:
    """The taps of a run, or None if it is plain."""
    if not run.captures and not run.interventions:
        return None
    return RunTaps(
        key=key,
        captures=tuple(
            Reading(tuple(map(SiteKey.of, capture.sites)), capture.spans, capture.unembed)
            for capture in run.captures
        ),
        edits=tuple(
            Edit(
                sites=tuple(map(SiteKey.of, change.sites)),
                selection=change.selection,
                heads=change.heads,
                form=form_of(change.operation),
            )
            for change in run.interventions
        ),
    )


def encode(taps: RunTaps) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "key": taps.key,
        "captures": [
            {
                "sites": [list(site) for site in reading.sites],
                "spans": _encode_spans(reading.spans),
                "unembed": _encode_unembed(reading.unembed),
            }
            for reading in taps.captures
        ],
        "edits": [
            {
                "sites": [list(site) for site in edit.sites],
                "spans": _encode_spans(edit.selection.spans),
                "token_ids": None if (ids := edit.selection.token_ids) is None else sorted(ids),
                "heads": list(edit.heads),
                "kernel": int(edit.form.kernel),
                "scalars": list(edit.form.scalars),
                "vectors": edit.form.vectors.astype("<f4").tobytes(),
                "width": edit.form.vectors.shape[1],
            }
            for edit in taps.edits
        ],
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
                _decode_unembed(reading["unembed"]),
            )
            for reading in message["captures"]
        ),
        edits=tuple(map(_decode_edit, message["edits"])),
    )


def _decode_edit(message: dict[str, Any]) -> Edit:
    ids = message["token_ids"]
    vectors = np.frombuffer(message["vectors"], "<f4").reshape(-1, message["width"])
    return Edit(
        sites=tuple(SiteKey(*site) for site in message["sites"]),
        selection=Selection(
            _decode_spans(message["spans"]), None if ids is None else frozenset(ids)
        ),
        heads=tuple(message["heads"]),
        form=Form(Kernel(message["kernel"]), vectors, tuple(message["scalars"])),
    )


def _encode_unembed(unembed: Unembed | None) -> list[Any] | None:
    if unembed is None:
        return None
    return [unembed.top_k, list(unembed.token_ids), unembed.next_token]


def _decode_unembed(message: list[Any] | None) -> Unembed | None:
    if message is None:
        return None
    top_k, token_ids, next_token = message
    return Unembed(top_k, tuple(token_ids), next_token)


def _encode_spans(spans: Spans) -> list[list[int]]:
    return [list(span) for span in spans.ranges]


def _decode_spans(ranges: list[list[int]]) -> Spans:
    return Spans(tuple((start, end) for start, end in ranges))
