"""Logit attribution: what each row adds to a logit, with the final norm's scale frozen."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import HeadMatrix
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import addition, fetch, generate, kinds, matrices, run, site
from tests.contract.readouts import attributions, of_kind, predictions

LAST = 3
HEADS = 4
EMBEDDING = site(None, site_pb2.HOOK_POINT_EMBEDDING)
Z = site(1, site_pb2.HOOK_POINT_Z)
ATTN_OUT = site(1, site_pb2.HOOK_POINT_ATTN_OUT)
H, E, BELL = 104, 101, 7
"""Two tokens that the fake engine generates, and one that it never does."""
TARGETS = [{"token_id": H}, {"token_id": H, "minus_token_id": E}, {"token_id": BELL}]


def asked(*sites: Any, **fields: Any) -> dict[str, Any]:
    return {"logit_attribution": {"sites": [*sites], "targets": TARGETS, **fields}}


def reference(fake: FakeEngine, row: np.ndarray, last: np.ndarray) -> np.ndarray:
    """What a row adds to each target, in float64."""
    of_token = {token: fake.unembedding(token).astype(np.float64) for token in (H, E, BELL)}
    scale = 1 / np.sqrt(np.mean(last.astype(np.float64) ** 2))
    return np.array([of_token[H] @ row, (of_token[H] - of_token[E]) @ row, 0.0]) * scale


@pytest.mark.parametrize("element_type", ElementType)
async def test_a_row_adds_its_product_with_the_unembedding_scaled_as_the_last_residual_is(
    element_type: ElementType,
) -> None:
    fake = FakeEngine(element_type=element_type)
    sites = [EMBEDDING, site(0), ATTN_OUT, site(-1)]
    events = await run(fetch("hello", capture={"sites": sites, **asked(*sites)}), fake)
    rows = matrices(events)
    (_, last) = rows[0, 3]
    for index in range(len(sites)):
        positions, got = attributions(events)[0, index]
        assert positions == [0, 1, 2, 3, 4, 5]
        expected = [
            reference(fake, row, of) for row, of in zip(rows[0, index][1], last, strict=True)
        ]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


async def test_the_last_residual_and_the_constants_are_what_the_model_predicts() -> None:
    """Log probabilities differ as logits do."""
    lens = {"sites": [site(-1)], "token_ids": [H, E, BELL]}
    targets = [{"token_id": token, "minus_token_id": E} for token in (H, BELL)]
    events = await run(
        fetch("hello", capture={"predictions": lens, **asked(site(-1), targets=targets)})
    )
    (named,) = (each.named for each in predictions(events).values())
    constants = of_kind(events, "started")[0].readouts[1].target_constants
    ((_, got),) = attributions(events).values()
    np.testing.assert_allclose(
        got + np.array(constants), named[:, [0, 2]] - named[:, [1]], rtol=1e-4, atol=1e-4
    )


async def test_each_head_adds_what_it_writes_through_its_part_of_the_output_projection() -> None:
    fake = FakeEngine()
    events = await run(fetch("hello", capture={"sites": [Z, site(-1)], **asked(Z)}), fake)
    z, last = (matrices(events)[0, index][1] for index in range(2))
    ((_, got),) = attributions(events).values()
    assert got.shape == (6, HEADS, len(TARGETS))
    for head in range(HEADS):
        output = await fake.head_rows(1, head, HeadMatrix.OUTPUT, range(4))
        written = np.split(z, HEADS, axis=1)[head] @ output
        expected = [reference(fake, row, of) for row, of in zip(written, last, strict=True)]
        np.testing.assert_allclose(got[:, head], expected, rtol=1e-4, atol=1e-4)


async def test_rows_and_their_scale_are_those_after_interventions() -> None:
    fake = FakeEngine()
    edits = [addition(np.full(16, 3.0), layer=LAST)]
    request = fetch(
        "hello", capture={"sites": [site(0), site(-1)], **asked(site(0))}, interventions=edits
    )
    events = await run(request, fake)
    row, last = (matrices(events)[0, index][1][-1] for index in range(2))
    plain = fake.row(Site(HookPoint.RESID_POST, LAST), [256, *b"hello"])
    ((_, got),) = attributions(events).values()
    np.testing.assert_allclose(got[-1], reference(fake, row, last), rtol=1e-4, atol=1e-4)
    assert np.abs(got[-1] - reference(fake, row, plain)).max() > 1e-2


async def test_generated_positions_are_attributed_as_they_come() -> None:
    where = {"span": {"start": 4}}
    events = await run(generate(capture=asked(site(1), Z, positions=where)))
    for positions, got in attributions(events).values():
        assert positions == [4, 5, 6, 7, 8, 9]
        assert len(got) == len(positions)
    order = kinds(events)
    assert order.index("logit_attribution") < len(order) - 1 - order[::-1].index("tokens")


async def test_items_have_positions_of_their_own() -> None:
    items = [
        {"prompt": {"text": "hello"}, "positions": {"list": {"positions": [2, 4]}}},
        {"prompt": {"text": "ho"}},
    ]
    events = await run(fetch(items=items, capture=asked(site(1), positions={"last": {}})))
    found = attributions(events)
    assert [found[index, 0][0] for index in range(2)] == [[2, 4], [2]]


async def test_a_message_holds_no_more_than_a_mebibyte() -> None:
    fake = FakeEngine(rows_per_event=2048)
    targets = [{"token_id": token} for token in range(64)]
    events = await run(
        fetch("x" * 2000, capture=asked(Z, targets=targets)),
        fake,
    )
    sizes = [event.ByteSize() for event in events if event.HasField("logit_attribution")]
    assert len(sizes) > 1
    assert max(sizes) <= 1 << 20
