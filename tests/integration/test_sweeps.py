"""A sweep on a real engine: its cells are what calls one by one say, in float32."""

from typing import Any

import grpc
import numpy as np
import pytest

import actserve
from actserve.v1 import sweep_service_pb2 as pb
from actserve.v1 import sweep_service_pb2_grpc
from tests.contract.harness import inline, site
from tests.contract.sweeps import cells
from tests.integration.conftest import Served

PROMPTS = (
    "I went to the cinema, and I thought that the film was",
    "The weather today is",
    "My neighbour told me",
    "When I opened the letter, I",
    "This restaurant",
)
LAYERS = (12, 20)
COEFFICIENTS = (-6.0, -4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0, 6.0)
ANSWERS = (" wonderful", " a complete waste of time")
TOKENS = 16
CLOSE = 1e-4


@pytest.fixture(scope="module")
def direction(served: Served) -> np.ndarray:
    """Of praise against blame, at the earlier layer."""
    where = f"resid_post.{LAYERS[0]}"
    good, bad = served.client.fetch(["What a joy!", "What a shame!"], where, positions="last")
    return np.asarray(good[where][-1] - bad[where][-1], np.float32)


@pytest.fixture(scope="module")
def events(served: Served, direction: np.ndarray) -> list[Any]:
    """Of 5 prompts at 2 layers and 10 coefficients."""
    vector = inline(direction)
    request = pb.RunSweepRequest(
        prompts=[{"prompt": {"text": text}} for text in PROMPTS],
        variants=[
            {
                "interventions": [{"add": {"vector": vector}}],
                "coefficients": COEFFICIENTS,
                "sites": [site(layer) for layer in LAYERS],
            }
        ],
        sampling={"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
        answers=[{"name": text, "text": text} for text in ANSWERS],
        scores=[{"name": "praise", "probe": {"site": site(25), "direction": vector}}],
        perplexity=True,
        afresh=True,
    )
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        stub: Any = sweep_service_pb2_grpc.SweepServiceStub(channel)
        return list(stub.RunSweep(request))


def test_every_cell_was_served(events: list[Any]) -> None:
    assert events[0].started.cells == len(cells(events)) == 100
    assert [cell.status.message for cell in cells(events) if cell.status.code] == []
    assert events[-1].finished.usage.output_tokens == 100 * TOKENS


def steer_of(cell: pb.SweepCell, direction: np.ndarray) -> actserve.Add:
    return actserve.Add(
        f"resid_post.{LAYERS[cell.site_index]}", direction, COEFFICIENTS[cell.coefficient_index]
    )


def test_a_cell_is_what_a_single_call_says(
    events: list[Any], served: Served, direction: np.ndarray
) -> None:
    client = served.client
    texts: list[list[int]] = []
    for cell in cells(events):
        text = PROMPTS[cell.prompt_index]
        alone = client.generate(
            text,
            "resid_post.25",
            projection=actserve.Projection(direction[None]),
            intervene=steer_of(cell, direction),
            max_tokens=TOKENS,
            temperature=0,
            ignore_eos=True,
        )
        assert cell.text == alone.text
        projected = alone.activations["resid_post.25"]
        np.testing.assert_allclose(cell.score_values, [projected[-1, 0]], rtol=CLOSE, atol=CLOSE)
        texts.append([*client.tokenize(text).token_ids, *alone.token_ids])
    for cell, scored in zip(cells(events), client.score(texts), strict=True):
        np.testing.assert_allclose(
            cell.perplexity, np.exp(-scored.logprobs[-TOKENS:].mean()), rtol=CLOSE
        )


def test_answers_are_as_likely_as_a_single_call_says(
    events: list[Any], served: Served, direction: np.ndarray
) -> None:
    client = served.client
    answers = [list(client.tokenize(text).token_ids) for text in ANSWERS]
    assert [len(answer) for answer in answers] == [1, 5]
    for cell in cells(events)[::5]:
        prompt = list(client.tokenize(PROMPTS[cell.prompt_index]).token_ids)
        steer = steer_of(cell, direction)
        alone = [
            client.score([*prompt, *answer], intervene=steer).logprobs[len(prompt) :].sum()
            for answer in answers
        ]
        np.testing.assert_allclose(cell.answer_logprobs, alone, rtol=CLOSE, atol=CLOSE)


def test_receipts_count_every_run_of_a_cell(events: list[Any], served: Served) -> None:
    for cell in cells(events):
        prompt = len(served.client.tokenize(PROMPTS[cell.prompt_index]).token_ids)
        (report,) = cell.interventions
        assert report.rows == (prompt + TOKENS - 1) + prompt + (prompt + 4)
        assert report.mean_relative_change > 0
