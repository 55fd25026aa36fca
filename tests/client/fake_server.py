"""A server with a made-up model.

It has one token a word, and each activation tells where it comes from; see `value`. A test
replaces `fetch` or `generate` of the `Model` to make the server misbehave.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from actserve.v1 import (
    alert_pb2,
    intervention_pb2,
    model_service_pb2,
    readout_pb2,
    tensor_pb2,
)
from actserve.v1 import dictionary_service_pb2_grpc as dictionary_grpc
from actserve.v1 import explanation_service_pb2 as explanation_pb2
from actserve.v1 import explanation_service_pb2_grpc as explanation_grpc
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import generation_service_pb2_grpc as generation_grpc
from actserve.v1 import kept_activations_service_pb2 as kept_pb2
from actserve.v1 import kept_activations_service_pb2_grpc as kept_grpc
from actserve.v1 import model_service_pb2_grpc as model_grpc
from actserve.v1 import monitor_service_pb2_grpc as monitor_grpc
from actserve.v1 import steering_vector_service_pb2_grpc as vector_grpc
from actserve.v1 import sweep_service_pb2_grpc as sweep_grpc
from actserve.v1 import weight_service_pb2_grpc as weight_grpc

from . import (
    fake_dictionaries,
    fake_explanations,
    fake_monitors,
    fake_sweeps,
    fake_vectors,
    fake_weights,
)
from .fake_prompts import tokenized
from .fake_readouts import (
    WIDTH,
    Chunk,
    positions,
    select,
    site_rows,
    started,
    tensor,
    tracks,
    value,
    where,
)

LAYERS = 3
GENERATED = ("and", "so", "on")

Events = Iterator[Any]


def expected(
    prompt_length: int, site: int, positions: Iterable[int], width: int = WIDTH
) -> np.ndarray:
    return np.stack([value(prompt_length, site, position, width) for position in positions])


def reports(
    interventions: Sequence[Any], run_length: int
) -> list[intervention_pb2.InterventionReport]:
    """Made-up reports: the i-th intervention changed every row but i, which were reused."""
    return [
        intervention_pb2.InterventionReport(
            rows=run_length,
            changed_rows=run_length - index,
            reused_rows=index,
            mean_relative_change=0.25 if run_length > index else None,
            dose_factor=0.5 if index == 1 else None,
        )
        for index in range(len(interventions))
    ]


def rows(
    sequence: int, site: int, positions: list[int], prompt_length: int, width: int = WIDTH
) -> readout_pb2.ActivationChunk:
    return readout_pb2.ActivationChunk(
        sequence_index=sequence,
        site_index=site,
        positions=positions,
        rows=tensor(expected(prompt_length, site, positions, width)),
    )


def as_events(cls: Any, chunks: Iterable[list[Chunk]]) -> list[list[Any]]:
    """Tracks of chunks as ones of `FetchActivationsResponse` or `GenerateResponse`."""
    kinds = {
        readout_pb2.ActivationChunk: "activations",
        readout_pb2.PredictionChunk: "predictions",
        readout_pb2.AttentionChunk: "attention",
        readout_pb2.AttentionSummaryChunk: "attention_summary",
        readout_pb2.LogitAttributionChunk: "logit_attribution",
    }
    return [[cls(**{kinds[type(chunk)]: chunk}) for chunk in track] for track in chunks]


def at_positions(readout: readout_pb2.Readout, item: pb.FetchItem) -> readout_pb2.Readout:
    """The readout of rows as it reads an item."""
    if not item.HasField("positions"):
        return readout
    own = readout_pb2.Readout()
    own.CopyFrom(readout)
    own.rows.positions.CopyFrom(item.positions)
    return own


def label_means(request: pb.FetchActivationsRequest) -> Events:
    """How the rows of each label are distributed, the last label first; a covariance matrix comes
    in pieces of three rows."""
    readout = request.readouts[0]
    full = readout.rows.statistics.second_moments == readout_pb2.SECOND_MOMENTS_FULL
    for index in range(len(readout.rows.sites)):
        blocks: dict[str, list[np.ndarray]] = {}
        for item in request.items:
            length = len(tokenized(item.prompt).ids)
            for label, selector in [
                (item.label, readout.rows.positions),
                *((each.label, each.positions) for each in item.position_labels),
            ]:
                at = select(selector, length, [0] * length)
                # An item without any label counts towards the empty one.
                unlabelled = not (item.label or item.position_labels)
                if (label or unlabelled) and at:
                    rows = site_rows(readout.rows, index, at, length)
                    blocks.setdefault(label, []).append(rows)
        for label in sorted(blocks, reverse=True):
            rows = np.concatenate(blocks[label])
            centered = rows - rows.mean(0)
            # By hand: np.cov of old numpy takes a single row for a column.
            seconds = centered.T @ centered / len(rows) if full else rows.var(0)
            for first in range(0, len(seconds), 3) if full else [0]:
                yield pb.FetchActivationsResponse(
                    statistics=pb.LabelStatistics(
                        label=label,
                        site_index=index,
                        rows=len(rows),
                        mean=None if first else tensor(rows.mean(0)),
                        second_moments=tensor(seconds[first : first + 3] if full else seconds),
                        first_row=first,
                    )
                )


def round_robin() -> Callable[[int], int]:
    """Takes from each sequence in turn."""
    turn = itertools.count()
    return lambda n: next(turn) % n


def merge(tracks: list[list[Any]], order: Callable[[int], int]) -> Events:
    """The events of several tracks, each track in its own order; `order(n)` picks one of n."""
    tracks = [list(track) for track in tracks]
    while tracks := [track for track in tracks if track]:
        yield tracks[order(len(tracks))].pop(0)


class Model:
    """The servicers. `order` picks which of n sequences the next event belongs to."""

    def __init__(self) -> None:
        self.order: Callable[[int], int] = lambda n: 0
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.kept: dict[str, kept_pb2.KeptActivations] = {}
        self.cancelled = threading.Event()
        self.max_request_bytes = 0
        self.layer_count = LAYERS
        self.fetch = self.honest_fetch
        self.generate = self.honest_generate
        self.nlas = [fake_explanations.NLA]
        self.explain = fake_explanations.explain
        self.reconstruct = fake_explanations.reconstruct
        self.score = fake_explanations.score
        self.set_baseline = fake_explanations.set_baseline
        self.sweep: Callable[[Any], Events] = fake_sweeps.honest
        self.vectors = fake_vectors.Vectors()
        self.dictionaries = fake_dictionaries.Dictionaries()
        self.monitors = fake_monitors.Monitors()
        self.weights: Callable[[Any], Events] = fake_weights.told
        self.before: Callable[[Any, grpc.ServicerContext], object] = lambda request, context: None

    def honest_fetch(self, request: pb.FetchActivationsRequest) -> Events:
        readouts = request.readouts
        yield pb.FetchActivationsResponse(
            started=pb.FetchStarted(call_id="r1", readouts=started(readouts))
        )
        events: list[list[Any]] = []
        for index, item in enumerate(request.items):
            prompt = tokenized(item.prompt if item.HasField("prompt") else request.prompt)
            length, run = len(prompt.ids), list(prompt.ids)
            readouts = [at_positions(each, item) for each in request.readouts]
            chosen = {*(item.readout_indices or range(len(readouts)))}
            chunks = (
                []
                if readouts[0].rows.HasField("statistics")
                else [
                    [chunk for chunk in track if chunk.readout_index in chosen]
                    for track in tracks(readouts, index, length, run)
                ]
            )
            told = [
                readout_pb2.ReadoutPositions(
                    readout_indices=[each for each in where.readout_indices if each in chosen],
                    positions=where.positions,
                )
                for where in positions(readouts, length, run)
            ]
            opened = pb.ItemStarted(item_index=index, prompt=prompt, positions=told)
            closed = pb.ItemFinished(
                item_index=index,
                interventions=reports(
                    [*request.interventions, *item.interventions],
                    1 if item.readout_indices else length,
                ),
                kept=self.keep(index, readouts, length, run),
            )
            events.append(
                [
                    pb.FetchActivationsResponse(item_started=opened),
                    *merge(as_events(pb.FetchActivationsResponse, chunks), self.order),
                    pb.FetchActivationsResponse(item_finished=closed),
                ]
            )
        yield from merge(events, self.order)
        yield from label_means(request)
        usage = pb.Usage(prompt_tokens=7, activation_bytes=64)
        yield pb.FetchActivationsResponse(finished=pb.FetchFinished(usage=usage))

    def honest_generate(self, request: pb.GenerateRequest) -> Events:
        readouts, params = request.readouts, request.sampling
        prompt = tokenized(request.prompt)
        length = len(prompt.ids)
        yield pb.GenerateResponse(
            started=pb.GenerateStarted(call_id="r2", prompt=prompt, readouts=started(readouts))
        )
        written = GENERATED[: params.max_tokens or None]
        events: list[list[Any]] = []
        for sample in range(params.samples or 1):
            texts = [f" {word}{sample}" for word in written]
            ids = [100 * sample + index for index in range(len(texts))]
            run = [*prompt.ids, *ids[:-1]]
            tokens = [
                pb.GenerateResponse(
                    tokens=pb.TokenChunk(
                        sample_index=sample,
                        position=length + index,
                        ids=[ids[index]],
                        texts=[text],
                        text=text,
                        logprobs=[
                            pb.TokenLogprobs(
                                logprob=-0.5,
                                top=[pb.TokenLogprob(id=index, text=text, logprob=-0.5)],
                            )
                        ]
                        if params.HasField("logprobs")
                        else [],
                    )
                )
                for index, text in enumerate(texts)
            ]
            chunks = as_events(pb.GenerateResponse, tracks(readouts, sample, length, run))
            closed = pb.SampleFinished(
                sample_index=sample,
                reason=pb.FINISH_REASON_STOP if params.stop else pb.FINISH_REASON_LENGTH,
                stop_string=params.stop[0] if params.stop else None,
                positions=positions(readouts, length, run),
                interventions=reports(request.interventions, len(run)),
                kept=self.keep(sample, readouts, length, run),
            )
            if request.monitors:  # Which stop every sample but the first, after its last token.
                closed.reason = pb.FINISH_REASON_MONITOR if sample else closed.reason
                if sample:
                    closed.monitor = request.monitors[0]
            if request.score_detail:
                each = request.score_detail == pb.SCORE_DETAIL_TOKEN
                closed.monitor_scores.extend(
                    fake_monitors.scored(name, len(run), each_token=each)
                    for name in request.monitors
                )
            tokens += [
                pb.GenerateResponse(
                    alert=alert_pb2.Alert(
                        monitor=name,
                        sample_index=sample,
                        level=alert_pb2.ALERT_LEVEL_LOWER,
                        end_user=request.end_user,
                        watched_call_id="r2",
                    )
                )
                for name in request.monitors
            ]
            events.append(
                [
                    *merge([tokens, *chunks], self.order),
                    pb.GenerateResponse(sample_finished=closed),
                ]
            )
        yield from merge(events, self.order)
        usage = pb.Usage(prompt_tokens=length, output_tokens=len(written))
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage))

    def keep(
        self,
        sequence: int,
        readouts: Iterable[readout_pb2.Readout],
        length: int,
        run: list[int],
    ) -> list[readout_pb2.KeptReadout]:
        """What is kept of a sequence."""
        told: list[readout_pb2.KeptReadout] = []
        for index, readout in enumerate(readouts):
            if not readout.HasField("keep"):
                continue
            kept = kept_pb2.KeptActivations(
                name=f"keptActivations/{len(self.kept)}",
                sites=readout.keep.sites,
                positions=where(readout, length, run),
                size_bytes=64,
                model="models/big",
                element_type=tensor_pb2.ELEMENT_TYPE_BF16,
            )
            kept.create_time.FromSeconds(1_000_000_000)
            kept.expire_time.FromSeconds(1_000_000_000 + readout.keep.ttl.seconds)
            if kept.positions:
                self.kept[kept.name] = kept
                told.append(
                    readout_pb2.KeptReadout(
                        sequence_index=sequence, readout_index=index, name=kept.name
                    )
                )
        return told

    def seen(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(lambda: context.code() or self.cancelled.set())
        self.before(request, context)


class GenerationServicer(generation_grpc.GenerationServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def FetchActivations(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.fetch(request)

    def Generate(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.generate(request)


class ExplanationServicer(explanation_grpc.ExplanationServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def ListNlas(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        # One a page, so that a client that stops at the first page is noticed.
        parent = request.parent.removesuffix("-")
        first = int(request.page_token or 0)
        found = [nla for nla in self.model.nlas if nla.name.startswith(parent)][first:]
        return explanation_pb2.ListNlasResponse(
            nlas=found[:1], next_page_token=str(first + 1) if len(found) > 1 else ""
        )

    def ExplainActivations(self, request: Any, context: Any) -> Events:  # noqa: N802
        yield from self._explain(explanation_pb2.ExplainActivationsResponse, request, context)

    def ExplainText(self, request: Any, context: Any) -> Events:  # noqa: N802
        yield from self._explain(explanation_pb2.ExplainTextResponse, request, context)

    def CompareActivations(self, request: Any, context: Any) -> Events:  # noqa: N802
        yield from self._explain(explanation_pb2.CompareActivationsResponse, request, context)

    def _explain(self, response: Any, request: Any, context: Any) -> Events:
        self.model.seen(request, context)
        for event in self.model.explain(request):
            yield response(event=event)

    def ReconstructActivations(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.reconstruct(request)

    def ScoreExplanations(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return self.model.score(request)

    def SetExplanationBaseline(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return self.model.set_baseline(request)

    def DeleteExplanationBaseline(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return explanation_pb2.DeleteExplanationBaselineResponse()


class WeightServicer(weight_grpc.WeightServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def _read(self, request: Any, context: Any) -> Events:
        self.model.seen(request, context)
        yield from self.model.weights(request)

    ReadTokenRows = ReadHeadMatrices = _read


class VectorServicer(vector_grpc.SteeringVectorServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def _answer(self, request: Any, context: Any) -> Any:
        self.model.seen(request, context)
        return self.model.vectors.answer(request, context)

    CreateSteeringVector = GetSteeringVector = ListSteeringVectors = _answer
    UpdateSteeringVector = DeleteSteeringVector = _answer
    MakeSteeringVector = CombineSteeringVectors = _answer


class DictionaryServicer(dictionary_grpc.DictionaryServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def _answer(self, request: Any, context: Any) -> Any:
        self.model.seen(request, context)
        return self.model.dictionaries.answer(request, context)

    GetDictionary = ListDictionaries = DeleteDictionary = _answer
    SetFeatureLabels = ListFeatureLabels = _answer
    BeginUpload = UploadChunk = FinishUpload = _answer


class MonitorServicer(monitor_grpc.MonitorServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def _answer(self, request: Any, context: Any) -> Any:
        self.model.seen(request, context)
        return self.model.monitors.answer(request, context)

    CreateMonitor = GetMonitor = ListMonitors = UpdateMonitor = DeleteMonitor = _answer
    FitMonitor = GetMonitorScores = _answer
    GetAlert = ListAlerts = DecideAlert = DeleteAlerts = _answer

    def WatchAlerts(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.monitors.watch(request, context)

    def ReplayMonitors(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.monitors.replay(request)


class SweepServicer(sweep_grpc.SweepServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def RunSweep(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.sweep(request)


class KeptServicer(kept_grpc.KeptActivationsServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def GetKeptActivations(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        if request.name not in self.model.kept:
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing is kept under that name")
        kept = self.model.kept[request.name]
        return kept_pb2.GetKeptActivationsResponse(kept_activations=kept)

    def ListKeptActivations(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        # One a page, so that a client that stops at the first page is noticed.
        names = [name for name in sorted(self.model.kept) if name > request.page_token]
        return kept_pb2.ListKeptActivationsResponse(
            kept_activations=[self.model.kept[name] for name in names[:1]],
            next_page_token=names[0] if len(names) > 1 else "",
        )

    def DeleteKeptActivations(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        if self.model.kept.pop(request.name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing is kept under that name")
        return kept_pb2.DeleteKeptActivationsResponse()


class ModelServicer(model_grpc.ModelServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        # One model a page, so that a client that stops at the first page is noticed.
        pages = {"": ("models/big", "2"), "2": ("models/small", "")}
        name, next_page_token = pages[request.page_token]
        return model_service_pb2.ListModelsResponse(
            models=[self.described(name)], next_page_token=next_page_token
        )

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return model_service_pb2.GetModelResponse(model=self.described(request.name))

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return model_service_pb2.TokenizeResponse(prompt=tokenized(request.prompt))

    def described(self, name: str) -> model_service_pb2.Model:
        told = described(name)
        told.limits.max_request_bytes = self.model.max_request_bytes
        told.layer_count = self.model.layer_count
        return told


def described(name: str) -> model_service_pb2.Model:
    support = model_service_pb2.HookPointSupport
    return model_service_pb2.Model(
        name=name,
        path="org/checkpoint",
        architecture="LlamaForCausalLM",
        layer_count=LAYERS,
        width=WIDTH,
        vocabulary_size=1000,
        element_type=tensor_pb2.ELEMENT_TYPE_BF16,
        hook_points=[
            support(hook_point="HOOK_POINT_EMBEDDING", width=WIDTH),
            support(hook_point="HOOK_POINT_RESID_POST", width=WIDTH),
            support(hook_point="HOOK_POINT_MLP_OUT", width=WIDTH, unserved_reason="fused away"),
            support(hook_point="HOOK_POINT_Q", width=WIDTH, heads=2),
            support(hook_point="HOOK_POINT_LOGITS", width=9, unchangeable_reason="read only"),
            # Of a newer server.
            support(hook_point=99, width=WIDTH),  # pyright: ignore[reportArgumentType]
        ],
        limits=model_service_pb2.Limits(
            max_sequence_tokens=2048,
            max_items=64,
            max_kept_seconds=600,
            default_kept_seconds=60,
            max_request_parts=1000,
            max_statistics_bytes=1 << 20,
            clamps_dose=True,
        ),
        attention_unserved_reason="its layers are not attention",
        # The last one of a newer server.
        features=["FEATURE_FETCH", "FEATURE_STEERING_VECTORS", 999],  # pyright: ignore[reportArgumentType]
        default_sampling=pb.SamplingParams(temperature=0.6, min_p=0.0, top_k=20, max_tokens=128),
    )


@contextmanager
def serving(model: Model, at: str = "127.0.0.1:0") -> Iterator[str]:
    """The address of a server of the model; a free one of this machine unless told."""
    server = grpc.server(ThreadPoolExecutor(16))
    dictionary_grpc.add_DictionaryServiceServicer_to_server(DictionaryServicer(model), server)
    generation_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(model), server)
    explanation_grpc.add_ExplanationServiceServicer_to_server(ExplanationServicer(model), server)
    kept_grpc.add_KeptActivationsServiceServicer_to_server(KeptServicer(model), server)
    model_grpc.add_ModelServiceServicer_to_server(ModelServicer(model), server)
    monitor_grpc.add_MonitorServiceServicer_to_server(MonitorServicer(model), server)
    sweep_grpc.add_SweepServiceServicer_to_server(SweepServicer(model), server)
    vector_grpc.add_SteeringVectorServiceServicer_to_server(VectorServicer(model), server)
    weight_grpc.add_WeightServiceServicer_to_server(WeightServicer(model), server)
    port = server.add_insecure_port(at)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
