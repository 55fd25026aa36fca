"""A table of heads is whole and what was asked for, or an error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actserve import BadResponse, InvalidRequest, Patterns, StreamCutShort
from actserve._head_calls import HeadsCall
from actserve.v1 import head_service_pb2 as pb
from actserve.v1 import tensor_pb2

LAYERS, HEADS = (3, 1), 2


def weights(*values: float) -> tensor_pb2.Tensor:
    data = np.array(values, "<f4")
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=data.shape, data=data.tobytes()
    )


def responses() -> list[dict[str, Any]]:
    """Of two prompts, the second of which fails."""
    return [
        {"started": {"call_id": "c"}},
        {
            "pattern": {
                "item_index": 0,
                "layer": 3,
                "head": 1,
                "queries": [0, 1, 1],
                "keys": [0, 1, 0],
                "weights": weights(1, 0.75, 0.25),
            }
        },
        {"item_finished": {"item_index": 0, "prompt": {"ids": [5, 6], "texts": ["a", "b"]}}},
        {"item_finished": {"item_index": 1, "status": {"code": 3, "message": "no"}}},
        *(
            {"metrics": {"layer": layer, "head": head, "queries": 2, "entropy": layer + head / 2}}
            for layer in LAYERS
            for head in range(HEADS)
        ),
        {"finished": {}},
    ]


def read(sent: list[dict[str, Any]], **changes: Any) -> Any:
    fields = {"items": [{}, {}], "patterns": {}, "top_tokens": 1, **changes}
    call = HeadsCall(pb.MeasureHeadsRequest(**fields), LAYERS, HEADS)
    for each in sent:
        call.read(pb.MeasureHeadsResponse(**each))
    return call.result()


def test_scores_stand_at_their_layer_and_head() -> None:
    table = read(responses())
    assert table.entropy.tolist() == [[3, 3.5], [1, 1.5]]
    assert table.top("entropy", 2) == [(3, 1, 3.5), (3, 0, 3.0)]
    good, failed = table.prompts
    assert isinstance(failed, InvalidRequest)
    assert good.patterns[3, 1].dense(2).tolist() == [[1, 0], [0.25, 0.75]]
    assert good.patterns.keys() == {(3, 0), (3, 1), (1, 0), (1, 1)}
    assert not good.patterns[1, 0].weights.size
    with pytest.raises(ValueError, match="there are previous_token"):
        table.score("attribution")


BROKEN: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a head is missing": lambda sent: sent.pop(4),
    "a head comes twice": lambda sent: sent.insert(5, sent[4]),
    "a head of another layer": lambda sent: sent[4]["metrics"].update(layer=2),
    "a head too many": lambda sent: sent[4]["metrics"].update(head=2),
    "heads over other queries": lambda sent: sent[4]["metrics"].update(queries=3),
    "more tokens than asked for": lambda sent: sent[4]["metrics"].update(
        top_key_tokens=[{"token_id": 1}, {"token_id": 2}]
    ),
    "a prompt is missing": lambda sent: sent.pop(3),
    "a prompt comes twice": lambda sent: sent.insert(3, sent[2]),
    "a prompt unasked": lambda sent: sent[2]["item_finished"].update(item_index=2),
    "a prompt without tokens": lambda sent: sent[2]["item_finished"].pop("prompt"),
    "a pattern of another head": lambda sent: sent[1]["pattern"].update(head=2),
    "a pattern after its prompt": lambda sent: sent.insert(3, sent[1]),
    "a weight too few": lambda sent: sent[1]["pattern"].update(weights=weights(1, 0.75)),
    "a key too few": lambda sent: sent[1]["pattern"].update(keys=[0, 1]),
    "a key after its query": lambda sent: sent[1]["pattern"].update(keys=[1, 1, 0]),
    "a query beyond the prompt": lambda sent: sent[1]["pattern"].update(queries=[0, 1, 2]),
    "two beginnings": lambda sent: sent.insert(1, sent[0]),
}


@pytest.mark.parametrize("breaking", BROKEN.values(), ids=BROKEN.keys())
def test_what_breaks_the_contract_is_an_error(breaking: Callable[..., Any]) -> None:
    sent = responses()
    breaking(sent)
    with pytest.raises(BadResponse):
        read(sent)


def test_patterns_that_nobody_asked_for_are_an_error() -> None:
    with pytest.raises(BadResponse, match="unasked"):
        read(responses(), patterns=None)


def test_a_stream_that_is_cut_short_is_an_error() -> None:
    with pytest.raises(StreamCutShort):
        read(responses()[:-1])


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"top_k": 65}, {"minimum": -1}, {"minimum": 2}])
def test_patterns_are_checked_where_they_are_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Patterns(**wrong)
