"""What travels to the worker with a vLLM request: `SamplingParams.extra_args["actserve"]`.

vLLM carries extra_args as msgpack, so this is plain ints, lists and bytes. Both ends are ours, but
the reader still refuses what it does not know: a run that is not understood must not go through
unsteered.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve_server.domain.positions import Spans
from actserve_server.domain.runs import Run
from actserve_server.engine.vllm.points import Tap, tap_of

EXTRA_ARG = "actserve"

_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """Adds `delta` (float32, [width]) at a tap."""

    tap: Tap
    spans: Spans
    delta: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class RunTaps:
    """What to read and change in one run. `key` names the run in everything the worker sends."""

    key: int
    capture_taps: tuple[Tap, ...]
    capture_spans: Spans
    edits: tuple[Edit, ...]


def taps_of(run: Run, key: int) -> RunTaps | None:
    """The taps of a run, or None if it is plain."""
    if run.capture is None and not run.interventions:
        return None
    return RunTaps(
        key=key,
        capture_taps=tuple(map(tap_of, run.capture.sites)) if run.capture else (),
        capture_spans=run.capture.spans if run.capture else Spans(()),
        edits=tuple(
            Edit(tap_of(change.site), change.spans, np.float32(change.coefficient) * change.vector)
            for change in run.interventions
        ),
    )


def encode(taps: RunTaps) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "key": taps.key,
        "capture_taps": [list(tap) for tap in taps.capture_taps],
        "capture_spans": _encode_spans(taps.capture_spans),
        "edits": [
            [list(edit.tap), _encode_spans(edit.spans), edit.delta.astype("<f4").tobytes()]
            for edit in taps.edits
        ],
    }


def decode(message: dict[str, Any]) -> RunTaps:
    if message.get("version") != _VERSION:
        raise ValueError(f"taps of version {message.get('version')}, this worker reads {_VERSION}")
    return RunTaps(
        key=message["key"],
        capture_taps=tuple(Tap(*tap) for tap in message["capture_taps"]),
        capture_spans=_decode_spans(message["capture_spans"]),
        edits=tuple(
            Edit(Tap(*tap), _decode_spans(spans), np.frombuffer(delta, "<f4"))
            for tap, spans, delta in message["edits"]
        ),
    )


def cache_salt(taps: RunTaps | None) -> str | None:
    """A salt that isolates the KV cache of an edited run, or None if the run changes nothing.

    It covers everything that changes the KV: tap, positions and the exact bytes added. Equal edits
    share cached prefixes; a run that only captures shares with plain ones.
    """
    if taps is None or not taps.edits:
        return None
    digest = hashlib.sha256(b"actserve-edits-1")
    for edit in taps.edits:
        ranges = np.array(edit.spans.ranges, np.int64)
        head = np.array([*edit.tap, len(ranges), len(edit.delta)], np.int64)
        for part in (head, ranges, edit.delta.astype("<f4")):
            digest.update(part.tobytes())
    return digest.hexdigest()


def _encode_spans(spans: Spans) -> list[list[int]]:
    return [list(span) for span in spans.ranges]


def _decode_spans(ranges: list[list[int]]) -> Spans:
    return Spans(tuple((start, end) for start, end in ranges))
