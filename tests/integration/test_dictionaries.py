"""Dictionaries on a real engine: features are those of the formula on rows that transformers
computes, and changes of features do what a hook with the same dictionary does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from actserve.v1 import (
    dictionary_service_pb2,
    dictionary_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
)
from actserve_server.domain.operations import Features
from actserve_server.domain.projection import Projected, Projection, ReLU
from actserve_server.domain.runs import Capture, Intervention
from actserve_server.domain.sites import HookPoint, Site
from tests.contract.dictionaries import Sent, chunk, numbers
from tests.contract.harness import matrices as read_matrices
from tests.contract.harness import site
from tests.integration.conftest import Served
from tests.integration.harness import (
    ALL,
    EngineThread,
    again,
    greedy,
    make_run,
    relative_errors,
    started,
    vllm_counter,
)
from tests.integration.reference import Reference

WIDTH, FEATURES, LAYER = 576, 768, 15
SITE, LATER = Site(HookPoint.RESID_POST, LAYER), Site(HookPoint.RESID_POST, 25)
IDS = tuple(3000 + index * 41 % 9000 for index in range(24))
POSITIONS = (3, 4, 9, 20)
CHUNK_BYTES = 1 << 20
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


@pytest.fixture(scope="module")
def rows(reference: Reference) -> np.ndarray:
    return reference.rows(IDS, sites={SITE}, logits=1)[SITE]


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield channel


def dictionary(name: str, activation: dict[str, Any]) -> Sent:
    """One whose features are about as large as the rows, a few of which are active."""
    parts = {
        "encoder": numbers(FEATURES, WIDTH, seed=1) / np.float32(np.sqrt(WIDTH)),
        "encoder_bias": numbers(FEATURES, seed=2),
        "decoder": numbers(FEATURES, WIDTH, seed=3) / np.float32(np.sqrt(WIDTH)),
        "input_bias": numbers(WIDTH, seed=4),
    }
    if "jump_relu" in activation:
        parts["thresholds"] = np.abs(numbers(FEATURES, seed=5))
    return Sent(parts, name, {"features": FEATURES, "site": site(LAYER), **activation})


SENT = {
    "jump_relu": dictionary("jumps", {"jump_relu": {}}),
    "top_k": dictionary("tops", {"top_k": {"k": 32}}),
}


def full(sent: Sent) -> str:
    return f"models/smollm2-135m/dictionaries/{sent.name}"


@pytest.fixture(scope="module", params=SENT)
def uploaded(request: pytest.FixtureRequest, channel: grpc.Channel) -> Sent:
    sent = SENT[request.param]
    stub = dictionary_service_pb2_grpc.DictionaryServiceStub(channel)
    begun = stub.BeginUpload(sent.request)
    for index, content in enumerate(sent.content):
        for start in range(0, len(content), CHUNK_BYTES):
            part = content[start : start + CHUNK_BYTES]
            stub.UploadChunk(chunk(begun.upload, index, start, part))
    stub.FinishUpload(dictionary_service_pb2.FinishUploadRequest(upload=begun.upload))
    return sent


def encoded(sent: Sent, x: np.ndarray) -> np.ndarray:
    """By the formula of the contract, in float64."""
    parts = {role: of.astype(np.float64) for role, of in sent.parts.items()}
    z = (x - parts["input_bias"]) @ parts["encoder"].T + parts["encoder_bias"]
    if "thresholds" in parts:
        return np.where(z > parts["thresholds"], z, 0)
    kept = np.sort(z, axis=1)[:, -32][:, None]
    return np.where(z >= kept, np.maximum(z, 0), 0)


def fetch(
    channel: grpc.Channel, where: Site, *interventions: dict[str, Any], **readout: Any
) -> list[Any]:
    request = generation_service_pb2.FetchActivationsRequest(
        items=[{"prompt": {"token_ids": {"ids": IDS}}}],
        readouts=[{"rows": {"sites": [site(where.layer)], **readout}}],
        interventions=interventions,
    )
    stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
    return list(stub.FetchActivations(request))


def values(events: list[Any]) -> np.ndarray:
    ((_, found),) = read_matrices(events).values()
    return found


def changing(sent: Sent, *changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "sites": [site(LAYER)],
        "positions": {"list": {"positions": POSITIONS}},
        "features": {"dictionary": full(sent), "changes": changes},
    }


def test_features_are_those_of_the_formula(
    uploaded: Sent, channel: grpc.Channel, rows: np.ndarray
) -> None:
    wanted = encoded(uploaded, rows.astype(np.float64))
    size = np.abs(wanted).max(axis=1, keepdims=True)
    assert 0.01 < (wanted != 0).mean() < 0.9
    # Twice, of which the second finds the encoder on the device.
    for _ in range(2):
        got = values(fetch(channel, SITE, projection={"dictionary": full(uploaded)}))
        assert (np.abs(got - wanted) <= TOLERANCE * size).mean() > 0.999
        events = fetch(channel, SITE, projection={"dictionary": full(uploaded), "send_top": 20})
        top = -np.sort(-wanted, axis=1)[:, :20]
        assert (np.abs(values(events) - top) <= TOLERANCE * size).all()


def test_a_change_of_features_is_that_of_a_hook(
    uploaded: Sent, channel: grpc.Channel, reference: Reference, rows: np.ndarray
) -> None:
    active = [int(each) for each in np.argsort(-encoded(uploaded, rows[[3]])[0])[:2]]
    other = next(i for i in range(FEATURES) if i not in active)
    decoder = uploaded.parts["decoder"].astype(np.float64)
    strong = 2 * float(np.linalg.norm(rows[3]))

    def hook(x: np.ndarray) -> np.ndarray:
        out, at = x.astype(np.float64), list(POSITIONS)
        f = encoded(uploaded, out[at])
        new = f.copy()
        new[:, active[0]], new[:, active[1]] = 0, 3 * f[:, active[1]]
        new[:, other] = strong
        error = out[at] - f @ decoder
        out[at] = new @ decoder + error
        return out.astype(np.float32)

    sites = {SITE, LATER}
    wanted = reference.rows(IDS, {SITE: hook}, sites=sites, logits=1)
    change = changing(
        uploaded,
        {"index": active[0], "factor": 0.0},
        {"index": active[1], "factor": 3.0},
        {"index": other, "value": strong},
    )
    plain = values(fetch(channel, LATER))
    for where in (SITE, LATER):
        steered = values(fetch(channel, where, change))
        assert relative_errors(steered, wanted[where]).max() < TOLERANCE
    assert relative_errors(plain, wanted[LATER])[POSITIONS[0]] > 10 * TOLERANCE


def test_a_feature_set_to_what_it_is_changes_nothing(uploaded: Sent, channel: grpc.Channel) -> None:
    plain = values(fetch(channel, LATER))
    features = values(fetch(channel, SITE, projection={"dictionary": full(uploaded)}))
    index = int(features[3].argmax())
    same = changing(uploaded, {"index": index, "value": float(features[3, index])})
    same["positions"]["list"]["positions"] = (3,)
    steered = values(fetch(channel, LATER, same))
    assert relative_errors(steered, plain).max() < 1e-4


def test_what_others_steer_and_cancel_changes_no_feature(smollm2: EngineThread) -> None:
    """Preempted, from the caches, and by an encoder that stays on the device between runs."""
    text = "Which features? " + "The harbour lies behind the long wall of the old town. " * 24
    ids = smollm2.tokenize(text).ids
    encoder = Projection(
        numbers(FEATURES, WIDTH, seed=6) / np.float32(np.sqrt(WIDTH)), None, ReLU(), lasting=True
    )
    doubled = Features(
        encoder,
        np.array([3, 7]),
        numbers(2, WIDTH, seed=7) / np.float32(np.sqrt(WIDTH)),
        np.array([2.0, 1.0], np.float32),
        np.array([0.0, 50.0], np.float32),
    )
    captures = Capture((SITE,), ALL, Projected(encoder)), Capture((SITE, LATER), ALL)
    read = replace(make_run(ids, captures=captures, sampling=greedy(8)), tenant="acme")
    changed = replace(read, interventions=(Intervention((SITE,), ALL, doubled),))
    steered = replace(changed, tenant="other", sampling=greedy(120))
    alone = []
    for run in (read, changed):
        smollm2.forget()
        alone.append(smollm2.run(again(run)))
    smollm2.forget()
    before = vllm_counter("vllm:num_preemptions_total")
    for _ in range(2):  # The second time the caches hold what each has left.
        smollm2.call(started(smollm2.engine, again(steered)))
        mine = [again(read), again(changed)]
        # Short ones that grow, so that together they outgrow the cache.
        others = [again(replace(steered, token_ids=ids[200 + number :])) for number in range(8)]
        results = smollm2.run_all([*others[:4], *mine, *others[4:]])[4:6]
        for result, wanted in zip(results, alone, strict=True):
            assert result.token_ids == wanted.token_ids
            features, rows = (each.rows[SITE] for each in result.captures)
            assert relative_errors(features, wanted.captures[0].rows[SITE]).max() < TOLERANCE
            assert relative_errors(features, encoder.apply(rows)).max() < TOLERANCE
            for where in (SITE, LATER):
                expected = wanted.captures[1].rows[where]
                assert relative_errors(result.captures[1].rows[where], expected).max() < TOLERANCE
    assert vllm_counter("vllm:num_preemptions_total") > before
    (plain, other) = (each.captures[0].rows[SITE] for each in alone)
    assert relative_errors(other, plain).max() > 10 * TOLERANCE
