"""JSON that no message can be read from is refused by name, however odd."""

import pytest
from google.protobuf import message_factory

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc.web.json_messages import from_json
from tests.contract.test_fuzz import METHODS

ODD = {
    "half of a surrogate pair for a message": (
        "MonitorService/ReplayMonitors",
        '{"items": ["\\ud800"]}',
    ),
    "half of a surrogate pair for a text": (
        "ExplanationService/ReconstructActivations",
        '{"texts": ["\\ud800"]}',
    ),
    "half of a surrogate pair as a name": ("ModelService/ListModels", '{"\\ud800": 1}'),
    "infinity for an enum": ("DictionaryService/BeginUpload", '{"dictionary": {"kind": 1e400}}'),
    "infinity for a whole number": ("WeightService/ReadTokenRows", '{"tokenIds": [1e400]}'),
}


@pytest.mark.parametrize(("method", "sent"), ODD.values(), ids=ODD)
def test_odd_json_is_refused_in_words_that_can_be_sent(method: str, sent: str) -> None:
    kind = message_factory.GetMessageClass(METHODS[f"/actserve.v1.{method}"].input_type)
    with pytest.raises(ActserveError) as refused:
        from_json(sent.encode(), kind)
    assert refused.value.reason in (Reason.REQUEST_MALFORMED, Reason.FIELD_UNKNOWN)
    assert refused.value.message.encode()
