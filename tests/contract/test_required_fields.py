"""A number that must be set can be told from zero where zero is a good value."""

from collections.abc import Iterator
from typing import Any

from google.api import field_behavior_pb2

from tests.contract.test_names import MESSAGES

ZERO_IS_REFUSED = {
    "actserve.v1.CharacterPositions.end",
    "actserve.v1.Dictionary.features",
    "actserve.v1.EmaSmoothing.weight",
    "actserve.v1.RepetitionDetection.max_pattern_size",
    "actserve.v1.RepetitionDetection.min_count",
    "actserve.v1.RollingMeanSmoothing.tokens",
    "actserve.v1.TopKActivation.k",
}
"""Of these an unset one is refused as a zero is."""


def required_numbers() -> Iterator[Any]:
    """The single numbers that a request must hold."""
    for message in MESSAGES:
        for field in message.fields:
            behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
            number = field.type not in (
                field.TYPE_BOOL,
                field.TYPE_BYTES,
                field.TYPE_ENUM,
                field.TYPE_MESSAGE,
                field.TYPE_STRING,
            )
            if number and not field.is_repeated and field_behavior_pb2.REQUIRED in behaviors:
                yield field


def test_an_unset_number_is_not_taken_for_zero_where_it_must_be_set() -> None:
    implicit = {field.full_name for field in required_numbers() if not field.has_presence}
    assert implicit == ZERO_IS_REFUSED
