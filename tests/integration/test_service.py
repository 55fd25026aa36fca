"""The whole service on the real model: Python client, gRPC, engine."""

import asyncio
import gc
import itertools
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import actserve
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import generation_service_pb2_grpc
from tests.integration.conftest import Served
from tests.ops.test_prometheus import EVERY_EXPRESSION, named_in

SITE = "resid_post.12"
STREAMS = (
    "embedding",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "mlp_in",
    "final_norm",
)
"""As wide as the residual stream."""
VECTOR = np.random.default_rng(5).normal(size=576).astype(np.float32) * 4


def test_garbage_is_not_looked_for_in_what_starting_made(served: Served) -> None:
    assert gc.get_freeze_count() > 100_000


def test_the_service_says_what_it_serves(served: Served) -> None:
    (model,) = served.client.models()
    assert (model.id, model.layer_count, model.width) == ("smollm2-135m", 30, 576)
    assert model.limits.max_sequence_tokens == 1024
    widths = {name: (how.width, how.heads) for name, how in model.hook_points.items()}
    assert widths == {
        **dict.fromkeys(STREAMS, (576, 0)),
        **dict.fromkeys(("q", "z"), (576, 9)),
        **dict.fromkeys(("k", "v"), (192, 3)),
        "mlp_act": (1536, 0),
        "logits": (49152, 0),
    }
    assert "final_norm" in model.hook_points["logits"].unchangeable_reason


def test_every_hook_point_is_fetched_at_its_width(served: Served) -> None:
    (model,) = served.client.models()
    sites = [site for site in model.sites if site.endswith(".7") or "." not in site]
    acts = served.client.fetch("The capital of France is", sites=sites)
    assert len(sites) == len(model.hook_points)
    for site in sites:
        width = model.hook_points[site.removesuffix(".7")].width
        assert acts[site].shape == (5, width)
        assert np.isfinite(acts[site]).all()


def test_heads_are_changed_at_the_tokens_of_a_text_and_it_is_reported(served: Served) -> None:
    zero = actserve.Zero("z.7", heads=[1, 4], positions=actserve.ByText("capital of France"))
    plain, changed = (
        served.client.fetch("The capital of France is", sites="z.7", intervene=steer)
        for steer in ([], [zero])
    )
    wanted = plain["z.7"].reshape(5, 9, 64).copy()
    wanted[1:4, [1, 4]] = 0
    assert np.allclose(changed["z.7"].reshape(5, 9, 64), wanted, atol=1e-4)
    (report,) = changed.interventions
    assert (report.rows, report.changed_rows, report.reused_rows) == (6, 6, 0)
    assert report.mean_relative_change == pytest.approx(1.0)


def test_fetched_rows_are_the_engines_in_every_wire_type(served: Served) -> None:
    prompt = "The capital of France is"
    exact = served.client.fetch(prompt, sites=[SITE, "embedding"])
    assert exact.tokens == ("The", " capital", " of", " France", " is")
    assert exact.positions.tolist() == [0, 1, 2, 3, 4]
    assert exact[SITE].shape == (5, 576)
    bounds: dict[actserve.ElementType, float] = {"f32": 0.0, "f16": 1e-3, "bf16": 1e-2}
    for wire, bound in bounds.items():
        rounded = served.client.fetch(prompt, sites=[SITE], element_type=wire)
        errors = np.abs(rounded[SITE] - exact[SITE]).max(1) / np.abs(exact[SITE]).max(1)
        # A capture of the same prompt may be computed in another batch shape.
        assert errors.max() <= bound + 1e-5, wire


def test_every_sample_is_steered_and_captured(served: Served) -> None:
    """vLLM knows the children of a request with n > 1 by other ids than the parent's."""

    def sample(**options: Any) -> list[actserve.Generation]:
        return served.client.generate(
            "I think the movie was", samples=4, max_tokens=8, temperature=0.0, ignore_eos=True,
            sites=[SITE], **options,
        )  # fmt: skip

    plain = sample()
    steered = sample(intervene=[actserve.Add(SITE, VECTOR, coefficient=2.0)])
    assert {out.text for out in steered}.isdisjoint({out.text for out in plain})
    assert len({out.text for out in steered}) == 1
    prompt = len(plain[0].prompt_token_ids)
    for before, after in zip(plain, steered, strict=True):
        assert len(after.activations.positions) == prompt + 8 - 1
        change = after.activations[SITE][0] - before.activations[SITE][0]
        assert np.allclose(change, 2.0 * VECTOR, atol=1e-2)


def test_seeded_samples_differ_and_repeat(served: Served) -> None:
    def sample() -> list[str]:
        out = served.client.generate(
            "Once upon a time", samples=3, max_tokens=12, temperature=1.0, seed=11
        )
        return [generation.text for generation in out]

    first = sample()
    assert len(set(first)) > 1
    assert sample() == first


def test_a_conversation_goes_through_the_models_own_template(served: Served) -> None:
    out = served.client.generate(
        [{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=12, temperature=0.0,
    )  # fmt: skip
    assert "".join(out.prompt_tokens).endswith("<|im_start|>assistant\n")
    assert out.finish_reason in ("stop", "length")
    assert "Paris" in out.text


def test_a_long_prompt_is_chunked_and_arrives_whole(served: Served) -> None:
    prompt = [1000 + index % 5000 for index in range(1000)]
    acts = served.client.fetch(prompt, sites=[SITE, "mlp_out.3"])
    assert acts.positions.tolist() == list(range(1000))
    assert np.isfinite(acts[SITE]).all()


def test_many_prompts_come_back_in_order(served: Served) -> None:
    prompts = [f"Number {index} of many " + "very " * (index % 9) for index in range(40)]
    many = served.client.fetch(prompts, sites=[SITE], positions="last")
    for prompt, acts in zip(prompts, many, strict=True):
        assert "".join(acts.tokens) == prompt
        assert acts[SITE].shape == (1, 576)


CLEAN, CORRUPT = "The Eiffel Tower is in the city of", "The Colosseum is found in the city of"
CELLS = [(layer, position) for layer in (3, 14, 27) for position in (2, 5, 7)]
LAST: dict[str, Any] = {"last": {}}


def wire_site(layer: int) -> dict[str, Any]:
    return {"hook_point": "HOOK_POINT_RESID_POST", "layer": layer}


def patch(layer: int, position: int, kept: dict[str, Any]) -> dict[str, Any]:
    """Puts a kept row of the clean prompt in place of the corrupt one's."""
    return {
        "sites": [wire_site(layer)],
        "positions": {"list": {"positions": [position]}},
        "replace": {"rows": {"kept": {**kept, "positions": [position]}}},
    }


def test_items_are_what_they_are_alone_beside_calls_that_are_steered_and_cut(
    served: Served,
) -> None:
    """A grid of patches in one call, and the statistics of its rows, while other calls come with
    steering of their own at the same sites and prompt, and are cancelled as they run."""
    read = {"rows": {"sites": [wire_site(28)], "positions": LAST}}
    count = {"rows": {"sites": [wire_site(28)], "positions": LAST, "statistics": {}}}
    keep = {"keep": {"sites": [wire_site(layer) for layer in (3, 14, 27)]}}
    by_item = {"item": {"item_index": 0, "readout_index": 2}}
    grid = pb.FetchActivationsRequest(
        prompt={"text": CORRUPT},
        readouts=[read, count, keep],
        items=[
            {"prompt": {"text": CLEAN}, "readout_indices": [2]},
            *(
                {"readout_indices": [0, 1], "label": "patched", "interventions": [cell]}
                for cell in (patch(*where, by_item) for where in CELLS)
            ),
        ],
    )
    steer = [actserve.Add(f"resid_post.{layer}", VECTOR) for layer in (3, 14, 27)]
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        fetch = generation_service_pb2_grpc.GenerationServiceStub(channel).FetchActivations
        source = {"items": [{"prompt": {"text": CLEAN}}], "readouts": [keep]}
        (told,) = (
            event.item_finished.kept
            for event in fetch(pb.FetchActivationsRequest(**source))
            if event.HasField("item_finished")
        )
        alone = []
        for where in CELLS:
            changes = [patch(*where, {"name": told[0].name})]
            request = {"prompt": {"text": CORRUPT}, "items": [{}], "readouts": [read]}
            events = fetch(pb.FetchActivationsRequest(**request, interventions=changes))
            alone.append(rows_of(events)[0])

        stop = threading.Event()

        def disturb() -> int:
            calls = 0
            while not stop.is_set():
                stream = served.client.stream(CORRUPT, max_tokens=64, intervene=steer)
                with closing(stream):
                    next(event for event in stream if isinstance(event, actserve.Tokens))
                calls += 1
            return calls

        with ThreadPoolExecutor() as pool:
            neighbours = [pool.submit(disturb) for _ in range(3)]
            try:
                events = [*fetch(grid)]
            finally:
                stop.set()
            assert all(each.result() for each in neighbours)
    assert not any(event.item_finished.status.code for event in events)
    rows = rows_of(events)
    together = np.stack([rows[index] for index in range(1, 1 + len(CELLS))])
    size = np.linalg.norm(alone, axis=1)
    assert (np.linalg.norm(together - alone, axis=1) / size).max() < 1e-3
    # The patches do something, and each something else.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(alone, 2)) > 1e-2
    (sums,) = (event.statistics for event in events if event.HasField("statistics"))
    assert sums.rows == len(CELLS)
    mean = np.frombuffer(sums.mean.data, np.float32)
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-5, atol=1e-5)


def rows_of(events: Iterable[pb.FetchActivationsResponse]) -> dict[int, np.ndarray]:
    """The row of every item that sends one."""
    return {
        event.activations.sequence_index: np.frombuffer(event.activations.rows.data, np.float32)
        for event in events
        if event.HasField("activations")
    }


def test_leaving_a_stream_early_frees_its_slot(served: Served) -> None:
    stream = served.client.stream("Once upon a time", max_tokens=500, ignore_eos=True)
    for event in stream:
        if isinstance(event, actserve.Tokens):
            break
    stream.close()
    deadline = time.monotonic() + 1.0
    while served.engine.engine.vllm.get_num_unfinished_requests():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_deadline_aborts_the_run(served: Served) -> None:
    with pytest.raises(actserve.DeadlineExceeded):
        served.client.generate("Once upon a time", max_tokens=900, ignore_eos=True, timeout=0.7)
    deadline = time.monotonic() + 1.0
    while served.engine.engine.vllm.get_num_unfinished_requests():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.fetch("x", sites=["resid_post.30"]), "LAYER_OUT_OF_RANGE"),
        (lambda c: c.fetch("", sites=[SITE]), "PROMPT_EMPTY"),
        (lambda c: c.fetch([49152], sites=[SITE]), "TOKEN_OUT_OF_RANGE"),
        (lambda c: c.fetch([5] * 1024, sites=[SITE]), "PROMPT_TOO_LONG"),
        (
            lambda c: c.generate("x", intervene=[actserve.Add(SITE, np.ones(577))]),
            "TENSOR_WIDTH_MISMATCH",
        ),
        (
            lambda c: c.generate("x", intervene=[actserve.Add(SITE, np.full(576, np.nan))]),
            "TENSOR_NOT_FINITE",
        ),
        (
            lambda c: c.generate(
                "x", intervene=[actserve.Add(SITE, np.full(576, 1e38), coefficient=1e3)]
            ),
            "TENSOR_NOT_FINITE",
        ),
        (
            lambda c: c.generate("x", intervene=[actserve.Zero("z.3", heads=[9])]),
            "HEAD_OUT_OF_RANGE",
        ),
        (lambda c: c.generate("x", intervene=[actserve.Zero("logits")]), "SITE_NOT_SERVED"),
        (
            lambda c: c.generate(
                "x", intervene=[actserve.Zero(SITE, positions=actserve.ByTokenId([40_000]))]
            ),
            "INTERVENTION_UNUSED",
        ),
    ],
    ids=[
        "layer",
        "empty",
        "token",
        "long",
        "width",
        "nan",
        "overflow",
        "head",
        "logits",
        "unused",
    ],
)
def test_bad_input_is_refused_and_disturbs_nothing_else(
    call: Callable[[actserve.Client], Any], reason: str, served: Served
) -> None:
    beside: list[actserve.Generation] = []
    thread = threading.Thread(
        target=lambda: beside.append(
            served.client.generate("The capital of France is", max_tokens=4, temperature=0.0)
        )
    )
    thread.start()
    with pytest.raises(actserve.ActserveError) as error:
        call(served.client)
    thread.join()
    assert error.value.reason == reason
    assert beside[0].text.startswith(" Paris")


def _scraped(client: actserve.Client) -> str:
    """The page of metrics, after calls of each kind that the dashboard shows."""
    from prometheus_client import start_http_server

    server, thread = start_http_server(0, "127.0.0.1")
    monitor = client.monitors.create(
        "scraped",
        probe=actserve.Probe(SITE, VECTOR),
        upper=actserve.Level(-1e9),
        watch=actserve.Watch(named_only=True),
    )
    try:
        client.fetch("x", SITE)
        client.generate(
            "x",
            max_tokens=2,
            sites=[SITE],
            intervene=[actserve.Add(SITE, VECTOR)],
            monitors=["scraped"],
        )
        with pytest.raises(actserve.ActserveError):
            client.generate("x", max_tokens=5000)
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        return urllib.request.urlopen(url, timeout=5).read().decode()
    finally:
        client.monitors.delete(monitor)
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_scrape_has_all_that_the_dashboard_and_the_alerts_name(served: Served) -> None:
    page = _scraped(served.client)
    told: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            told.setdefault(sample.name, set()).update(sample.labels)
    # Prometheus adds the server's address to what it scrapes.
    missing = {
        series: labels - {"instance"}
        for expression in EVERY_EXPRESSION.values()
        for series, labels in named_in(expression)
        if series not in told or not labels - {"instance"} <= told[series]
    }
    assert not missing
    # Of the engine alone: the fake one has neither.
    for series in (
        "actserve_ring_fill_ratio_count",
        'actserve_stage_seconds_count{stage="arrival"}',
    ):
        (count,) = [line for line in page.splitlines() if line.startswith(series)]
        assert float(count.rpartition(" ")[2]) > 0, series


def test_the_asyncio_client_gets_the_same(served: Served) -> None:
    async def fetch() -> np.ndarray:
        async with actserve.AsyncClient(f"127.0.0.1:{served.port}") as client:
            return (await client.fetch("The capital of France is", sites=[SITE]))[SITE]

    ours = served.client.fetch("The capital of France is", sites=[SITE])[SITE]
    assert np.allclose(asyncio.run(fetch()), ours, atol=1e-3)
