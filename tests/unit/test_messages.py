"""What is found inside a message."""

from google.protobuf.struct_pb2 import Struct

from actserve.v1 import intervention_pb2, steering_vector_service_pb2
from actserve_server.rpc.transport.messages import inside


def test_messages_come_with_the_path_from_where_one_began() -> None:
    message = intervention_pb2.Intervention(
        sites=[{"layer": 1}, {"layer": 2}], positions={"last": {}}, heads=[1]
    )
    assert list(inside(message, ("items", 3))) == [
        (("items", 3, "sites", 0), message.sites[0]),
        (("items", 3, "sites", 1), message.sites[1]),
        (("items", 3, "positions"), message.positions),
    ]


def test_a_map_of_texts_holds_no_message() -> None:
    labels = {"mood": "calm"}
    request = steering_vector_service_pb2.CreateSteeringVectorRequest(labels=labels)
    assert list(inside(request)) == []


def test_what_a_map_holds_has_the_path_of_the_map() -> None:
    message = Struct()
    message.update({"secret key": 1.0})
    assert list(inside(message)) == [(("fields",), message.fields["secret key"])]
