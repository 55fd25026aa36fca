"""ReconstructActivations: words into rows."""

import numpy as np
import pytest

from actserve.v1 import tensor_pb2
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import decoded, eventually, kinds, serving, site
from tests.contract.nlas import Tiny, events_of, reconstruct
from tests.contract.readouts import of_kind

TEXTS = ["It is about boats.", "It is about ships.", "  It ends with a space. "]


async def test_a_row_is_what_the_reconstructor_finds_in_its_text() -> None:
    tiny = Tiny()
    events = await events_of(reconstruct(*TEXTS), tiny)
    assert kinds(events) == ["started", "rows", "finished"]
    started = events[0].started
    assert (started.nla, started.rows, started.width) == ("models/fake/nlas/tiny", 3, 16)
    assert started.call_id
    (chunk,) = of_kind(events, "rows")
    assert (chunk.first_index, chunk.rows.element_type) == (0, tensor_pb2.ELEMENT_TYPE_F32)
    expected = np.stack([tiny.reconstructed(text) for text in TEXTS])
    np.testing.assert_allclose(decoded(chunk.rows), expected, rtol=1e-4, atol=1e-5)


async def test_rows_come_in_order_in_messages_of_at_most_a_mebibyte() -> None:
    width, count = 4096, 150
    ar = FakeEngine(width=width)
    tiny = Tiny(av=None, ar=ar, head=np.eye(width, dtype=np.float32))
    words = [f"number {index}" for index in range(count)]
    events = await events_of(reconstruct(*words), tiny, fake=FakeEngine(width=width))
    assert max(event.ByteSize() for event in events) <= 1 << 20
    chunks = of_kind(events, "rows")
    assert [chunk.first_index for chunk in chunks] == list(
        np.cumsum([0, *(chunk.rows.shape[0] for chunk in chunks[:-1])])
    )
    rows = np.concatenate([decoded(chunk.rows) for chunk in chunks])
    assert rows.shape == (count, width)
    for index in (0, 64, 149):
        np.testing.assert_allclose(
            rows[index], tiny.reconstructed(words[index]), rtol=1e-4, atol=1e-5
        )
    usage = events[-1].finished.usage
    assert usage.activation_bytes == rows.nbytes
    assert usage.prompt_tokens == sum(len(word) + 1 for word in words)
    assert usage.output_tokens == 0


@pytest.mark.parametrize("layer", [1, -3])
async def test_the_layer_may_count_from_the_end(layer: int) -> None:
    events = await events_of(reconstruct("a", site=site(layer)))
    assert kinds(events) == ["started", "rows", "finished"]


async def test_cancelling_frees_the_runs() -> None:
    ar = FakeEngine(token_delay_s=60)
    nla = Tiny(ar=ar).loaded()
    async with serving(None, nla) as served:
        stream = served.explanations.ReconstructActivations(reconstruct(*TEXTS))
        await stream.read()
        await eventually(lambda: len(ar.counters.running) == 3)
        stream.cancel()
        await eventually(lambda: not ar.counters.running and nla.gate.calls == 0)
