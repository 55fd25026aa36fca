"""What the clients promise of their methods; every test runs sync and with asyncio."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import actserve
from actserve._readers import stopped_by
from actserve.v1 import generation_service_pb2 as pb

from .fake_server import LAYERS, WIDTH, Model, expected, round_robin

LONG = "a b c d e f g h i"
ZERO = actserve.Zero("resid_post.0")


def test_fetch_gives_each_site_as_float32_of_tokens_by_width(client: Any) -> None:
    acts = client.fetch("one two three", sites=["resid_post.1", "embedding"])
    assert acts.sites == ("resid_post.1", "embedding")
    assert acts.tokens == ("one", "two", "three")
    assert len(acts.token_ids) == 3
    assert acts.positions.tolist() == [0, 1, 2]
    for index, site in enumerate(acts.sites):
        assert acts[site].dtype == np.float32
        np.testing.assert_array_equal(acts[site], expected(3, index, range(3)))


def test_each_site_has_rows_of_its_own_width(client: Any) -> None:
    sites = {"mlp_act.1": 6, "logits": 9, "q.0": WIDTH}
    acts = client.fetch("one two three", sites=sites)
    out = client.generate("one two", sites=sites, positions=slice(1, None))
    for index, (site, width) in enumerate(sites.items()):
        np.testing.assert_array_equal(acts[site], expected(3, index, range(3), width))
        np.testing.assert_array_equal(out.activations[site], expected(2, index, range(1, 4), width))


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        ("all", range(9)),
        ("last", [8]),
        ("prompt", range(9)),
        (-1, [8]),
        (2, [2]),
        ([5, 0, -1], [0, 5, 8]),
        (np.array([1, 3]), [1, 3]),
        (range(0, 9, 4), [0, 4, 8]),
        (slice(2, 5), [2, 3, 4]),
        (slice(-3, None), [6, 7, 8]),
        (slice(None, 100), range(9)),
    ],
)
def test_positions_choose_the_rows(client: Any, positions: Any, rows: Any) -> None:
    acts = client.fetch(LONG, sites="resid_post.0", positions=positions)
    assert acts.positions.tolist() == list(rows)
    assert len(acts.tokens) == 9
    np.testing.assert_array_equal(acts["resid_post.0"], expected(9, 0, rows))


def test_results_are_found_by_any_spelling_of_a_captured_site(client: Any) -> None:
    acts = client.fetch("one two", sites=["blocks.1.hook_resid_post", "attn_out.-1"])
    assert list(acts) == ["resid_post.1", "attn_out.-1"]
    site = actserve.Site(actserve.HookPoint.RESID_POST, 1)
    for spelling in ("resid_post.1", "blocks.1.hook_resid_post", site):
        assert acts[spelling] is acts["resid_post.1"]
    assert "blocks.-1.hook_attn_out" in acts
    for absent in ("resid_post.2", "nonsense"):
        assert absent not in acts
        with pytest.raises(KeyError, match="asked for; asked: resid_post"):
            acts[absent]


@pytest.mark.parametrize("seed", range(5))
def test_events_fold_the_same_in_any_interleaving(client: Any, model: Model, seed: int) -> None:
    model.order = random.Random(seed).randrange
    prompts = ["one", LONG, "one two three"]
    for prompt, acts in zip(
        prompts, client.fetch(prompts, sites=["embedding", "mlp_out.2"]), strict=True
    ):
        length = len(prompt.split())
        assert acts.tokens == tuple(prompt.split())
        for index, site in enumerate(acts.sites):
            np.testing.assert_array_equal(acts[site], expected(length, index, range(length)))
    first, second = client.generate("one two", samples=2, sites=["embedding", "mlp_out.2"])
    assert (first.text, second.text) == (" and0 so0 on0", " and1 so1 on1")
    for generation in (first, second):
        for index, site in enumerate(generation.activations):
            np.testing.assert_array_equal(
                generation.activations[site], expected(2, index, range(4))
            )


@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_many_prompts_keep_their_order(
    connect: Callable[..., Any], model: Model, concurrency: int
) -> None:
    client = connect(concurrency=concurrency)
    # Later calls overtake earlier ones.
    delay = random.Random(0)
    model.before = lambda request, context: time.sleep(delay.random() / 50)
    model.order = round_robin()
    prompts = [" ".join(["word"] * (1 + index % 7)) + f" {index}" for index in range(50)]
    acts = client.fetch(prompts, sites="embedding", positions="last")
    assert [each.tokens[-1] for each in acts] == [str(index) for index in range(50)]
    assert [each.prompt_tokens[-1] for each in client.generate(prompts[:20])] == [
        str(index) for index in range(20)
    ]
    assert [each.tokens[-1] for each in client.tokenize(prompts)] == [
        str(index) for index in range(50)
    ]


def test_an_empty_list_of_prompts_gives_an_empty_list(client: Any) -> None:
    assert client.fetch([], sites="embedding") == []
    assert client.generate([]) == []
    assert client.tokenize([]) == []


def test_the_shape_of_the_answer_follows_the_shape_of_the_question(client: Any) -> None:
    one = "a b"
    assert client.generate(one).token_ids == (0, 1, 2)
    assert [g.token_ids[0] for g in client.generate(one, samples=2)] == [0, 100]
    assert [g.token_ids[0] for g in client.generate(one, samples=1)] == [0]
    assert [g.token_ids[0] for g in client.generate([one, one])] == [0, 0]
    assert [[g.token_ids[0] for g in each] for each in client.generate([one], samples=2)] == [
        [0, 100]
    ]


def test_a_generation_holds_everything_about_itself(client: Any) -> None:
    out = client.generate("one two", sites="resid_post.1", logprobs=1, max_tokens=3)
    assert out.text == " and0 so0 on0"
    assert out.tokens == (" and0", " so0", " on0")
    assert out.token_ids == (0, 1, 2)
    assert out.prompt_tokens == ("one", "two")
    assert len(out.prompt_token_ids) == 2
    assert (out.finish_reason, out.stopped_by) == ("length", None)
    assert [each.logprob for each in out.logprobs] == [-0.5] * 3
    assert out.logprobs[1].top[0].token == " so0"
    assert (out.usage.prompt_tokens, out.usage.output_tokens) == (2, 3)
    assert out.request_id == "r2"
    # Two prompt tokens and three generated ones, of which the last never ran.
    assert out.activations.tokens == (*out.prompt_tokens, *out.tokens)
    assert out.activations.token_ids == (*out.prompt_token_ids, *out.token_ids)
    assert out.activations.positions.tolist() == [0, 1, 2, 3]


def test_what_was_not_asked_for_is_absent_not_empty_guesses(client: Any) -> None:
    out = client.generate("one two")
    assert out.logprobs is None
    assert len(out.activations) == 0
    with pytest.raises(KeyError, match="none; name the sites you want"):
        out.activations["resid_post.1"]


def test_activations_are_saved_as_one_row_a_position(client: Any, tmp_path: Path) -> None:
    acts = client.fetch("one two three", sites="resid_post.1", positions=[0, 2])
    acts.save(tmp_path / "acts.npz")
    with np.load(tmp_path / "acts.npz") as saved:
        assert sorted(saved) == [
            "metadata",
            "position",
            "prompt",
            "resid_post.1",
            "token",
            "token_id",
        ]
        assert saved["position"].tolist() == [0, 2]
        assert saved["token"].tolist() == ["one", "three"]
        assert saved["token_id"].tolist() == [acts.token_ids[0], acts.token_ids[2]]
        np.testing.assert_array_equal(saved["resid_post.1"], acts["resid_post.1"])


def test_a_capture_that_selects_nothing_has_rows_of_the_right_width(client: Any) -> None:
    out = client.generate("a b", max_tokens=1, sites="embedding", positions="generated")
    assert out.activations["embedding"].shape == (0, WIDTH)


def test_stream_yields_every_event_in_order(client: Any) -> None:
    events = list(client.stream("one two", sites="resid_post.1", samples=2, intervene=ZERO))
    sources = (actserve.TokenSource(0, 3), actserve.TokenSource(4, 7))
    assert events[0] == actserve.Started("r2", (322, 346), ("one", "two"), sources)
    assert isinstance(events[-1], actserve.Finished)
    for sample in range(2):
        own = [event for event in events if getattr(event, "sample", None) == sample]
        assert isinstance(own[-1], actserve.SampleFinished)
        assert own[-1].interventions == (actserve.InterventionReport(4, 4, 0, 0.25),)
        text = [event.text for event in own if isinstance(event, actserve.Tokens)]
        assert "".join(text) == f" and{sample} so{sample} on{sample}"
        rows = [event for event in own if isinstance(event, actserve.Rows)]
        assert {event.site for event in rows} == {"resid_post.1"}
        np.testing.assert_array_equal(
            np.concatenate([event.rows for event in rows]), expected(2, 0, range(4))
        )


def test_models_reads_every_page(client: Any) -> None:
    assert [model.id for model in client.models()] == ["big", "small"]


def test_a_model_says_which_sites_it_serves(client: Any) -> None:
    model = client.model("big")
    assert model.attention_unserved_reason == "its layers are not attention"
    assert model.limits.max_kept_seconds == 600
    assert (model.id, model.path, model.element_type) == ("big", "org/checkpoint", "bf16")
    assert (model.layer_count, model.width) == (LAYERS, WIDTH)
    layered = [f"{name}.{layer}" for name in ("resid_post", "q") for layer in range(LAYERS)]
    assert model.sites == ("embedding", *layered, "logits")
    assert model.changeable_sites == ("embedding", *layered)
    assert model.hook_points["mlp_out"].unserved_reason == "fused away"
    assert model.hook_points["logits"].unchangeable_reason == "read only"
    assert (model.hook_points["logits"].width, model.hook_points["logits"].heads) == (9, 0)
    assert (model.hook_points["q"].width, model.hook_points["q"].heads) == (WIDTH, 2)
    assert model.limits.max_sequence_tokens == 2048


def test_a_model_says_what_is_used_where_a_call_says_nothing(client: Any) -> None:
    model = client.model("big")
    assert model.default_sampling == {
        "temperature": 0.6,
        "min_p": 0.0,
        "top_k": 20,
        "max_tokens": 128,
    }
    assert model.limits.default_kept_seconds == 60
    assert model.limits.max_request_parts == 1000
    assert model.limits.max_statistics_bytes == 1 << 20
    assert model.limits.max_relative_dose is None
    assert model.limits.clamps_dose


def test_a_model_says_which_features_it_serves(client: Any) -> None:
    assert client.model("big").features == ("fetch", "steering_vectors")


def test_tokenize_gives_ids_and_texts(client: Any) -> None:
    tokens = client.tokenize("one two")
    assert tokens.tokens == ("one", "two")
    assert tokens.token_ids == (322, 346)
    assert len(tokens) == 2


@pytest.mark.parametrize("model_id", ["big", "models/big"])
def test_the_model_travels_with_every_call(
    connect: Callable[..., Any], model: Model, model_id: str
) -> None:
    client = connect(model=model_id)
    client.fetch("a", sites="embedding")
    client.generate("a")
    client.tokenize("a")
    assert [request.model for request in model.requests] == ["models/big"] * 3


def test_token_and_metadata_travel_with_every_call(
    connect: Callable[..., Any], model: Model
) -> None:
    client = connect(token="secret", metadata={"x-project": "p"})
    client.models()
    client.generate("a")
    for metadata in model.metadata:
        assert metadata["authorization"] == "Bearer secret"
        assert metadata["x-project"] == "p"
    assert "secret" not in repr(getattr(client, "_connection", ""))


def test_steering_travels_as_asked(client: Any, model: Model) -> None:
    client.generate(
        "a",
        intervene=[
            actserve.Add("blocks.1.hook_resid_post", [1, 0, -1, 0.5], coefficient=4.0),
            actserve.Add("embedding", np.ones(4), positions=slice(1, None)),
        ],
    )
    client.fetch("a", sites="embedding", intervene=actserve.Add("mlp_out.-1", np.ones(4)))
    first, second = model.requests[0].interventions
    assert [(site.hook_point, site.layer) for site in first.sites] == [(4, 1)]
    assert first.positions.HasField("all")
    assert first.add.coefficient == 4.0
    assert np.frombuffer(first.add.vector.tensor.data, "<f4").tolist() == [1, 0, -1, 0.5]
    assert list(first.add.vector.tensor.shape) == [4]
    assert not second.sites[0].HasField("layer")
    assert second.positions.span.start == 1
    assert not second.positions.span.HasField("end")
    assert model.requests[1].interventions[0].sites[0].layer == -1


def test_an_answer_says_what_each_intervention_did(client: Any) -> None:
    intervene = [ZERO, actserve.Add("resid_post.1", np.ones(4)), *[ZERO] * 2]

    def made(rows: int) -> tuple[actserve.InterventionReport, ...]:
        return tuple(
            actserve.InterventionReport(
                rows=rows,
                changed_rows=rows - index,
                reused_rows=index,
                mean_relative_change=0.25 if index < rows else None,
                dose_factor=0.5 if index == 1 else None,
            )
            for index in range(4)
        )

    one, two = client.fetch(
        ["one two three", "one two three four"], "embedding", intervene=intervene
    )
    assert one.interventions == made(3)
    assert two.interventions == made(4)
    for out in client.generate("one two", samples=2, intervene=intervene):
        assert out.interventions == out.activations.interventions == made(4)
    assert client.generate("one two").interventions == ()
    assert client.fetch("one two", "embedding").interventions == ()


def test_an_answer_says_where_each_prompt_token_comes_from(client: Any) -> None:
    source = actserve.TokenSource
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    cases: list[tuple[Any, tuple[actserve.TokenSource, ...]]] = [
        ("one  two", (source(0, 3), source(5, 8))),
        (
            turns,
            (
                source(),
                source(0, 2, turn=0, role="system"),
                source(3, 8, turn=0, role="system"),
                source(),
                source(0, 2, turn=1, role="user"),
            ),
        ),
        ([4, 5], ()),
    ]
    for prompt, sources in cases:
        assert client.tokenize(prompt).sources == sources
        assert client.fetch(prompt, "embedding").sources == sources
        out = client.generate(prompt, sites="embedding")
        assert out.prompt_sources == out.activations.sources == sources
        assert next(iter(client.stream(prompt))).prompt_sources == sources


def test_a_generation_says_what_stopped_it(client: Any) -> None:
    out = client.generate("one two", stop="so")
    assert (out.finish_reason, out.stopped_by) == ("stop", "so")
    ends = [each for each in client.stream("one", stop="so") if hasattr(each, "stopped_by")]
    assert [(end.finish_reason, end.stopped_by) for end in ends] == [("stop", "so")]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [({"end_token_id": 0}, 0), ({"stop_string": "so"}, "so"), ({"monitor": "m"}, "m"), ({}, None)],
)
def test_what_stopped_a_sample_is_a_token_a_text_or_a_monitor(
    sent: dict[str, Any], expected: int | str | None
) -> None:
    assert stopped_by(pb.SampleFinished(**sent)) == expected


def test_only_sampling_parameters_that_were_given_travel(client: Any, model: Model) -> None:
    client.generate("a", temperature=0, stop="\n", max_tokens=2)
    sampling = model.requests[0].sampling
    assert {field.name for field, _ in sampling.ListFields()} == {
        "temperature",
        "stop",
        "max_tokens",
    }
    assert (sampling.temperature, list(sampling.stop)) == (0, ["\n"])


def test_a_timeout_is_the_deadline_of_the_call(connect: Callable[..., Any], model: Model) -> None:
    def hang(request: Any, context: grpc.ServicerContext) -> None:
        while context.is_active():
            time.sleep(0.01)

    model.before = hang
    for call in (
        lambda: connect(timeout=0.2).generate("a"),
        lambda: connect(timeout=60).generate("a", timeout=0.2),
    ):
        with pytest.raises(actserve.DeadlineExceeded):
            call()
