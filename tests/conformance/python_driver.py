"""The driver of the Python client: `README.md` says what it is asked, and what it answers.

`call`, `call_stream` and `call_pages` take messages of the contract. What is collected goes through
the methods that people use, which take no messages, so requests are translated first
(`python_words.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message
from opentelemetry import context as telemetry
from opentelemetry.propagate import extract

import actserve
from actserve import tensors
from actserve.aggregators import aggregator_from_proto
from actserve.heads import SCORES
from actserve.positions import positions_to_proto
from actserve.sites import site_name
from actserve.v1 import attribution_graph_service_pb2 as graph_pb
from actserve.v1 import explanation_service_pb2 as explain_pb
from actserve.v1 import model_service_pb2 as model_pb
from actserve.v1 import monitor_service_pb2 as monitor_pb
from actserve.v1 import readout_pb2, tensor_pb2
from tests.conformance.python_words import (
    LEVELS,
    Answer,
    alerts_told,
    array,
    changes_told,
    level_of,
    positions_of,
    probe_of,
    prompt_of,
    readout_of,
    readouts_of,
    scores_told,
    term_of,
    variant_of,
    vector_of,
    when_of,
)
from tests.conformance.scripted_server import method_of


def main() -> None:
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"id": question["id"], **asyncio.run(answered(question))}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Logged(logging.Handler):
    """Keeps the texts of what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


async def answered(question: Answer) -> Answer:
    logged, logger = Logged(), logging.getLogger("actserve")
    logger.addHandler(logged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traceparent = question.get("client", {}).get("traceparent")
        token = telemetry.attach(extract({"traceparent": traceparent} if traceparent else {}))
        try:
            answer = await OPERATIONS[question["operation"]](question)
        except actserve.ActserveError as error:
            answer = {"error": told(error)}
        except asyncio.CancelledError:
            answer = {"error": CANCELLED}
        except Exception as error:  # The case fails, and the next one can be asked.
            traceback.print_exc()
            answer = {"error": {"code": "NO_ERROR_OF_THE_CLIENT", "message": repr(error)}}
        finally:
            telemetry.detach(token)
            logger.removeHandler(logged)
    texts = [str(each.message) for each in caught if each.category is UserWarning]
    return {**answer, "warnings": [*texts, *logged.texts]}


MONITORS = "models/m/monitors/"
"""What the names of monitors begin with in the cases; the client tells their ids alone."""


def told(error: actserve.ActserveError) -> Answer:
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "field": error.field or "",
        "metadata": error.metadata,
        "retry_after_s": error.retry_after,
        "request_id": error.request_id or "",
    }


CANCELLED = told(actserve.Cancelled("the call was cancelled"))


@contextlib.asynccontextmanager
async def client_of(question: Answer) -> AsyncIterator[actserve.AsyncClient]:
    asked = question["client"]
    options: dict[str, Any] = {}
    if "tls" in asked:
        options["tls"] = credentials_of(asked["tls"])
    if "timeout_s" in asked:
        options["timeout"] = asked["timeout_s"]
    async with actserve.AsyncClient(
        asked["targets"],
        model=asked.get("model"),
        token=asked.get("token"),
        plaintext_token=asked.get("allow_plaintext_token", False),
        metadata=asked.get("metadata"),
        **options,
    ) as client:
        yield client


def credentials_of(files: Answer) -> grpc.ChannelCredentials:
    pem = {name: Path(path).read_bytes() for name, path in files.items()}
    return grpc.ssl_channel_credentials(
        pem.get("ca_file"), pem.get("key_file"), pem.get("cert_file")
    )


def request_of(question: Answer) -> Any:
    kind = message_factory.GetMessageClass(method_of(question["method"]).input_type)
    return json_format.ParseDict(question["request"], kind())


def as_json(message: Message) -> Answer:
    return json_format.MessageToDict(message)


async def parse_site(question: Answer) -> Answer:
    return {"result": as_json(actserve.Site.parse(question["text"]).to_proto())}


async def parse_positions(question: Answer) -> Answer:
    return {"result": as_json(positions_to_proto(question["text"]))}


async def decode_tensor(question: Answer) -> Answer:
    tensor = json_format.ParseDict(question["tensor"], tensor_pb2.Tensor())
    return {"result": array(tensors.decode(tensor))}


async def encode_tensor(question: Answer) -> Answer:
    values = np.frombuffer(bytes.fromhex(question["data"]), "<f4").reshape(question["shape"])
    return {"result": as_json(tensors.encode(values))}


async def build_add(question: Answer) -> Answer:
    when = question.get("when")
    options: dict[str, Any] = {}
    if when:
        options["when"] = when_of(when)
    built = actserve.Add(
        question["sites"], vector_of(question["vector"]), question["coefficient"], **options
    ).to_proto()
    built.ClearField("positions")  # Which this client writes out where they are all.
    return {"result": as_json(built)}


async def build_features(question: Answer) -> Answer:
    changes: dict[str, Any] = {
        kind: {int(index): number for index, number in question.get(kind, {}).items()}
        for kind in ("values", "additions", "factors")
    }
    built = actserve.ChangeFeatures(question["sites"], question["dictionary"], **changes).to_proto()
    built.ClearField("positions")  # As in `build_add`.
    return {"result": as_json(built)}


async def build_feature_readout(question: Answer) -> Answer:
    projection = actserve.Projection(
        dictionary=question["dictionary"], send_top=question.get("top")
    )
    (built,) = actserve.Read(question["sites"], question["positions"], projection).to_proto()
    built.name = question["name"]  # Which this client gives where it sends it.
    return {"result": as_json(built)}


async def unary(question: Answer) -> Answer:
    async with client_of(question) as client:
        method, request = question["method"], request_of(question)
        if method in MADE and not request.request_id:
            # Such ids are of the methods that people use.
            kind, make = MADE[method]
            return {"result": {kind: {"name": (await make(client, request)).name}}}
        return {"result": as_json(await client.call(question["method"], request_of(question)))}


async def pages(question: Answer) -> Answer:
    names: list[str] = []
    async with client_of(question) as client:
        found = client.call_pages(question["method"], request_of(question))
        async with contextlib.aclosing(found):
            async for page in found:
                lists = [value for field, value in page.ListFields() if field.is_repeated]
                names += [each.name for each in (lists[0] if lists else ())]
                if len(names) >= question.get("take", sys.maxsize):
                    break
    return {"result": {"names": names[: question.get("take")]}}


async def stream(question: Answer) -> Answer:
    events: list[str] = []
    async with client_of(question) as client:
        messages = client.call_stream(question["method"], request_of(question))
        enough = question.get("cancel_after", sys.maxsize)

        async def read() -> None:
            async with contextlib.aclosing(messages):
                async for message in messages:
                    events.append(event_of(message))
                    if len(events) >= enough:
                        raise asyncio.CancelledError

        try:
            await cancelled_after(question.get("cancel_after_s"), read())
        except actserve.ActserveError as error:
            return {"result": {"events": events}, "error": told(error)}
        except asyncio.CancelledError:
            return {"result": {"events": events}, "error": CANCELLED}
    return {"result": {"events": events}}


def event_of(message: Any) -> str:
    if "event" in message.DESCRIPTOR.oneofs_by_name:
        return message.WhichOneof("event") or "unknown"
    return event_of(message.event)  # Of explanations, which all have the same events.


async def cancelled_after(seconds: float | None, work: Any) -> Any:
    task = asyncio.ensure_future(work)
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, task.cancel)
    return await task


async def streams(question: Answer) -> Answer:
    async with client_of(question) as client:
        await client.call("ListModels", model_pb.ListModelsRequest())
        before = threading.active_count()  # With those that gRPC keeps for all channels.
    outcomes = {"finished": 0, "cancelled": 0}
    async with client_of(question) as client:

        async def one(number: int) -> None:
            messages = client.call_stream(question["method"], request_of(question))
            async with contextlib.aclosing(messages):
                async for _ in messages:
                    if (number + 1) % question["cancel_every"] == 0:
                        outcomes["cancelled"] += 1
                        return
            outcomes["finished"] += 1

        await asyncio.gather(*(one(number) for number in range(question["count"])))
    for _ in range(100):  # What has ended needs a moment to be gone.
        if not leftovers(before):
            break
        await asyncio.sleep(0.05)
    return {"result": {**outcomes, "leaked": leftovers(before)}}


def leftovers(threads: int) -> int:
    """Tasks beside this one, and threads beyond as many."""
    return len(asyncio.all_tasks()) - 1 + max(0, threading.active_count() - threads)


async def measure(question: Answer) -> Answer:
    request = request_of(question)
    count = size = 0
    async with client_of(question) as client:
        began = time.monotonic()

        async def one() -> None:
            nonlocal count, size
            while time.monotonic() < began + question["seconds"]:
                (acts,) = await collected_fetch(client, request)
                count += 1
                size += sum(each.nbytes for name in acts.readouts for each in rows_of(acts, name))

        await asyncio.gather(*(one() for _ in range(question["concurrency"])))
        seconds = time.monotonic() - began
    return {"result": {"calls": count, "bytes": size, "seconds": seconds}}


def rows_of(acts: actserve.Activations, name: str) -> list[Any]:
    return list(acts.readouts[name].values())


async def collect(question: Answer) -> Answer:
    async with client_of(question) as client:
        request = request_of(question)
        if question["method"] == "RunSweep":  # Its deadline is not that of other calls.
            work = collect_sweep(client, request, question["client"].get("timeout_s"))
        else:
            work = COLLECTED[question["method"]](client, request)
        return {"result": await cancelled_after(question.get("cancel_after_s"), work)}


async def collect_fetch(client: actserve.AsyncClient, request: Any) -> Answer:
    (first, *_) = request.readouts
    if first.rows.HasField("statistics"):
        return await collect_statistics(client, request)
    results = await collected_fetch(client, request)
    sequences = []
    for index, (item, result) in enumerate(zip(request.items, results, strict=True)):
        shared: Answer = {"index": index, "key": item.key}
        if isinstance(result, actserve.ActserveError):
            sequences.append({**shared, "error": told(result)})
        else:
            asked = [request.readouts[i] for i in item.readout_indices] or request.readouts
            ids = [int(each) for each in result.token_ids]
            sequences.append(
                {**shared, "token_ids": ids, "readouts": readouts_of(result.readouts, asked)}
            )
    known = [each.request_id for each in results if each.request_id]
    return {"call_id": known[0] if known else "", "sequences": sequences}


async def collected_fetch(client: actserve.AsyncClient, request: Any) -> list[Any]:
    results: list[Any] = [None] * len(request.items)
    # One call of the client has the same readouts for every prompt.
    indices = tuple(request.items[0].readout_indices)
    asked = [request.readouts[i] for i in indices] or request.readouts
    options: dict[str, Any] = {}
    if request.items[0].HasField("positions"):
        options["positions"] = [positions_of(item.positions) for item in request.items]
    fetched = client.fetch_iter(
        [prompt_of(item.prompt) for item in request.items],
        keys=[item.key or str(index) for index, item in enumerate(request.items)],
        readouts={each.name: readout_of(each) for each in asked},
        on_error="raise" if request.fail_fast else "return",
        **options,
    )
    index = 0
    async for result in fetched:
        results[index] = result
        index += 1
    return results


async def collect_statistics(client: actserve.AsyncClient, request: Any) -> Answer:
    (readout,) = request.readouts
    prompts = [prompt_of(item.prompt) for item in request.items]
    sites = [site_name(site) for site in readout.rows.sites]
    full = readout.rows.statistics.second_moments == readout_pb2.SECOND_MOMENTS_FULL
    moments = "covariance" if full else "variance"
    fetched = await client.fetch_means(
        prompts,
        [item.label for item in request.items],
        sites,
        positions="all",
        reduce=None,
        second_moments=moments,
    )
    return {
        "call_id": "c1",
        "sequences": [
            {"index": i, "key": item.key, "token_ids": [5, 6], "readouts": {}}
            for i, item in enumerate(request.items)
        ],
        "statistics": {
            readout.name: {
                site: {
                    label: {
                        "rows": means.rows,
                        "mean": array(means[site]),
                        "second_moments": array(getattr(means, moments)[site]),
                    }
                    for label, means in fetched.items()
                }
                for site in sites
            }
        },
    }


async def collect_generate(client: actserve.AsyncClient, request: Any) -> Answer:
    sampling = {field.name: value for field, value in request.sampling.ListFields()}
    many = sampling.get("samples", 1) > 1
    readouts = {each.name: readout_of(each) for each in request.readouts}
    generated = await client.generate(
        prompt_of(request.prompt),
        readouts=readouts,
        monitors=list(request.monitors),
        scores={0: None, 1: "sample", 2: "token"}[request.score_detail],
        end_user=request.end_user or None,
        **sampling,
    )
    samples = generated if many else [generated]
    return {
        "call_id": samples[0].request_id,
        "sequences": [
            {
                "index": index,
                "token_ids": [int(i) for i in (*each.prompt_token_ids, *each.token_ids)],
                "text": each.text,
                "finish_reason": each.finish_reason.upper(),
                "readouts": readouts_of(each.activations.readouts, request.readouts),
                **watched_told(each),
            }
            for index, each in enumerate(samples)
        ],
    }


def watched_told(sample: actserve.Generation) -> Answer:
    """What monitors say of a sample."""
    said: Answer = {}
    if sample.finish_reason == "monitor":
        said["monitor"] = f"{MONITORS}{sample.stopped_by}"
    if sample.alerts:
        said["alerts"] = alerts_told(sample.alerts, MONITORS)
    if sample.monitor_scores:
        said["monitor_scores"] = scores_told(sample.monitor_scores, MONITORS)
    if sample.monitor_interventions:
        said["monitor_interventions"] = changes_told(sample.monitor_interventions, MONITORS)
    return said


async def collect_sweep(
    client: actserve.AsyncClient, request: Any, timeout: float | None
) -> Answer:
    variants = [variant_of(each) for each in request.variants]
    sampling = {field.name: value for field, value in request.sampling.ListFields()}
    keys = [each.key for each in request.prompts]
    prompts = [prompt_of(each.prompt) for each in request.prompts]
    swept = await client.sweep(
        dict(zip(keys, prompts, strict=True)) if all(keys) else prompts,
        variants={each.key or str(i): variants[i] for i, each in enumerate(request.variants)},
        baseline=False,
        answers={each.name: each.text for each in request.answers},
        scores={each.name: probe_of(each.probe) for each in request.scores},
        perplexity=request.perplexity,
        progress=False,
        timeout=timeout,
        **sampling,
    )
    cells = [cell_told(cell, variants[cell.variant_index]) for cell in swept.cells]
    return {"call_id": swept.request_id, "cells": sorted(cells, key=place_of)}


def cell_told(cell: Any, variant: Any) -> Answer:
    lists = (
        (cell.coefficient, variant.coefficients),
        (cell.site, [str(site) for site in variant.sites]),
        (cell.positions, variant.positions),
    )
    place: Answer = {
        "at": [cell.prompt_index, cell.variant_index]
        + [None if value is None else [*values].index(value) for value, values in lists]
    }
    if cell.error:
        return {**place, "error": told(cell.error)}
    return {
        **place,
        "text": cell.text,
        "finish_reason": cell.finish_reason.upper() or None,
        "answer_logprobs": [*cell.answers.values()],
        "score_values": [*cell.scores.values()],
        "perplexity": cell.perplexity,
        "repetition": cell.repetition,
        "stored": cell.stored,
    }


def place_of(cell: Answer) -> list[int]:
    return [each or 0 for each in cell["at"]]


async def collect_heads(client: actserve.AsyncClient, request: Any) -> Answer:
    patterns = None
    if request.HasField("patterns"):
        asked = {field.name: value for field, value in request.patterns.ListFields()}
        patterns = actserve.Patterns(**asked)
    table = await client.heads(
        [prompt_of(item.prompt) for item in request.items],
        list(request.layers) or "all",
        top_tokens=request.top_tokens,
        patterns=patterns,
        on_error="return",
    )
    every = [(layer, head) for layer in table.layers for head in range(table.induction.shape[1])]
    return {
        "call_id": table.request_id,
        "layers": list(table.layers),
        "queries": table.queries,
        "means": {name: array(getattr(table, name)) for name in SCORES if name != "attribution"},
        "query_tokens": [token_weights(table.query_tokens[each]) for each in every],
        "key_tokens": [token_weights(table.key_tokens[each]) for each in every],
        "items": [
            {"index": index, "key": item.key, **measured_told(prompt)}
            for index, (item, prompt) in enumerate(zip(request.items, table.prompts, strict=True))
        ],
    }


def token_weights(tokens: Any) -> Answer:
    return {
        "ids": [each.token_id for each in tokens],
        "texts": [each.token for each in tokens],
        **array([each.weight for each in tokens]),
    }


def measured_told(prompt: Any) -> Answer:
    """A prompt that was measured, with the patterns of heads that have any."""
    if isinstance(prompt, actserve.ActserveError):
        return {"error": told(prompt)}
    return {
        "token_ids": [int(each) for each in prompt.prompt.token_ids],
        "patterns": {
            f"{layer}.{head}": {
                "queries": pattern.queries.tolist(),
                "keys": pattern.keys.tolist(),
                **array(pattern.weights),
            }
            for (layer, head), pattern in prompt.patterns.items()
            if len(pattern.weights)
        },
    }


async def collect_graph(client: actserve.AsyncClient, request: Any) -> Answer:
    return graph_told(await client.graphs.get(request.name))


async def graph(question: Answer) -> Answer:
    """Begins a graph, and waits for it."""
    asked = json_format.ParseDict(question["request"], graph_pb.CreateAttributionGraphRequest())
    async with client_of(question) as client:
        trace = await client.graphs.create(prompt_of(asked.prompt), name=asked.attribution_graph_id)
        return {"result": graph_told(await trace.wait())}


def graph_told(graph: actserve.AttributionGraph) -> Answer:
    numbers = {
        "embedding": lambda node: [node.token_id],
        "neuron": lambda node: [node.layer, node.neuron],
        "feature": lambda node: [node.layer, node.feature],
        "error": lambda node: [node.layer],
        "logit": lambda node: [node.token_id],
    }
    return {
        "nodes": [
            {"kind": node.kind, "of": numbers[node.kind](node), "position": node.position}
            for node in graph.nodes
        ],
        "influences": array([node.influence for node in graph.nodes]),
        "activations": array([node.activation or node.probability or 0 for node in graph.nodes]),
        "sources": graph.sources.tolist(),
        "targets": graph.targets.tolist(),
        "weights": array(graph.weights),
    }


async def collect_replay(client: actserve.AsyncClient, request: Any) -> Answer:
    replay = await client.monitors.replay(
        {each.key: prompt_of(each.prompt) for each in request.items},
        list(request.monitors),
        each_token=request.each_token,
    )
    items: list[Answer] = []
    for item in replay.items:
        outcome: Answer = (
            {"error": told(item.error)}
            if item.error
            else {"scores": scores_told(item.scores, MONITORS)}
        )
        items.append({"index": item.index, "key": item.key, **outcome})
    return {"call_id": "c1", "items": items}


async def collect_explanations(client: actserve.AsyncClient, request: Any) -> Answer:
    spec = {field.name: value for field, value in request.spec.ListFields()}
    match request:
        case explain_pb.ExplainTextRequest():
            positions = positions_of(request.positions)
            explained = client.explain_text_stream(
                prompt_of(request.prompt), positions=positions, **spec
            )
        case explain_pb.CompareActivationsRequest():
            rows, reference = tensors.decode(request.activations), tensors.decode(request.reference)
            found = await client.explain_difference(
                rows, reference, site=site_name(request.site), **spec
            )
            return explanations_of(found, "c1", "models/m/nlas/n")
        case _:
            explained = client.explain_stream(
                tensors.decode(request.activations), site=site_name(request.site), **spec
            )
    begun: Any = None
    async for event in explained:
        begun = begun or event
    nla = f"models/m/nlas/{begun.nla}"  # The client tells the id alone.
    return explanations_of(await explained.result(), begun.request_id, nla)


def explanations_of(found: Any, call_id: str, nla: str) -> Answer:
    each = list(found.explanations) if isinstance(found, actserve.ExplainedText) else list(found)
    flat = [one for row in each for one in (row if isinstance(row, list | tuple) else [row])]
    return {
        "call_id": call_id,
        "nla": nla,
        "explanations": sorted(
            ({"row": one.row, "sample": one.sample, "text": one.text} for one in flat),
            key=lambda one: (one["row"], one["sample"]),
        ),
    }


async def collect_reconstruction(client: actserve.AsyncClient, request: Any) -> Answer:
    rows = await client.reconstruct(list(request.texts), site=site_name(request.site))
    return {"call_id": "c1", **array(rows)}


async def create_vector(client: actserve.AsyncClient, request: Any) -> actserve.StoredVector:
    return await client.vectors.store(
        request.steering_vector_id,
        tensors.decode(request.rows.tensor),
        [site_name(site) for site in request.sites],
        labels=dict(request.labels),
    )


async def make_vector(client: actserve.AsyncClient, request: Any) -> actserve.StoredVector:
    return await client.vectors.create(
        request.steering_vector_id,
        [prompt_of(each) for each in request.prompts.positive],
        [prompt_of(each) for each in request.prompts.negative],
        [site_name(site) for site in request.sites],
        method={0: None, 1: "mean_difference", 2: "pca", 3: "logistic_regression"}[request.method],
        labels=dict(request.labels),
    )


async def combine_vectors(client: actserve.AsyncClient, request: Any) -> actserve.StoredVector:
    asked = request.combination
    return await client.vectors.combine(
        request.steering_vector_id,
        [term_of(each) for each in asked.terms],
        without=[term_of(each) for each in asked.without],
        norm=asked.norm if asked.HasField("norm") else None,
        labels=dict(request.labels),
    )


async def create_monitor(client: actserve.AsyncClient, request: Any) -> actserve.Monitor:
    asked = request.monitor
    return await client.monitors.create(
        request.monitor_id,
        probe=[probe_of(each) for each in asked.probes],
        aggregator=aggregator_from_proto(asked.aggregator),
        upper=level_of(asked.upper),
        watch=actserve.Watch(named_only=asked.watch.named_only),
        labels=dict(asked.labels),
    )


async def fit_monitor(client: actserve.AsyncClient, request: Any) -> actserve.Monitor:
    fit = await client.monitors.fit(
        request.monitor_id,
        [
            actserve.Example(prompt_of(each.prompt), each.positive, group=each.group)
            for each in request.examples
        ],
        sites=[site_name(site) for site in request.sites],
        method="attention" if request.method == monitor_pb.FIT_METHOD_ATTENTION else None,
        upper_false_positives=request.upper_false_positives,
    )
    return fit.monitor


async def create_graph(client: actserve.AsyncClient, request: Any) -> actserve.GraphSummary:
    asked = request.settings
    trace = await client.graphs.create(
        prompt_of(request.prompt),
        name=request.attribution_graph_id,
        max_logits=asked.max_logits,
        node_threshold=asked.node_threshold,
    )
    return trace.summary


async def wait(question: Answer) -> Answer:
    async with client_of(question) as client:
        fit = await client.monitors.fitting(question["name"])
        return {"result": {"name": (await fit.wait()).name}}


async def watch(question: Answer) -> Answer:
    request = json_format.ParseDict(question["request"], monitor_pb.WatchAlertsRequest())
    # The client has its model in all requests.
    question = {**question, "client": {**question["client"], "model": request.model or None}}
    seen: list[Answer] = []
    async with client_of(question) as client:
        alerts = client.alerts.watch(
            list(request.filter.monitors),
            level=LEVELS[request.filter.level],
            end_user=request.filter.end_user or None,
            resume_from=request.resume_token or None,
            from_oldest=request.from_oldest,
        )
        try:
            async with contextlib.aclosing(alerts):
                async for alert in alerts:
                    seen.append({"name": alert.name, "lost_before": alert.lost_before})
                    if len(seen) >= question["take"]:
                        break
        except actserve.ActserveError as error:
            return {"result": {"alerts": seen}, "error": told(error)}
    return {"result": {"alerts": seen}}


async def upload(question: Answer) -> Answer:
    of = {
        each["role"]: np.frombuffer(bytes.fromhex(each["data"]), "<f4").reshape(each["shape"])
        for each in question["matrices"]
    }
    dictionary = actserve.Dictionary(
        site=question["site"],
        encoder=of["ENCODER"],
        encoder_bias=of.get("ENCODER_BIAS"),
        decoder=of["DECODER"],
        activation="relu",
    )
    async with client_of(question) as client:
        made = await client.dictionaries.upload(question["name"], dictionary)
    return {"result": {"name": made.name}}


async def logit_effects(question: Answer) -> Answer:
    features = [actserve.Feature(question["dictionary"], index) for index in question["features"]]
    async with client_of(question) as client:
        found = await client.features.logit_effects(features, k=question["k"])
    return {
        "result": {
            "effects": [
                {
                    "feature": each.feature,
                    "top": effects_told(each.top_ids, each.top_tokens, each.top_effects),
                    "bottom": effects_told(
                        each.bottom_ids, each.bottom_tokens, each.bottom_effects
                    ),
                }
                for each in found
            ]
        }
    }


def effects_told(ids: Any, texts: Any, effects: Any) -> list[Answer]:
    return [
        {"id": int(token_id), "text": text, **array([effect])}
        for token_id, text, effect in zip(ids, texts, effects, strict=True)
    ]


MADE = {
    "CreateSteeringVector": ("steeringVector", create_vector),
    "MakeSteeringVector": ("steeringVector", make_vector),
    "CombineSteeringVectors": ("steeringVector", combine_vectors),
    "CreateMonitor": ("monitor", create_monitor),
    "FitMonitor": ("monitor", fit_monitor),
    "CreateAttributionGraph": ("attributionGraph", create_graph),
}
COLLECTED = {
    "FetchActivations": collect_fetch,
    "Generate": collect_generate,
    "ExplainActivations": collect_explanations,
    "ExplainText": collect_explanations,
    "CompareActivations": collect_explanations,
    "ReconstructActivations": collect_reconstruction,
    "ReplayMonitors": collect_replay,
    "MeasureHeads": collect_heads,
    "WatchAttributionGraph": collect_graph,
}
OPERATIONS = {
    "parse_site": parse_site,
    "parse_positions": parse_positions,
    "decode_tensor": decode_tensor,
    "encode_tensor": encode_tensor,
    "build_add": build_add,
    "build_features": build_features,
    "build_feature_readout": build_feature_readout,
    "unary": unary,
    "list": pages,
    "stream": stream,
    "collect": collect,
    "streams": streams,
    "measure": measure,
    "watch": watch,
    "wait": wait,
    "upload": upload,
    "logit_effects": logit_effects,
    "graph": graph,
}

if __name__ == "__main__":
    main()
