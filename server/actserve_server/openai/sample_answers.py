"""What is told of a sample beside its tokens: what interventions did, scores, alerts, readouts."""

from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from vllm.sampling_params import SamplingParams

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.runs import Tokens
from actserve_server.openai.asked import Asked
from actserve_server.rpc.responses.call_results import Event

_TOLD_BY_VLLM = ("reason", "end_token_id", "stop_string")
"""Fields of `SampleFinished` that say what `finish_reason` and `stop_reason` say."""


class SampleAnswer:
    """Gathers it, in the JSON of the contract's messages, until the sample is finished."""

    def __init__(self, asked: Asked, choice: int, params: SamplingParams) -> None:
        """`choice` is the sample's index in the answer."""
        self.params = params
        self.last: Tokens | None = None
        """The tokens that it ends with, which are told with why it ends."""
        self._asked = asked
        self._choice = choice
        self._alerts: list[dict[str, Any]] = []
        self._readouts: list[dict[str, Any]] = []

    def add(self, tokens: Tokens) -> Tokens | None:
        """Returns tokens unless they are the last ones."""
        self.last = tokens if tokens.ends else None
        return None if tokens.ends else tokens

    def read(self, event: Event) -> pb.SampleFinished | None:
        """Takes a field of a response; returns it if it is the last one."""
        ((name, message),) = event.items()
        match message:
            case pb.SampleFinished():
                self._asked.told[self._choice] = self._told(message)
                return message
            case _ if name == "alert":
                self._alerts.append(json_of(message))
            case _:
                self._asked.charge(message.ByteSize())
                self._readouts.append({name: json_of(message, "sequence_index")})
        return None

    def _told(self, finished: pb.SampleFinished) -> dict[str, Any]:
        told = {"index": self._choice, **json_of(finished, "sample_index", *_TOLD_BY_VLLM)}
        if self._alerts:
            told["alerts"] = self._alerts
        if self._readouts:
            told["readouts"] = self._readouts
        return told


def json_of(message: Message, *without: str) -> dict[str, Any]:
    """The JSON of a message, by the contract's names, without some fields."""
    made = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    told = {name: value for name, value in made.items() if name not in without and value != []}
    return _with_numbers(message.DESCRIPTOR, told)


def _with_numbers(kind: Any, made: dict[str, Any]) -> dict[str, Any]:
    """The same with counts of 64 bits as numbers. Protocol Buffers writes them as texts, since some
    readers have doubles alone; none here comes near what those cannot hold."""
    for field in kind.fields:
        value = made.get(field.name)
        if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
            if isinstance(value, str):
                made[field.name] = int(value)
        elif field.message_type is not None:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    _with_numbers(field.message_type, each)
    return made
