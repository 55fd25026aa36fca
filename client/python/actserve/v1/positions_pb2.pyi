from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PositionSelector(_message.Message):
    __slots__ = ("all", "last", "list", "span", "prompt", "generated", "token_ids", "text", "characters", "turns")
    ALL_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    all: AllPositions
    last: LastPosition
    list: PositionList
    span: PositionRange
    prompt: PromptPositions
    generated: GeneratedPositions
    token_ids: TokenIdPositions
    text: TextPositions
    characters: CharacterPositions
    turns: TurnPositions
    def __init__(self, all: _Optional[_Union[AllPositions, _Mapping]] = ..., last: _Optional[_Union[LastPosition, _Mapping]] = ..., list: _Optional[_Union[PositionList, _Mapping]] = ..., span: _Optional[_Union[PositionRange, _Mapping]] = ..., prompt: _Optional[_Union[PromptPositions, _Mapping]] = ..., generated: _Optional[_Union[GeneratedPositions, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIdPositions, _Mapping]] = ..., text: _Optional[_Union[TextPositions, _Mapping]] = ..., characters: _Optional[_Union[CharacterPositions, _Mapping]] = ..., turns: _Optional[_Union[TurnPositions, _Mapping]] = ...) -> None: ...

class AllPositions(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LastPosition(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PromptPositions(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GeneratedPositions(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PositionList(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positions: _Optional[_Iterable[int]] = ...) -> None: ...

class PositionRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class TokenIdPositions(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TextPositions(_message.Message):
    __slots__ = ("text", "occurrence", "turn")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    OCCURRENCE_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    text: str
    occurrence: int
    turn: int
    def __init__(self, text: _Optional[str] = ..., occurrence: _Optional[int] = ..., turn: _Optional[int] = ...) -> None: ...

class CharacterPositions(_message.Message):
    __slots__ = ("start", "end", "turn")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    turn: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., turn: _Optional[int] = ...) -> None: ...

class TurnPositions(_message.Message):
    __slots__ = ("turns", "roles")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    turns: _containers.RepeatedScalarFieldContainer[int]
    roles: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, turns: _Optional[_Iterable[int]] = ..., roles: _Optional[_Iterable[str]] = ...) -> None: ...
