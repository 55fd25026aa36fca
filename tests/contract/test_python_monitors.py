"""The Python client's monitors on the fake engine: what it makes watches, acts and is told of."""

import asyncio
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

import actserve
from actserve import (
    Add,
    Conflict,
    HiddenLayer,
    Level,
    Pause,
    Probe,
    ProbeNetwork,
    Stop,
)
from actserve.cli.top import SHOWN
from actserve_server.monitors import measures as measures
from tests.contract.harness import Served, serving

WIDTH = 16
RNG = np.random.default_rng(3)
ROW = RNG.normal(size=WIDTH)
SITE = "resid_post.1"
ALWAYS = -1e6
"""A threshold that every score is above."""
PROMPT = "hello world"


def client_of(served: Served) -> actserve.AsyncClient:
    return actserve.AsyncClient(f"127.0.0.1:{served.app.port}")


async def test_scores_are_those_of_fetched_rows_by_whatever_probe_and_aggregator() -> None:
    hidden, queries = RNG.normal(size=(3, WIDTH)), RNG.normal(size=(2, WIDTH))
    values, one = RNG.normal(size=(2, WIDTH)), RNG.normal(size=3)
    async with serving() as served, client_of(served) as client:
        rows = (await client.fetch(PROMPT, SITE))[SITE].astype(np.float64)
        linear, mlp = rows @ ROW + 0.5, np.maximum(rows @ hidden.T, 0) @ one
        weights = np.exp(rows @ queries.T)
        heads = np.cumsum(weights * (rows @ values.T), 0) / np.cumsum(weights, 0)
        steps = np.arange(1, len(rows) + 1)
        cases: dict[str, tuple[Any, Any, Any]] = {
            "each": (Probe(SITE, ROW, 0.5), "each", linear),
            "mean": (Probe(SITE, ROW, 0.5), "mean", np.cumsum(linear) / steps),
            "max": (Probe(SITE, ROW, 0.5), "max", np.maximum.accumulate(linear)),
            "mlp": (ProbeNetwork(SITE, one, HiddenLayer(hidden)), None, mlp),
            "heads": (ProbeNetwork(SITE, values, queries=queries), "attention", heads.sum(1)),
        }
        for name, (probe, aggregator, _) in cases.items():
            await client.monitors.create(
                name, probe=probe, aggregator=aggregator, upper=Level(1e6), paused=True
            )
        replay = await client.monitors.replay(PROMPT, [*cases], each_token=True)
        for name, (_, _, expected) in cases.items():
            score = replay.items[0].scores[name]
            assert score.scores is not None
            np.testing.assert_allclose(score.scores, expected, rtol=1e-4, atol=1e-4)


async def test_an_action_is_done_and_told_in_the_answer_and_in_the_alerts() -> None:
    async with serving() as served, client_of(served) as client:
        plain = await client.generate(PROMPT, max_tokens=6, temperature=0.0)
        rude = await client.monitors.create(
            "rude",
            probe=Probe(SITE, ROW),
            positions="generated",
            upper=Level(ALWAYS, Stop(), flag=True),
        )
        out = await client.generate(
            PROMPT, max_tokens=6, temperature=0.0, scores="token", end_user="u"
        )
        assert (out.finish_reason, out.stopped_by) == ("monitor", "rude")
        assert out.token_ids == plain.token_ids[:1]
        (flagged,) = out.alerts
        assert (flagged.monitor, flagged.action, flagged.end_user) == ("rude", "stop", "u")
        assert out.monitor_scores["rude"].level == "upper"
        (stored,) = [alert async for alert in client.alerts.list(end_user="u")]
        assert stored.request_id == out.request_id
        assert (stored.monitor_etag, stored.position) == (rude.etag, flagged.position)

        steer = Add(SITE, ROW, 50.0, positions="generated")
        changed = await client.monitors.update("rude", upper=Level(ALWAYS, steer), etag=rude.etag)
        assert changed.upper
        assert changed.upper.action == "intervene"
        out = await client.generate(PROMPT, max_tokens=6, temperature=0.0)
        assert (out.finish_reason, len(out.token_ids)) == ("length", 6)
        with pytest.raises(Conflict):
            await client.monitors.update("rude", paused=True, etag=rude.etag)
        assert await client.alerts.delete(end_user="u") == 1
        assert [alert.action async for alert in client.alerts.list()] == ["intervene"]


async def test_a_watcher_decides_about_a_sample_that_waits() -> None:
    async with serving() as served, client_of(served) as client:
        await client.monitors.create(
            "rude", probe=Probe(SITE, ROW), positions="generated", upper=Level(ALWAYS, Pause(30))
        )
        plain = await client.fetch(PROMPT, SITE)  # What is read is not watched.
        assert len(plain.tokens)
        for decision, tokens in (("proceed", 4), ("stop", 1)):
            answer = asyncio.ensure_future(client.generate(PROMPT, max_tokens=4))
            async for alert in client.alerts.watch("rude", from_oldest=True):
                if not alert.decision:
                    assert (await client.alerts.decide(alert, decision)).decision == decision  # pyright: ignore[reportArgumentType]
                    break
            out = await answer
            assert len(out.token_ids) <= tokens
            assert (out.finish_reason == "monitor") == (decision == "stop")


async def test_a_fit_tells_examples_apart_and_watches_once_it_is_resumed() -> None:
    rows = [{"text": f"good thing {i}", "label": "pos", "span": "good"} for i in range(12)]
    rows += [{"text": f"bad one {i}", "label": "neg"} for i in range(12)]
    async with serving() as served, client_of(served) as client:
        fit = await client.monitors.fit("fitted", rows, lower_false_positives=0.1)
        monitor = await fit.wait(progress=False)
        assert monitor.report.held_out
        assert monitor.report.held_out.auroc == 1.0
        assert {each.sites for each in monitor.report.tried} == {
            (f"resid_post.{layer}",) for layer in range(4)
        }
        assert monitor.paused
        quality = await client.monitors.test("fitted", rows)
        assert (quality.auroc, quality.positives, quality.negatives) == (1.0, 12, 12)
        resumed = await client.monitors.update("fitted", paused=False)
        assert not resumed.paused
        again = await client.monitors.fitting("fitted")
        assert again.work.state == "succeeded"


def test_top_names_metrics_that_the_server_has() -> None:
    there = {sample.name for metric in REGISTRY.collect() for sample in metric.samples}
    # Counters with labels have no series before their first one.
    there |= {f"{metric.name}_total" for metric in REGISTRY.collect() if metric.type == "counter"}
    ours = {name for _, name, _ in SHOWN if not name.startswith("vllm:")}
    assert ours <= there, ours - there
