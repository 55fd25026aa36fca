"""Tensors of torch are taken wherever arrays are, and mean the same."""

from typing import Any

import numpy as np
import pytest

from actserve import Add, InvalidRequest, Projection, Replace, SteeringVector
from actserve._checks import described
from actserve.interventions import interventions_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.tensors import decode
from actserve.v1 import readout_pb2, tensor_pb2

from .fake_readouts import matrix, tensor

torch = pytest.importorskip("torch", reason="torch, which the client does not need, is missing")

SITE = "resid_post.1"

TENSORS: dict[str, Any] = {
    "float32": torch.tensor([1, 2, 0.5]),
    "bfloat16": torch.tensor([1, 2, 0.5], dtype=torch.bfloat16),
    "with gradient": torch.tensor([1, 2, 0.5], requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_vector_travels_as_float32(name: str) -> None:
    assert Add(SITE, TENSORS[name]).to_proto().add.vector.tensor == tensor([1, 2, 0.5])


def test_rows_travel_in_c_order_whatever_their_memory() -> None:
    transposed = torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 0.5]]).T
    rows = tensor([[1, 0], [0, 3], [-2, 0.5]])
    assert Replace(SITE, transposed).to_proto().replace.rows.tensor == rows


def test_directions_may_be_of_16_bits() -> None:
    directions = [[1.0, 0.0, -2.0], [0.0, 3.0, 0.5]]
    projection = Projection(torch.tensor(directions, dtype=torch.bfloat16))
    assert projection.to_proto() == readout_pb2.Projection(directions=matrix(directions))


def test_a_scalar_may_be_a_tensor_without_axes() -> None:
    assert Add(SITE, [1, 2], torch.tensor(2.5)).to_proto().add.coefficient == 2.5


def test_a_prompt_may_be_a_tensor_of_token_ids() -> None:
    prompt: Any = torch.tensor([1, 2])
    assert not is_many(prompt)
    assert list(prompt_to_proto(prompt).token_ids.ids) == [1, 2]


@pytest.mark.parametrize("container", [list, tuple])
def test_a_list_of_tensors_is_many_prompts(container: Any) -> None:
    prompt = torch.tensor([1, 2])
    assert is_many(container([prompt]))
    assert is_many(container([prompt, "and another", [3, 4]]))


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [
        (tensor_pb2.ELEMENT_TYPE_F16, torch.float16),
        (tensor_pb2.ELEMENT_TYPE_BF16, torch.bfloat16),
    ],
    ids=["float16", "bfloat16"],
)
def test_all_16_bit_patterns_decode_as_torch_reads_them(
    element_type: tensor_pb2.ElementType, dtype: Any
) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    sent = tensor_pb2.Tensor(
        element_type=element_type, shape=bits.shape, data=bits.astype("<u2").tobytes()
    )
    decoded = decode(sent)
    wanted = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    assert decoded.shape == (256, 256)
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(wanted))
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(
        decoded.view(np.uint32)[number], np.ascontiguousarray(wanted).view(np.uint32)[number]
    )


def test_torch_tensors_share_memory_with_the_arrays(client: Any) -> None:
    acts = client.fetch("a b c", ["embedding", "blocks.1.hook_resid_post"])
    tensors = acts.to_torch()
    assert list(tensors) == ["embedding", "resid_post.1"]
    tensors["embedding"][0, 0] = 99
    assert acts["embedding"][0, 0] == 99
    for site, rows in tensors.items():
        assert rows.dtype == torch.float32
        np.testing.assert_array_equal(rows.numpy(), acts[site])
    stack = acts.stack("resid_post")
    torch.from_numpy(stack)[:] = 7
    assert (stack == 7).all()


def test_a_message_describes_a_tensor_shortly() -> None:
    assert described(torch.zeros(2, 3)) == "Tensor of shape [2, 3]"
    with pytest.raises(InvalidRequest, match=r"^intervene is Tensor of shape \[2, 3\]; give"):
        interventions_to_proto(torch.zeros(2, 3))


def test_a_steering_vector_is_an_array_to_torch() -> None:
    vector = SteeringVector(SITE, [3, 4, 0])
    assert torch.tensor(np.array(vector)).tolist() == [3, 4, 0]
