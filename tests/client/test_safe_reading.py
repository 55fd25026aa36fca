"""What a caller's own names, iterators, proxies and closed clients must never do."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

import actserve
from actserve import (
    ByTokenId,
    InvalidRequest,
    Predict,
    SteeringVector,
    Unavailable,
    _channel,
    _retries,
)
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import kept_activations_service_pb2 as kept_pb
from actserve.v1 import model_service_pb2 as model_pb

from .failing import abort
from .fake_server import Model, serving

SITE = "resid_post.1"


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


def test_every_prompt_and_attempt_has_what_an_iterator_of_sampling_yields(
    client: Any, model: Model
) -> None:
    honest, cut = model.honest_generate, iter([True])

    def generate(request: Any) -> Iterator[Any]:
        events = honest(request)
        return iter([next(events)]) if next(cut, None) else events

    model.generate = generate
    client.generate(["a", "b"], stop=iter(["x"]), stop_token_ids=iter([5]), bad_words=iter(["q"]))
    assert len(model.requests) == 3
    for request in model.requests:
        told = request.sampling
        assert (list(told.stop), list(told.stop_token_ids), list(told.bad_words)) == (
            ["x"], [5], ["q"]
        )  # fmt: skip


def test_names_that_a_caller_chose_are_no_sampling_parameters(client: Any, model: Model) -> None:
    names = {"stop_token_ids": {"type": "array"}, "logit_bias": {"type": "object"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": names}}}
    prompt = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    for _ in client.stream(prompt, max_tokens=2):
        pass
    assert (
        '"stop_token_ids": {"type": "array"}'
        in model.requests[-1].prompt.conversation.tools[0].json
    )
    for name in ("stop_token_ids", "logit_bias", "sampling", "tokens"):
        assert client.fetch("a", readouts={name: Predict(top_k=1)}).readouts[name]
        means = client.fetch_means(["a b"], [{name: "last"}], SITE, reduce=None)
        assert means[name].rows == 1


def test_an_item_without_labels_among_labelled_positions_counts_towards_none(client: Any) -> None:
    means = client.fetch_means(["a b", "c d"], [{"x": "last"}, {}], SITE, reduce=None)
    assert [*means] == ["x"]


@pytest.mark.parametrize(
    ("positions", "message"),
    [([8, 0], "position 8 is out of range"), (-9, "position -9 is"), ([-1, 1], "twice")],
)
def test_a_patch_at_no_position_or_at_one_twice_is_refused(
    client: Any, positions: Any, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        client.patch("a b", "c d", SITE, positions, answers="x")


def test_a_patch_takes_tokens_by_text_and_each_site_once(client: Any) -> None:
    grid = client.patch("a b", "c d", SITE, ByTokenId("d"), answers="x")
    assert grid.positions.tolist() == [1]
    with pytest.raises(InvalidRequest, match="name it once"):
        client.patch("a b", "c d", ["resid_post.*", SITE], answers="x")


def test_a_patch_leaves_no_rows_on_the_server(client: Any, model: Model) -> None:
    client.patch("a b", "c d", "resid_post.*", answers="x")
    fetched = [each for each in model.requests if isinstance(each, pb.FetchActivationsRequest)]
    assert fetched[-1].request_id
    deleted = [
        each for each in model.requests if isinstance(each, kept_pb.DeleteKeptActivationsRequest)
    ]
    assert deleted
    assert not model.kept


def test_a_server_that_serves_another_model_now_is_asked_anew(
    client: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.fetch("a", "embedding", positions=ByTokenId(["a", "Paris"]))
    monkeypatch.setattr("actserve._sync.transport._FRESH_S", -1.0)
    monkeypatch.setattr("actserve._async.transport._FRESH_S", -1.0)
    model.layer_count = 5
    sent = len(model.requests)
    acts = client.fetch("a", "resid_post.*", positions=ByTokenId(["a", "Paris"]))
    assert len(acts) == 5
    later = model.requests[sent:]
    texts = [each.prompt.text for each in later if isinstance(each, model_pb.TokenizeRequest)]
    assert sorted(texts) == ["Paris", "a"]


def test_a_server_does_not_say_for_how_long_a_caller_waits() -> None:
    assert 2.5 <= (_retries.Retries(None).pause(Unavailable("full", retry_after=2.5)) or 0) < 3.5
    for told in (31.0, 315_576_000_000.0):
        assert _retries.Retries(None).pause(Unavailable("full", retry_after=told)) is None


def test_a_closed_client_says_so(client: Any) -> None:
    client.close()
    for call in (
        lambda: client.fetch("a", SITE),
        lambda: client.fetch(["a", "b"], SITE),
        lambda: client.models(),
        lambda: client.generate("a"),
    ):
        with pytest.raises(actserve.Cancelled, match="is closed"):
            call()


def test_closing_ends_the_pause_of_one_call_after_another_of_its_list_is_over(model: Model) -> None:
    told, answered = threading.Event(), threading.Event()
    honest = model.honest_fetch

    def fetch(request: Any) -> Iterator[Any]:
        if request.items[0].prompt.text != "full":
            yield from honest(request)
            answered.set()

    def before(request: Any, context: grpc.ServicerContext) -> None:
        if request.DESCRIPTOR.name == "FetchActivationsRequest" and (
            request.items[0].prompt.text == "full"
        ):
            told.set()
            retry = error_details_pb2.RetryInfo(retry_delay={"seconds": 25})
            abort(context, grpc.StatusCode.UNAVAILABLE, "full", retry)

    model.fetch, model.before = fetch, before
    ended: list[BaseException] = []
    with serving(model) as target:
        client = actserve.Client(target, concurrency=32)

        def ask() -> None:
            try:
                client.fetch([*["fine"] * 16, "full"], SITE)  # Two calls.
            except actserve.ActserveError as error:
                ended.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        assert told.wait(10)
        assert answered.wait(10)
        time.sleep(0.2)  # The answered call ends, and the other one waits.
        client.close()
        asking.join(10)
        assert not asking.is_alive()
    assert ended


@pytest.mark.parametrize(
    "options",
    [{"token": "x\n"}, {"token": b"x"}, {"token": "ä"}, {"concurrency": 2.5}, {"concurrency": 0}],
)
def test_what_cannot_be_sent_with_every_call_is_refused_at_once(options: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        actserve.Client("localhost", **options)
    assert "x\\n" not in str(caught.value)


def test_a_proxy_gets_nothing_that_is_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    """gRPC would send even what is for localhost to the proxy that the environment names."""
    reached = threading.Event()
    proxy = Model()
    proxy.before = lambda request, context: reached.set()
    with serving(proxy) as elsewhere, serving(model) as target:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://{elsewhere}")
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with actserve.Client(target, token="secret", timeout=5) as client:
            assert client.tokenize("a b").tokens == ("a", "b")
    assert not reached.is_set()


@pytest.mark.parametrize(
    "target",
    [
        "dns://evil.example/localhost:1",
        "xds:///localhost:1",
        "google-c2p:///localhost",
        "passthrough://evil/localhost:1",
    ],
)
def test_a_name_that_others_resolve_is_not_this_machine(target: str) -> None:
    assert not _channel.is_local(target)
    with pytest.raises(InvalidRequest, match="plaintext"):
        actserve.Client(target, token="secret")


@pytest.mark.parametrize("target", ["http://localhost:1", "https://x", "", None])
def test_what_is_no_target_is_refused(target: Any) -> None:
    with pytest.raises(InvalidRequest, match="host:port"):
        actserve.Client(target)


def test_results_go_out_while_prompts_are_slow_to_come(client: Any) -> None:
    seen: list[str] = []

    def prompts() -> Iterator[str]:
        for index in range(48):
            time.sleep(0.02)
            if index == 47:  # The first of three calls was over long ago.
                assert seen
            yield f"p{index}"

    for acts in client.fetch_iter(prompts(), SITE):
        seen += [acts.key]
    assert len(seen) == 48


def test_an_item_is_opened_once(client: Any, model: Model) -> None:
    def fetch(request: Any) -> Iterator[Any]:
        for event in model.honest_fetch(request):
            yield event
            if event.HasField("item_started"):
                yield event

    model.fetch = fetch
    with pytest.raises(actserve.BadResponse, match="opened prompt 0 twice"):
        client.fetch("a", SITE)


def test_a_class_in_place_of_what_it_makes_is_refused(client: Any) -> None:
    with pytest.raises(InvalidRequest):
        client.fetch("a", SITE, intervene=actserve.Add)


def test_vectors_and_interventions_steer_together(client: Any, model: Model) -> None:
    intervene = [SteeringVector(SITE, np.ones(4)), actserve.Zero("embedding")]
    client.fetch("a", SITE, intervene=intervene)
    assert len(model.requests[-1].interventions) == 2
