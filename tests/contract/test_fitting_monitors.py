"""Monitors that are fitted: there at once, made in the background, and told as far as they have
come."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2

from actserve.v1 import (
    generation_service_pb2,
    monitor_service_pb2_grpc,
    positions_pb2,
    site_pb2,
    work_pb2,
)
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.model import Limits
from actserve_server.domain.principals import Role
from actserve_server.domain.sites import Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.fake_model import FakeModel
from actserve_server.monitors import fit_texts, fit_work, stored_fits
from actserve_server.rpc import monitor_fits
from tests.contract.fits import BAD, GOOD, example, examples, fit
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    eventually,
    failure,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import full
from tests.contract.refusals import WIDTH

WAITING, RUNNING = work_pb2.WORK_STATE_WAITING, work_pb2.WORK_STATE_RUNNING
SUCCEEDED, FAILED = work_pb2.WORK_STATE_SUCCEEDED, work_pb2.WORK_STATE_FAILED
LONG_S = 30.0
"""For what training takes on a busy machine."""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(FakeEngine()) as running:
        yield running


class Held:
    """Holds fits back where they would compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computing = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()
        compute = monitor_fits.fit

        def held(*args: Any) -> Any:
            *_, progress = args
            self.computing.set()
            try:
                while not self.go_on.wait(0.005):
                    progress.check()
                return compute(*args)
            finally:
                self.ended.set()

        monkeypatch.setattr(monitor_fits, "fit", held)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


async def begin(served: Served, *args: Any, token: str = "", **changes: Any) -> pb.Monitor:
    options = {"metadata": bearing(token)} if token else {}
    return (await served.monitors.FitMonitor(fit(*args, **changes), **options)).monitor


async def get(served: Served, name: str = "mood", token: str = "") -> pb.Monitor:
    options = {"metadata": bearing(token)} if token else {}
    request = pb.GetMonitorRequest(name=full(name))
    return (await served.monitors.GetMonitor(request, **options)).monitor


async def reached(
    served: Served, state: int, name: str = "mood", token: str = "", within_s: float = LONG_S
) -> pb.Monitor:
    """The monitor once its work is in this state."""

    async def there() -> bool:
        work = (await get(served, name, token)).fit.work
        assert work.state in (state, WAITING, RUNNING), work.error
        return work.state == state

    await eventually(there, within_s)
    return await get(served, name, token)


async def replay(served: Served, *texts: str, name: str = "mood") -> list[float]:
    """The highest score of each."""
    request = pb.ReplayMonitorsRequest(
        monitors=[full(name)], items=[{"prompt": {"text": text}} for text in texts]
    )
    events = await collect(served.monitors.ReplayMonitors(request))
    found = {event.item.item_index: event.item for event in events if event.HasField("item")}
    return [found[index].scores[0].highest_score for index in range(len(texts))]


async def scored_tokens(
    served: Served, text: str, name: str = "mood"
) -> generation_service_pb2.MonitorScore:
    """What a monitor makes of a text, token by token."""
    request = pb.ReplayMonitorsRequest(
        monitors=[full(name)], items=[{"prompt": {"text": text}}], each_token=True
    )
    events = await collect(served.monitors.ReplayMonitors(request))
    (item,) = [event.item for event in events if event.HasField("item")]
    return item.scores[0]


def reason(monitor: pb.Monitor) -> str:
    """Why its fit has failed."""
    info = error_details_pb2.ErrorInfo()
    assert monitor.fit.work.error.details[0].Unpack(info)
    return info.reason


@pytest.mark.parametrize(
    "method", [each for each in pb.FitMethod.values() if each], ids=pb.FitMethod.keys()[1:]
)
async def test_a_monitor_is_there_at_once_and_gets_its_probe_and_levels_when_the_work_is_done(
    served: Served, held: Held, method: Any
) -> None:
    begun = await begin(served, method=method, labels={"about": "mood"})
    assert begun.name == full("mood")
    assert begun.paused
    assert begun.labels == {"about": "mood"}
    assert begun.fit.work.state in (WAITING, RUNNING)
    assert not begun.probes
    assert not begun.HasField("network")
    held.go_on.set()
    made = await reached(served, SUCCEEDED)
    assert made.paused
    assert made.HasField("upper")
    assert not made.HasField("lower")
    linear = method not in (pb.FIT_METHOD_MLP, pb.FIT_METHOD_ATTENTION)
    assert (len(made.probes) == 1, made.HasField("network")) == (linear, not linear)
    assert made.fit.method == method
    assert made.fit.work.steps_done == made.fit.work.steps > 16
    assert made.fit.held_out.auroc == 1
    assert (made.fit.held_out.positives, made.fit.held_out.negatives) == (2, 2)
    assert len(made.fit.held_out.positive_scores) == len(made.fit.held_out.negative_scores) == 2
    assert [list(each.sites) for each in made.fit.tried] == [[site_pb2.Site(**site(1))]]
    assert made.fit.HasField("shuffled")
    assert not made.fit.HasField("longer")
    assert made.fit.calibration_texts == 2
    assert made.etag != begun.etag
    good, bad = await replay(served, GOOD, BAD)
    assert bad == pytest.approx(made.upper.threshold, abs=1e-5)
    assert good == pytest.approx(made.fit.held_out.positive_scores[0], abs=1e-5)


async def test_the_work_says_how_far_it_has_come(served: Served, held: Held) -> None:
    await begin(served, sites=[site(1), site(2)])
    await asyncio.to_thread(held.computing.wait)
    told = await get(served)
    assert told.fit.work.state == RUNNING
    assert told.fit.work.steps_done == 16
    assert told.fit.work.steps > 16
    page = await served.monitors.ListMonitors(pb.ListMonitorsRequest())
    assert page.monitors[0] == told
    held.go_on.set()
    await reached(served, SUCCEEDED)


async def test_work_that_ends_while_it_is_asked_for_is_not_told_as_that_of_a_dead_server(
    served: Served, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = fit_work.FitWork.progress

    async def once_it_is_over(self: fit_work.FitWork, *of: Any) -> Any:
        held.go_on.set()
        await eventually(lambda: not self._queue, LONG_S)
        return await progress(self, *of)

    await begin(served)
    monkeypatch.setattr(fit_work.FitWork, "progress", once_it_is_over)
    told = await get(served)
    assert (told.fit.work.state, len(told.probes)) == (SUCCEEDED, 1)


async def test_it_goes_on_when_the_connection_is_lost(held: Held) -> None:
    async with serving(FakeEngine()) as served:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.app.port}") as channel:
            await monitor_service_pb2_grpc.MonitorServiceStub(channel).FitMonitor(fit())
        held.go_on.set()
        await reached(served, SUCCEEDED)


async def test_an_equal_request_is_answered_with_what_the_first_one_makes(
    served: Served, held: Held
) -> None:
    request = fit()
    one = (await served.monitors.FitMonitor(request)).monitor
    other = (await served.monitors.FitMonitor(request)).monitor
    assert one.etag == other.etag
    changed = fit(request_id=request.request_id, all_sites=True)
    refused = await failure(served.monitors.FitMonitor(changed))
    assert refused.reason == "REQUEST_ID_REUSED"
    held.go_on.set()
    await reached(served, SUCCEEDED)
    assert served.engine.counters.started == 16
    made = (await served.monitors.FitMonitor(request)).monitor
    assert made.fit.work.state == SUCCEEDED


async def test_nothing_changes_it_before_the_work_is_done(served: Served, held: Held) -> None:
    await begin(served)
    update = pb.UpdateMonitorRequest(
        monitor={"name": full("mood"), "paused": False}, update_mask=FieldMask(paths=["paused"])
    )
    refused = await failure(served.monitors.UpdateMonitor(update))
    assert refused.reason == "RESOURCE_NOT_READY"
    replayed = pb.ReplayMonitorsRequest(monitors=[full("mood")], items=[{"prompt": {"text": GOOD}}])
    refused = await failure(served.monitors.ReplayMonitors(replayed))
    assert (refused.reason, refused.field) == ("RESOURCE_NOT_READY", "monitors[0]")
    held.go_on.set()
    await reached(served, SUCCEEDED)
    assert not (await served.monitors.UpdateMonitor(update)).monitor.paused


@pytest.mark.parametrize("when", ["computing", "running prompts"])
async def test_deleting_the_monitor_ends_the_work(held: Held, when: str) -> None:
    slow = when == "running prompts"
    async with serving(FakeEngine(token_delay_s=60 if slow else 0)) as served:
        await begin(served)
        if slow:
            await eventually(lambda: bool(served.engine.counters.running))
        else:
            await asyncio.to_thread(held.computing.wait)
        await served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("mood")))
        await eventually(lambda: not served.engine.counters.running)
        if not slow:
            assert await asyncio.to_thread(held.ended.wait, LONG_S)
        request = pb.GetMonitorRequest(name=full("mood"))
        assert (await failure(served.monitors.GetMonitor(request))).reason == "RESOURCE_NOT_FOUND"
        # Nor does it make anything of another one of that name.
        other = await begin(served)
        assert other.fit.work.state in (WAITING, RUNNING)


async def test_another_replica_tells_how_far_it_is_and_ends_it_by_deleting_the_monitor(
    store: dict[str, str], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_work.FitWork.__init__, "__kwdefaults__", {"heartbeat_s": 0.02})
    async with serving(FakeEngine(), **store) as served, serving(FakeEngine(), **store) as other:
        begun = await begin(served)

        async def told() -> bool:
            return (await get(other)).fit.work.steps_done == 16

        await eventually(told, LONG_S)
        assert (await get(other)).etag == begun.etag
        await other.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("mood")))
        assert await asyncio.to_thread(held.ended.wait, LONG_S)


async def test_the_end_of_the_server_ends_the_work_and_the_next_one_says_so(
    store: dict[str, str], held: Held
) -> None:
    async with serving(FakeEngine(), **store) as served:
        await begin(served)
        await asyncio.to_thread(held.computing.wait)
    assert held.ended.is_set()
    async with serving(FakeEngine(), **store) as served:
        told = await get(served)
        assert told.fit.work.state == FAILED
        assert reason(told) == "DRAINING"
        assert "fit it again" in told.fit.work.error.message
        assert not told.probes


async def test_of_a_killed_server_it_shows_once_nothing_was_heard_of_it_for_a_while(
    store: dict[str, str], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(self: fit_work.FitWork) -> None:
        for each in self._queue.values():
            self._cancel(each)

    async with serving(FakeEngine(), **store) as served:
        await begin(served)
        await asyncio.to_thread(held.computing.wait)
        monkeypatch.setattr(fit_work.FitWork, "close", killed)
    async with serving(FakeEngine(), **store) as served:
        assert (await get(served)).fit.work.state in (WAITING, RUNNING)
        fits: stored_fits.StoredFits = served.watching.fits._stored
        fits.lease_s = 0.0
        assert (await get(served)).fit.work.state == FAILED
        await served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("mood")))


async def test_the_monitor_says_why_the_work_has_failed(served: Served) -> None:
    served.engine.faults.dead = True
    await begin(served)
    told = await reached(served, FAILED)
    assert reason(told) == "ENGINE_DEAD"
    assert not told.probes
    served.engine.faults.dead = False


async def test_examples_that_are_all_the_same_end_in_a_status_that_says_so(served: Served) -> None:
    await begin(served, examples=[example(GOOD, number < 8) for number in range(16)])
    told = await reached(served, FAILED)
    assert reason(told) == "TENSOR_DEGENERATE"
    assert "nothing tells" in told.fit.work.error.message


async def test_what_the_quota_has_no_room_for_fails_and_is_told(held: Held) -> None:
    async with serving(FakeEngine(), max_monitor_bytes=4 * WIDTH - 1) as served:
        await begin(served)
        held.go_on.set()
        assert reason(await reached(served, FAILED)) == "STORE_QUOTA_EXCEEDED"


async def test_a_bug_is_told_without_a_word_about_the_inside(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(monitor_fits, "fit", broken)
    await begin(served)
    told = await reached(served, FAILED)
    assert reason(told) == "INTERNAL"
    assert "secret" not in str(told)


async def test_a_tenant_has_one_fit_at_a_time_and_holds_up_no_other(
    held: Held, tmp_path: Path
) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("a", "ann", Role.EXPERIMENTER),
        ("b", "bob", Role.EXPERIMENTER),
        ("r", "ann", Role.READER),
    )
    async with serving(FakeEngine(), token_file=tokens) as served:
        refused = await failure(served.monitors.FitMonitor(fit(), metadata=bearing("r")))
        assert refused.reason == "PERMISSION_DENIED"
        await begin(served, "one", token="a")
        await begin(served, "two", token="a")
        await begin(served, "one", token="b")
        await reached(served, RUNNING, "one", "a")
        await reached(served, RUNNING, "one", "b")
        assert (await get(served, "two", "a")).fit.work.state == WAITING
        request = pb.GetMonitorRequest(name=full("two"))
        hidden = await failure(served.monitors.GetMonitor(request, metadata=bearing("b")))
        assert hidden.reason == "RESOURCE_NOT_FOUND"
        held.go_on.set()
        await reached(served, SUCCEEDED, "two", "a")


async def test_no_more_of_a_tenant_wait_than_may(served: Served, held: Held) -> None:
    for number in range(fit_work.MAX_OWN_WAITING + 1):
        await begin(served, f"m{number}")
    refused = await failure(served.monitors.FitMonitor(fit("more")))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.reason == "QUEUE_FULL"
    assert "RetryInfo" in refused.details
    # One that is not wanted any more makes room.
    await served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("m3")))
    await begin(served, "more")


async def test_of_many_that_come_at_once_no_more_wait_than_may(served: Served, held: Held) -> None:
    asked = [served.monitors.FitMonitor(fit(f"m{number}")) for number in range(24)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    begun = [each for each in ends if not isinstance(each, BaseException)]
    assert 1 <= len(begun) <= fit_work.MAX_OWN_WAITING + 1
    page = await served.monitors.ListMonitors(pb.ListMonitorsRequest())
    assert len(page.monitors) == len(begun), "nothing is stored of those that were refused"


async def test_no_more_text_waits_than_a_fit_may_take(held: Held) -> None:
    benign = [example("how are you? " * 20) for _ in range(30)]
    async with serving(FakeEngine(), max_fit_bytes=600_000) as served:
        await begin(served, "running")
        await reached(served, RUNNING, "running")
        await begin(served, "waiting", benign_examples=benign)
        refused = await failure(served.monitors.FitMonitor(fit("more", benign_examples=benign)))
        assert refused.reason == "QUEUE_FULL"
        assert "600000" in refused.message
        alone = await failure(served.monitors.FitMonitor(fit("more", benign_examples=benign * 2)))
        assert alone.reason == "TOO_MANY_ROWS"
        assert "600000" in alone.message
        await begin(served, "small")


async def test_a_fit_that_takes_too_much_is_refused_with_the_arithmetic() -> None:
    async with serving(FakeEngine(), max_fit_bytes=40_000) as served:
        refused = await failure(
            served.monitors.FitMonitor(fit(sites=[site(layer) for layer in range(4)]))
        )
        tokens = 8 * (len(GOOD) + len(BAD))  # Without the first of each.
        assert refused.reason == "TOO_MANY_ROWS"
        for told in (f"{tokens} tokens", "4 sites", f"{tokens * 4 * WIDTH * 4} bytes", "40000"):
            assert told in refused.message
        assert served.engine.counters.started == 0


async def test_a_fit_may_have_more_examples_than_a_call_has_items_up_to_a_limit_of_its_own() -> (
    None
):
    limits = Limits(max_sequence_tokens=512, max_items=4, max_fit_examples=40)
    benign = [example(f"{number}: how are you?") for number in range(25)]
    async with serving(FakeEngine(limits=limits)) as served:
        refused = await failure(served.monitors.FitMonitor(fit(benign_examples=benign)))
        assert (refused.reason, refused.field) == ("TOO_MANY_ITEMS", "examples")
        assert "41 examples" in refused.message
        assert "at most 40" in refused.message
        await begin(served, benign_examples=benign[1:])
        assert (await reached(served, SUCCEEDED)).fit.calibration_texts == 26


async def test_texts_that_take_too_much_are_refused_before_all_are_read() -> None:
    benign = [example("how are you?")] * 100
    async with serving(FakeEngine(), max_fit_bytes=60_000) as served:
        refused = await failure(served.monitors.FitMonitor(fit(benign_examples=benign)))
        assert (refused.reason, refused.field) == ("TOO_MANY_ROWS", "examples")
        assert "benign_examples[" in refused.message
        assert "60000" in refused.message


async def test_groups_stay_whole_and_intervals_are_of_groups(served: Served) -> None:
    wanted = [
        example(text, text is GOOD, group=f"{text} {number % 4}")
        for text in (GOOD, BAD)
        for number in range(16)
    ]
    await begin(served, examples=wanted)
    told = (await reached(served, SUCCEEDED)).fit
    assert (told.held_out.positives, told.held_out.negatives) == (4, 4)
    assert (told.held_out.auroc_low, told.held_out.auroc_high) == (1, 1)


async def test_benign_and_longer_texts_are_scored_as_monitors_score(served: Served) -> None:
    longer = [example(GOOD * 3, True), example(BAD * 3), example(GOOD * 2, True)]
    benign = [example(f"{chr(65 + number)}: how are you?") for number in range(30)]
    await begin(
        served,
        benign_examples=benign,
        longer_examples=longer,
        lower_false_positives=0.2,
        upper_false_positives=0.05,
    )
    made = await reached(served, SUCCEEDED)
    assert made.fit.calibration_texts == 32
    assert (made.fit.longer.positives, made.fit.longer.negatives) == (2, 1)
    harmless = await replay(served, *(each["prompt"]["text"] for each in benign), BAD, BAD)
    for level, allowed in ((made.lower, 6), (made.upper, 1)):
        above = sum(score > level.threshold for score in harmless)
        assert above <= allowed
        wanted = sorted(harmless)[-1 - allowed]
        assert level.threshold == pytest.approx(wanted, abs=1e-5)
    scores = await replay(served, *(each["prompt"]["text"] for each in longer))
    found = sorted([*made.fit.longer.positive_scores, *made.fit.longer.negative_scores])
    np.testing.assert_allclose(found, sorted(scores), atol=1e-5)


async def test_nothing_of_a_fit_is_computed_where_calls_are_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[str, threading.Thread]] = []

    def noted(module: Any, name: str) -> None:
        compute = getattr(module, name)

        def noting(*args: Any) -> Any:
            computed.append((name, threading.current_thread()))
            return compute(*args)

        monkeypatch.setattr(module, name, noting)

    noted(fit_texts, "to_float32")
    noted(fit_texts, "highest")
    noted(monitor_fits, "fit")
    noted(monitor_fits, "quality")
    benign = [example(f"{number}: how are you?") for number in range(3)]
    longer = [example(GOOD * 3, True), example(BAD * 3)]
    await begin(served, benign_examples=benign, longer_examples=longer)
    await reached(served, SUCCEEDED)
    assert {name for name, _ in computed} == {"to_float32", "highest", "fit", "quality"}
    assert threading.current_thread() not in {thread for _, thread in computed}


async def test_where_both_thresholds_come_out_alike_there_is_no_lower_level(
    served: Served,
) -> None:
    await begin(served, lower_false_positives=0.01)
    made = await reached(served, SUCCEEDED)
    assert not made.HasField("lower")


async def test_the_site_that_does_best_is_chosen_or_all_are_read(
    served: Served,
) -> None:
    three = [site_pb2.Site(**site(layer)) for layer in (2, 0, 1)]
    await begin(served, "best", sites=three)
    await begin(served, "all", sites=three, all_sites=True)
    best = await reached(served, SUCCEEDED, "best")
    every = await reached(served, SUCCEEDED, "all")
    assert len(best.probes) == 1
    assert best.probes[0].site == best.fit.tried[0].sites[0]
    assert len(best.fit.tried) == 3
    assert [each.site for each in every.probes] == three
    assert [list(each.sites) for each in every.fit.tried] == [three]


async def test_positions_say_which_tokens_count_and_which_are_fitted_to(served: Served) -> None:
    wanted = [
        example(text, text is GOOD, positions={"span": {"start": 2, "end": 6}})
        for text in [GOOD] * 8 + [BAD] * 8
    ]
    await begin(served, examples=wanted, positions={"last": {}})
    made = await reached(served, SUCCEEDED)
    assert made.positions.HasField("last")
    (score,) = await replay(served, GOOD)
    assert score == pytest.approx(made.fit.held_out.positive_scores[0], abs=1e-5)


async def test_the_first_token_counts_only_where_positions_say_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_model = FakeModel.row

    def row(model: FakeModel, at: Site, ids: Sequence[int], *changes: Any) -> np.ndarray:
        """As of a model whose first token holds the attention that goes nowhere else."""
        return of_model(model, at, ids, *changes) * (1000 if len(ids) == 1 else 1)

    monkeypatch.setattr(FakeModel, "row", row)
    await begin(served)
    made = await reached(served, SUCCEEDED)
    assert made.positions == positions_pb2.PositionSelector(span={"start": 1})
    assert made.fit.held_out.auroc == 1
    # What was told to count is what is scored from then on.
    scored = await scored_tokens(served, GOOD)
    assert list(scored.positions) == list(range(1, 1 + len(GOOD)))
    assert scored.highest_score == pytest.approx(made.fit.held_out.positive_scores[0], abs=1e-5)
    await begin(served, "all", positions={"all": {}})
    every = await reached(served, SUCCEEDED, "all")
    assert every.positions.HasField("all")
    assert (await scored_tokens(served, GOOD, "all")).positions[0] == 0


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a text of the first token alone": (
        {"examples": [*examples(), {"prompt": {"token_ids": {"ids": [65]}}}]},
        "POSITION_OUT_OF_RANGE",
        "examples[16].prompt",
        "send longer texts, or set positions",
    ),
    "too few of a kind": (
        {"examples": examples(8, 3)},
        "FIELD_INVALID",
        "examples",
        "3 negative examples",
    ),
    "no site": ({"sites": []}, "FIELD_REQUIRED", "sites", "at least one"),
    "a site twice": ({"sites": [site(1), site(1)]}, "SITE_INVALID", "sites[1]", "twice"),
    "logits": (
        {"sites": [{"hook_point": "HOOK_POINT_LOGITS"}]},
        "SITE_INVALID",
        "sites[0]",
        "does not read logits",
    ),
    "an unknown method": ({"method": 77}, "FIELD_INVALID", "method", "77"),
    "hidden units of no hidden layer": (
        {"hidden_units": 3},
        "FIELD_INVALID",
        "hidden_units",
        "only MLP",
    ),
    "too many hidden units": (
        {"hidden_units": 513, "method": "FIT_METHOD_MLP"},
        "FIELD_INVALID",
        "hidden_units",
        "at most 512",
    ),
    "too many heads": (
        {"heads": 65, "method": "FIT_METHOD_ATTENTION"},
        "FIELD_INVALID",
        "heads",
        "at most 64",
    ),
    "attention without an attentive aggregator": (
        {"method": "FIT_METHOD_ATTENTION", "aggregator": {"ema": {"weight": 0.5}}},
        "FIELD_REQUIRED",
        "aggregator.attention",
        "attention smoothing",
    ),
    "an attentive aggregator without attention": (
        {"aggregator": {"attention": {}}},
        "FIELD_INVALID",
        "aggregator.attention",
        "queries",
    ),
    "a share of nothing": (
        {"upper_false_positives": 0.0},
        "FIELD_INVALID",
        "upper_false_positives",
        "above 0",
    ),
    "a lower share that is no larger": (
        {"lower_false_positives": 0.001, "upper_false_positives": 0.001},
        "FIELD_INVALID",
        "lower_false_positives",
        "above the upper one",
    ),
    "an empty prompt": (
        {"examples": [*examples(), {"positive": True}]},
        "FIELD_REQUIRED",
        "examples[16].prompt",
        "no source",
    ),
    "positions that an example does not have": (
        {"positions": {"span": {"start": 100}}},
        "POSITION_OUT_OF_RANGE",
        "positions",
        "selects no token",
    ),
    "a span that an example does not have": (
        {"examples": [*examples(), example(GOOD, positions={"text": {"text": "dreadful"}})]},
        "TEXT_NOT_FOUND",
        "examples[16].positions",
        "dreadful",
    ),
    "a long group": (
        {"examples": [*examples(), example(GOOD, group="g" * 257)]},
        "FIELD_INVALID",
        "examples[16].group",
        "at most 256",
    ),
    "too few groups": (
        {"examples": [{**each, "group": str(each["positive"])} for each in examples()]},
        "FIELD_INVALID",
        "examples",
        "1 groups",
    ),
    "a benign text that is not": (
        {"benign_examples": [example(GOOD, True)]},
        "FIELD_INVALID",
        "benign_examples[0].positive",
        "among the examples",
    ),
    "a span of a text that is not fitted to": (
        {"benign_examples": [example(GOOD, positions={"last": {}})]},
        "FIELD_INVALID",
        "benign_examples[0].positions",
        "leave positions unset",
    ),
    "longer texts of one kind": (
        {"longer_examples": [example(GOOD, True)]},
        "FIELD_INVALID",
        "longer_examples",
        "both kinds",
    ),
    "a bad id": ({"monitor_id": "Mood"}, "FIELD_INVALID", "monitor_id", "lower-case"),
    "no request id": ({"request_id": ""}, "FIELD_REQUIRED", "request_id", "UUID"),
    "another model": ({"model": "models/other"}, "MODEL_NOT_FOUND", "model", "other"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_wrong_request_is_refused_before_anything_runs(served: Served, case: str) -> None:
    changes, why, field, says = REFUSED[case]
    refused = await failure(served.monitors.FitMonitor(fit(**changes)))
    assert (refused.reason, refused.field) == (why, field)
    assert says in refused.message
    assert served.engine.counters.started == 0
    page = await served.monitors.ListMonitors(pb.ListMonitorsRequest())
    assert not page.monitors


async def test_where_monitors_are_not_served_none_is_fitted() -> None:
    async with serving(FakeEngine(monitors_unserved="not proven")) as served:
        refused = await failure(served.monitors.FitMonitor(fit()))
        assert refused.reason == "SITE_NOT_SERVED"
        assert "not proven" in refused.message
