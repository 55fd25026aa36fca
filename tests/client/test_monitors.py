"""Monitors: stored, changed, fitted and tried as they are asked for, and told in full."""

import json
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

import actserve
from actserve import (
    Ablate,
    Add,
    Aggregator,
    AlreadyExists,
    BadResponse,
    ByCharacters,
    ByText,
    Conflict,
    DeadlineExceeded,
    Ema,
    Example,
    HiddenLayer,
    InvalidRequest,
    Level,
    NotFound,
    Pause,
    Probe,
    ProbeNetwork,
    SteeringVector,
    Stop,
    Watch,
)
from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import work_pb2

from .fake_monitors import GONE, STEPS, whole
from .fake_server import LAYERS, Model
from .fake_vectors import site

ROW = np.array([1, 2, 3, 4], np.float32)
PROBE = Probe("resid_post.1", ROW, 0.5)
UPPER = Level(0.9, Stop())


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


def asked(model: Model, kind: type) -> Any:
    return next(each for each in reversed(model.requests) if isinstance(each, kind))


def test_a_monitor_travels_as_it_is_written(client: Any, model: Model) -> None:
    made = client.monitors.create(
        "rude",
        probe=[PROBE, Probe("resid_post.2", "joy")],
        aggregator="rolling_mean_max(10)",
        positions="generated",
        lower=Level(0.5, flag=True, explain="words", webhook="https://a.example/hook"),
        upper=Level(0.9, Pause(30, proceed_after=True)),
        watch=Watch(end_users=["u"], share=0.25),
        labels={"a": "b"},
    )
    sent = asked(model, pb.CreateMonitorRequest)
    assert (sent.model, sent.monitor_id, len(sent.request_id)) == ("models/big", "rude", 32)
    first, second = sent.monitor.probes
    assert first == PROBE.to_proto()
    assert second.direction.steering_vector == "models/big/steeringVectors/joy"
    assert sent.monitor.aggregator.rolling_mean.tokens == 10
    assert sent.monitor.positions.HasField("generated")
    assert sent.monitor.lower == pb.MonitorLevel(
        threshold=0.5,
        flag=True,
        explain=pb.ExplainAction(nla="models/big/nlas/words"),
        webhook=pb.WebhookAction(url="https://a.example/hook"),
    )
    assert sent.monitor.upper.pause.time_limit.seconds == 30
    assert sent.monitor.upper.pause.proceed_after
    assert sent.monitor.watch == pb.MonitorWatch(end_users=["u"], share=0.25)

    assert (made.name, made.id, made.kind) == (whole("rude"), "rude", "linear")
    assert made.sites == ("resid_post.1", "resid_post.2")
    assert str(made.aggregator) == "rolling_mean_max(10)"
    assert (made.positions, made.labels, made.paused) == ("generated", {"a": "b"}, False)
    assert made.watch == Watch(end_users=("u",), share=0.25)
    assert (made.lower.explain, made.lower.webhook) == ("words", "https://a.example/hook")
    assert (made.upper.action, made.upper.time_limit) == ("pause", 30)
    assert made.fit is None
    with pytest.raises(ValueError, match="not fitted"):
        _ = made.report


ACTIONS: dict[str, Any] = {
    "stop": Stop(),
    "pause": Pause(),
    "intervene by an intervention": Ablate("resid_post.0", ROW),
    "intervene by a vector": SteeringVector("resid_post.0", ROW),
    "intervene by several": [Add("resid_post.*", "joy", 2.0), SteeringVector("resid_post.0", ROW)],
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_stop_pause_or_what_intervenes(client: Any, model: Model, action: str) -> None:
    made = client.monitors.create("rude", probe=PROBE, upper=Level(1, ACTIONS[action]))
    sent = asked(model, pb.CreateMonitorRequest).monitor.upper
    assert made.upper.action == action.split()[0]
    assert made.upper.interventions == len(sent.intervene.interventions)
    if action == "intervene by several":
        first, _ = sent.intervene.interventions
        assert [*first.sites] == [site(layer) for layer in range(LAYERS)]
        assert first.add.vector.steering_vector == "models/big/steeringVectors/joy"


NETWORKS: dict[str, tuple[ProbeNetwork, str, tuple[int, int]]] = {
    "one row of values": (ProbeNetwork("resid_post.1", ROW), "linear", (1, 4)),
    "all layers": (ProbeNetwork("resid_post.*", np.ones(12)), "linear", (1, 12)),
    "a hidden layer": (
        ProbeNetwork("resid_post.1", np.ones(2), HiddenLayer(np.ones((2, 4)), np.ones(2))),
        "mlp",
        (1, 2),
    ),
    "heads": (
        ProbeNetwork("resid_post.1", np.ones((3, 4)), queries=np.ones((3, 4)), bias=1.0),
        "attention",
        (3, 4),
    ),
    "heads over a hidden layer": (
        ProbeNetwork(
            "resid_post.1",
            np.ones((3, 2)),
            hidden=HiddenLayer(np.ones((2, 4))),
            queries=np.ones((3, 2)),
        ),
        "mlp, attention",
        (3, 2),
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_is_a_probe_of_any_kind(client: Any, model: Model, case: str) -> None:
    network, kind, shape = NETWORKS[case]
    made = client.monitors.create("rude", probe=network, upper=UPPER)
    sent = asked(model, pb.CreateMonitorRequest).monitor
    assert made.kind == kind
    assert tuple(sent.network.values.tensor.shape) == shape
    assert len(sent.network.sites) == (LAYERS if case == "all layers" else 1)
    assert sent.network.HasField("bias") == (case == "heads")
    assert not sent.probes


def test_a_probe_says_itself_how_its_numbers_become_a_score(client: Any, model: Model) -> None:
    probe = Probe("resid_post.1", ROW, smoothing=Ema(0.5), reduce="max")
    made = client.monitors.create("rude", probe=probe, upper=UPPER)
    assert made.aggregator == Aggregator(Ema(0.5), "max")
    for given in (
        {"probe": probe, "aggregator": "mean"},
        {"probe": [probe, Probe("resid_post.2", ROW)]},
    ):
        with pytest.raises(InvalidRequest, match="of its own"):
            client.monitors.create("other", upper=UPPER, **given)


def test_only_what_is_given_is_replaced(client: Any, model: Model) -> None:
    rude = client.monitors.create("rude", probe=PROBE, aggregator="mean", upper=UPPER)
    changed = client.monitors.update("rude", lower=Level(0.5), upper=None, etag=rude.etag)
    assert [*asked(model, pb.UpdateMonitorRequest).update_mask.paths] == ["lower", "upper"]
    assert (changed.lower.threshold, changed.upper) == (0.5, None)
    assert changed.sites == ("resid_post.1",)
    assert client.monitors.update(changed, paused=True).paused
    assert client.monitors.update("rude", probe=ProbeNetwork("resid_post.2", ROW)).sites == (
        "resid_post.2",
    )
    assert str(client.monitors.update("rude", aggregator=None).aggregator) == "last"
    for act in (
        lambda: client.monitors.update("rude", paused=False, etag=rude.etag),
        lambda: client.monitors.delete("rude", etag=rude.etag),
    ):
        with pytest.raises(Conflict):
            act()
    with pytest.raises(InvalidRequest, match="nothing is changed"):
        client.monitors.update("rude")
    with pytest.raises(InvalidRequest, match="no threshold"):
        client.monitors.update("rude", threshold=3)


def test_monitors_are_listed_page_by_page_found_and_deleted(client: Any) -> None:
    for name in ("a", "b"):
        client.monitors.create(name, probe=PROBE, upper=UPPER)
    assert [each.id for each in client.monitors.list()] == ["a", "b"]
    with pytest.raises(AlreadyExists):
        client.monitors.create("a", probe=PROBE, upper=UPPER)
    client.monitors.delete(client.monitors.get("a"))
    for name in ("a", whole("a")):
        with pytest.raises(NotFound):
            client.monitors.get(name)


def test_an_answer_that_is_lost_makes_no_monitor_twice(client: Any, model: Model) -> None:
    honest, lost = model.monitors.answer, threading.Event()

    def loses_one(request: Any, context: Any) -> Any:
        answer = honest(request, context)
        if not lost.is_set():
            lost.set()
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return answer

    model.monitors.answer = loses_one
    assert client.monitors.create("rude", probe=PROBE, upper=UPPER).id == "rude"
    first, second = model.requests[-2:]
    assert first == second


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no probe": (lambda m: m.create("x", probe=ROW, upper=UPPER), "give a Probe"),
    "no level": (lambda m: m.create("x", probe=PROBE, upper=0.9), "Level"),
    "no watch": (lambda m: m.create("x", probe=PROBE, upper=UPPER, watch=1), "give a Watch"),
    "an aggregator": (lambda m: m.create("x", probe=PROBE, aggregator="mode"), "'mode'"),
    "a name of a model": (lambda m: m.create(whole("x"), probe=PROBE, upper=UPPER), "the id alone"),
    "another name": (lambda m: m.get("models/big/steeringVectors/joy"), "one of monitors"),
    "examples twice": (lambda m: m.fit("x", [], positive=["a"]), "either examples"),
    "no examples": (lambda m: m.fit("x"), "either examples"),
    "an example": (lambda m: m.fit("x", [{"text": "a"}]), "example 0.*a label"),
    "a method": (lambda m: m.fit("x", [], method="svm"), "'svm'"),
    "nothing to replay by": (lambda m: m.replay(["a"], []), "no monitor"),
    "nothing to replay": (lambda m: m.replay([], "x"), "no prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_before_it_is_sent(
    client: Any, model: Model, case: str
) -> None:
    call, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message):
        call(client.monitors)
    assert all("Monitor" not in type(each).__name__ for each in model.requests)


def test_a_fit_is_asked_for_by_rows_of_a_data_set(client: Any, model: Model) -> None:
    rows = [
        {"text": "you idiot", "label": "pos", "group": 7, "span": "idiot"},
        {"messages": [{"role": "user", "content": "hi you"}], "label": False, "span": [0, 2]},
        {"prompt": [1, 2], "label": 1},
        Example("b", False, "last"),
    ]
    fit = client.monitors.fit(
        "rude",
        rows,
        benign=["c"],
        longer=rows[2:],
        method="mlp",
        hidden_units=8,
        lower_false_positives=0.01,
        aggregator=Ema(0.5),
    )
    sent = asked(model, pb.FitMonitorRequest)
    assert [*sent.sites] == [site(layer) for layer in range(LAYERS)]
    assert [each.positive for each in sent.examples] == [True, False, True, False]
    assert sent.examples[0].group == "7"
    assert sent.examples[0].positions == ByText("idiot").to_proto()
    assert sent.examples[1].positions == ByCharacters(0, 2, turn=-1).to_proto()
    assert [each.prompt.text for each in sent.benign_examples] == ["c"]
    assert len(sent.longer_examples) == 2
    assert (sent.method, sent.hidden_units) == (pb.FIT_METHOD_MLP, 8)
    assert sent.lower_false_positives == np.float32(0.01)
    assert not sent.HasField("upper_false_positives")
    assert sent.aggregator.ema.weight == 0.5
    assert fit.work.state == "waiting"


def test_a_data_frame_is_a_data_set(client: Any, model: Model) -> None:
    frame = pytest.importorskip("pandas").DataFrame({"text": ["a", "b"], "label": [1, 0]})
    client.monitors.fit("rude", frame, sites="resid_post.0")
    sent = asked(model, pb.FitMonitorRequest)
    assert [(each.prompt.text, each.positive) for each in sent.examples] == [
        ("a", True),
        ("b", False),
    ]


def test_a_fit_is_waited_for_and_tells_how_well_it_does(client: Any) -> None:
    fit = client.monitors.fit("rude", positive=["a", "b"], negative=["c"], method="streamed")
    assert fit.look().steps_done == 1
    monitor = fit.wait(progress=False)
    report = monitor.report
    assert (report.work.state, report.work.steps) == ("succeeded", STEPS)
    assert (report.method, report.calibration_texts) == ("streamed", 3)
    assert report.tried[0].sites == ("resid_post.0",)
    assert [*report.qualities] == ["held out", "shuffled"]
    assert report.held_out.interval == (0.75, 1.0)
    assert report.held_out.above(0.5) == (1.0, pytest.approx(1 / 3))
    assert (monitor.paused, monitor.sites) == (True, ("resid_post.0",))
    assert json.dumps(report.to_json())
    again = client.monitors.fitting("rude")
    assert again.wait().etag == monitor.etag


def test_a_fit_that_fails_raises_why_and_one_may_be_ended(client: Any, model: Model) -> None:
    model.monitors.fails = True
    fit = client.monitors.fit("rude", positive=["a"], negative=["c"])
    with pytest.raises(InvalidRequest, match="too few examples"):
        fit.wait()
    fit.cancel()
    with pytest.raises(NotFound):
        fit.look()
    with pytest.raises(NotFound):
        client.monitors.fitting("rude")


def test_work_that_failed_raises_also_where_nobody_says_why(client: Any, model: Model) -> None:
    def failed(monitor: pb.Monitor) -> pb.Monitor:
        monitor.fit.work.state = work_pb2.WORK_STATE_FAILED
        return monitor

    model.monitors._worked = failed
    with pytest.raises(BadResponse, match="why"):
        client.monitors.fit("rude", positive=["a"], negative=["c"]).wait()


def test_counts_that_cannot_be_are_not_of_a_right_answer(client: Any, model: Model) -> None:
    client.monitors.create("rude", probe=PROBE, upper=UPPER)
    answer = model.monitors.answer

    def too_many(request: Any, context: Any) -> Any:
        told = answer(request, context)
        if isinstance(told, pb.GetMonitorScoresResponse):
            told.hours[0].counts[0] = (1 << 64) - 1
        return told

    model.monitors.answer = too_many
    with pytest.raises(BadResponse, match="count"):
        client.monitors.scores("rude")


def test_waiting_ends_before_the_work_does(client: Any, model: Model) -> None:
    model.monitors._worked = lambda monitor: monitor
    fit = client.monitors.fit("rude", positive=["a"], negative=["c"])
    with pytest.raises(DeadlineExceeded, match="the work goes on"):
        fit.wait(timeout=0.15)


def test_scores_are_told_by_hour(client: Any) -> None:
    client.monitors.create("rude", probe=PROBE, upper=UPPER)
    history = client.monitors.scores("rude")
    assert (history.monitor, history.drift, history.samples) == ("rude", 0.25, 10)
    assert history.counts.tolist() == [[7, 2, 1]]
    assert history.hours[0].start_time.isoformat() == "2001-09-09T02:00:00+00:00"
    assert history.to_pandas().iloc[0].tolist() == [7, 2, 1]


def test_a_replay_is_a_table_in_the_callers_order(client: Any, model: Model) -> None:
    prompts = {f"k{index}": " ".join("a" * (index % 6 + 1)) for index in range(40)}
    prompts["k3"] = GONE
    replay = client.monitors.replay(
        prompts, ["new", whole("old")], intervene=Add("resid_post.0", ROW)
    )
    assert [item.key for item in replay.items] == [*prompts]
    assert replay.monitors == ("new", "old")
    assert [item.key for item in replay.failed] == ["k3"]
    assert replay.usage.prompt_tokens == 40
    calls = [each for each in model.requests if isinstance(each, pb.ReplayMonitorsRequest)]
    assert sum(len(each.items) for each in calls) == 40
    assert all(item.interventions for each in calls for item in each.items)
    highest = replay.highest("old")
    assert (highest[2], np.isnan(highest[3])) == (1.5, True)
    assert replay.items[2].scores["new"].scores is None

    # New is above the lower threshold from 3 tokens on and the upper from 5; old from 5 and 9.
    found = replay.disagreements("new", "old")
    assert {len(prompts[each.item.key].split()) for each in found} == {3, 4, 5, 6}
    assert [each.one.level for each in found] == sorted(
        (each.one.level for each in found), reverse=True
    )
    assert len(replay.disagreements()) == len(replay.disagreements("old", "new")) == len(found)
    with pytest.raises(KeyError, match="new, old"):
        replay.disagreements("new", "other")
    frame = replay.to_pandas()
    assert frame["new.level"].tolist()[:4] == ["", "", "lower", ""]
    assert frame["error"][3].startswith("it is gone")


def test_a_replay_tells_the_score_as_of_each_token(client: Any) -> None:
    replay = client.monitors.replay("a b c", "new", each_token=True, positions="prompt")
    score = replay.items[0].scores["new"]
    assert score.positions.tolist() == [0, 1, 2]
    assert score.scores.tolist() == [1, 2, 3]


def test_scores_of_other_monitors_than_those_asked_for_are_refused(
    client: Any, model: Model
) -> None:
    honest = model.monitors.honest_replay

    def of_another(request: pb.ReplayMonitorsRequest) -> Any:
        for event in honest(request):
            for score in event.item.scores:
                score.monitor = whole("other")
            yield event

    model.monitors.replay = of_another
    with pytest.raises(BadResponse, match="other"):
        client.monitors.replay("a", "new")


def test_a_monitor_is_tested_by_its_highest_scores(client: Any, model: Model) -> None:
    rows = [{"text": "a b c", "label": 1}, {"text": "a b", "label": 0}, {"text": "a", "label": 0}]
    quality = client.monitors.test("new", rows)
    assert (quality.auroc, quality.positives, quality.negatives) == (1.0, 1, 2)
    assert quality.negative_scores.tolist() == [1, 2]
    assert not asked(model, pb.ReplayMonitorsRequest).items[0].HasField("positions")
    with pytest.raises(InvalidRequest, match="it is gone") as caught:
        client.monitors.test("new", [*rows, {"text": GONE, "label": 0}])
    assert caught.value.path == ("examples", 3)


def test_a_generation_tells_what_monitors_found(client: Any, model: Model) -> None:
    many = client.generate("a b", samples=2, monitors="rude", scores="token", end_user="u")
    assert [(each.finish_reason, each.stopped_by) for each in many] == [
        ("length", None),
        ("monitor", "rude"),
    ]
    first = many[0]
    assert [(each.monitor, each.level, each.end_user, each.sample) for each in first.alerts] == [
        ("rude", "lower", "u", 0)
    ]
    assert first.monitor_scores["rude"].scores.tolist() == [1, 2, 3, 4]
    request = model.requests[-1]
    assert ([*request.monitors], request.end_user) == ([whole("rude")], "u")
    events = [*client.stream("a b", monitors=["rude", "other"], scores="sample")]
    assert [each.monitor for each in events if isinstance(each, actserve.Alert)] == [
        "rude",
        "other",
    ]
    (end,) = [each for each in events if isinstance(each, actserve.SampleFinished)]
    assert [*end.monitor_scores] == ["rude", "other"]
    assert end.monitor_scores["rude"].scores is None
    assert client.generate(["a", "b"], monitors="rude")[0].monitor_scores == {}
    with pytest.raises(InvalidRequest, match="'sample', 'token'"):
        client.generate("a", scores="all")


def test_a_level_of_a_newer_server_is_told_by_its_number(client: Any, model: Model) -> None:
    client.monitors.create("rude", probe=PROBE, upper=UPPER)
    model.monitors.stored[whole("rude")].aggregator.MergeFromString(b"\x18\x09")
    assert client.monitors.get("rude").aggregator == Aggregator()
