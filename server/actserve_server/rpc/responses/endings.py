"""How runs and calls end, for the wire."""

from typing import Any

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.runs import Finished, FinishReason
from actserve_server.monitors.watched import WatchedFinished
from actserve_server.rpc.transport.calls import Call

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.REPETITION: pb.FINISH_REASON_REPETITION,
    FinishReason.MONITOR: pb.FINISH_REASON_MONITOR,
}


def ending(finished: Finished) -> dict[str, Any]:
    """The fields of SampleFinished that say why a sample ended."""
    fields: dict[str, Any] = {"reason": FINISH_REASONS[finished.reason]}
    match finished.stopped_by:
        case int(token):
            fields["end_token_id"] = token
        case str(text):
            fields["stop_string"] = text
    if isinstance(finished, WatchedFinished) and finished.ended_by is not None:
        fields["monitor"] = finished.ended_by
    return fields


def usage(call: Call) -> pb.Usage:
    """What a call has consumed."""
    return pb.Usage(
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        activation_bytes=call.activation_bytes,
    )
