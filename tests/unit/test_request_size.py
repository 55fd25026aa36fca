"""The parts of a request are counted from its bytes, as many as parsing makes objects of."""

import random
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc.transport.request_size import PACKED_BYTES, check_parts

KIND: Any = pb.GenerateRequest.DESCRIPTOR
TURNS = [{"role": "user", "content": "hello"}] * 3
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "nothing": ({}, 0),
    "a text": ({"prompt": {"text": "x" * 100_000}}, 2),
    "turns": ({"prompt": {"conversation": {"turns": TURNS}}}, 2 + 3 * 3),
    "empty turns": ({"prompt": {"conversation": {"turns": [{}] * 500}}}, 2 + 500),
    "numbers": ({"prompt": {"token_ids": {"ids": [1] * 64 * PACKED_BYTES}}}, 3 + 64),
    "wide numbers": ({"prompt": {"token_ids": {"ids": [1 << 30] * 8}}}, 3 + 40 // PACKED_BYTES),
    "a tensor": (
        {
            "interventions": [
                {"add": {"vector": {"tensor": {"element_type": 1, "data": b"\x0a\x00" * 9999}}}}
            ]
        },
        6,
    ),
    "template arguments": (
        {"prompt": {"conversation": {"template_arguments": {"a": True, "b": [1]}}}},
        # Each name is an entry of a key and a value, and the list has one more value.
        3 + (3 + 1) + (3 + 1 + 2),
    ),
    "sampling": ({"sampling": {"temperature": 0.5, "seed": 1 << 60, "stop": ["a", "b"]}}, 5),
}


def refusal(data: bytes, limit: int) -> Reason | None:
    try:
        check_parts(data, KIND, limit)
    except ActserveError as error:
        return error.reason
    return None


@pytest.mark.parametrize(("fields", "parts"), CASES.values(), ids=CASES)
def test_a_request_may_have_as_many_parts_as_the_limit(fields: dict[str, Any], parts: int) -> None:
    data = pb.GenerateRequest(**fields).SerializeToString()
    assert refusal(data, parts) is None
    if parts:
        assert refusal(data, parts - 1) is Reason.TOO_MANY_PARTS


def objects(message: Any) -> int:
    """What parsing made of a message, without the message itself; a list of numbers is one."""
    made = 0
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            made += sum(3 + objects(item) for item in value.values())
            continue
        items = value if field.is_repeated else [value]
        if field.is_repeated and field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            items = [0]
        made += sum(1 + (objects(item) if field.message_type else 0) for item in items)
    return made


def test_nothing_parses_into_more_than_was_counted() -> None:
    rng = random.Random(3)
    whole = pb.GenerateRequest(
        prompt={"conversation": {"turns": TURNS, "template_arguments": {"a": ["b", {"c": 1}]}}},
        sampling={"temperature": 0.5, "stop": ["ab"]},
    ).SerializeToString()
    parsed = 0
    for _ in range(20_000):
        data = bytearray(whole[: rng.randint(1, len(whole))])
        data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(DecodeError):
            made = objects(pb.GenerateRequest.FromString(bytes(data)))
            parsed += 1
            assert not made or refusal(bytes(data), made - 1) is not None
    assert parsed > 100


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x05ab", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b", b"\xff"],
    ids=bytes.hex,
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    assert refusal(data, 1000) is Reason.REQUEST_MALFORMED
