"""JSON is read as protobuf's own mapping has it, and within bounds."""

import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc.web.json_messages import MAX_JSON_BYTES, from_json, to_json

REQUEST = pb.GenerateRequest(
    prompt={"text": "grüße \x00 \u2028"},
    sampling={"max_tokens": 5, "temperature": 0.1, "seed": 2**63 - 1},
    interventions=[{"add": {"coefficient": float("inf")}}],
)


def test_a_message_is_the_same_after_json_as_before() -> None:
    assert pb.GenerateRequest.FromString(from_json(to_json(REQUEST), pb.GenerateRequest)) == REQUEST


@pytest.mark.parametrize("name", ["maxTokens", "max_tokens"])
def test_both_spellings_of_fields_are_read(name: str) -> None:
    data = b'{"sampling":{"%s":5}}' % name.encode()
    read = pb.GenerateRequest.FromString(from_json(data, pb.GenerateRequest))
    assert read.sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.REQUEST_MALFORMED),
        (b"null", Reason.REQUEST_MALFORMED),
        (b'"text"', Reason.REQUEST_MALFORMED),
        (b"1", Reason.REQUEST_MALFORMED),
        (b"[]", Reason.REQUEST_MALFORMED),
        (b"{}{}", Reason.REQUEST_MALFORMED),
        (b'{"sampling":5}', Reason.REQUEST_MALFORMED),
        (b'{"sampling":{"maxTokens":1e400}}', Reason.REQUEST_MALFORMED),
        (b'{"sampling":{"maxTokens":' + b"9" * 5000 + b"}}", Reason.REQUEST_MALFORMED),
        (b'{"sampling":{"temperature":NaN}}', Reason.REQUEST_MALFORMED),
        (b'{"prompt":{"text":"\\ud800"}}', Reason.REQUEST_MALFORMED),
        (b'{"prompt":{"text":"a","tokenIds":{"ids":[1]}}}', Reason.REQUEST_MALFORMED),
        (b'{"prompt":' * 50_000, Reason.REQUEST_MALFORMED),
        (b'{"prompt":{"tokenIds":{"ids":[%s0]}}}' % (b"0," * 100_000), Reason.TOO_MANY_PARTS),
        (b'{"promt":{}}', Reason.FIELD_UNKNOWN),
        (b" " * (MAX_JSON_BYTES + 1), Reason.MESSAGE_TOO_LARGE),
    ],
    ids=lambda value: value if isinstance(value, Reason) else repr(value[:40]),
)
def test_what_is_no_message_is_refused_with_a_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(ActserveError) as caught:
        from_json(data, pb.GenerateRequest)
    assert caught.value.reason is reason
