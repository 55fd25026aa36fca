"""How much a vector made of examples moves what a model goes on to say, by its coefficient.

    make serve                                           # in another terminal
    python scripts/dose_response.py localhost:50051      # writes docs/pictures/dose-response.svg

At each of three layers the server makes the difference of means of good and bad texts. It is added,
so many times, at the last token of 32 neutral beginnings, as there also the means were taken. What
is told is the mean log probability of good words less that of bad ones, right after it. Beside it
goes what random vectors of its norm do.
"""

import argparse
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from actserve.v1 import (
    generation_service_pb2,
    generation_service_pb2_grpc,
    intervention_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    positions_pb2,
    readout_pb2,
    site_pb2,
    source_pb2,
    steering_vector_service_pb2,
    steering_vector_service_pb2_grpc,
    tensor_pb2,
)
from scripts import sentiment

PICTURE = Path(__file__).resolve().parent.parent / "docs/pictures/dose-response.svg"
LAYERS = (12, 16, 18)
COEFFICIENTS = tuple(np.arange(-2.0, 2.5, 0.5).tolist())
RANDOM_VECTORS = 6
LAST = positions_pb2.PositionSelector(last=positions_pb2.LastPosition())
COLOURS = ("#3b6fb6", "#c2571a", "#3a8f5c")
PAPER, INK = "#ffffff", "#333333"


@dataclass(frozen=True)
class Curve:
    """Of one layer."""

    layer: int
    made: np.ndarray
    """The metric with the vector, [coefficients, prompts]."""
    random: np.ndarray
    """With random vectors of its norm, by the first and the last coefficient: [random vectors, 2,
    prompts]."""
    norm: float
    """Of the vector, as a part of the typical norm of a row there."""
    held_out_auroc: float


class Study:
    """Of a served model."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self._generation = generation_service_pb2_grpc.GenerationServiceStub(channel)
        self._vectors = steering_vector_service_pb2_grpc.SteeringVectorServiceStub(channel)
        self._good, self._bad = (
            [self._token(word) for word in words] for words in (sentiment.GOOD, sentiment.BAD)
        )

    def curves(self, layers: Sequence[int], coefficients: Sequence[float]) -> list[Curve]:
        """The vector is deleted in the end."""
        made = self._make(layers)
        try:
            return [self._curve(made, index, coefficients) for index in range(len(layers))]
        finally:
            self._vectors.DeleteSteeringVector(
                steering_vector_service_pb2.DeleteSteeringVectorRequest(name=made.name)
            )

    def _token(self, word: str) -> int:
        """The one token that a word is, in the middle of a text."""
        prompt = {"text": f"It is{word}"}
        answer = self._models.Tokenize(model_service_pb2.TokenizeRequest(prompt=prompt))
        *_, last = answer.prompt.texts
        if last != word:
            raise ValueError(f"{word!r} is several tokens of this model; use another word")
        return answer.prompt.ids[-1]

    def _make(self, layers: Sequence[int]) -> steering_vector_service_pb2.SteeringVector:
        request = steering_vector_service_pb2.MakeSteeringVectorRequest(
            sites=[_site(layer) for layer in layers],
            prompts={
                "positive": [{"text": text} for text in sentiment.POSITIVE],
                "negative": [{"text": text} for text in sentiment.NEGATIVE],
            },
            request_id=str(uuid.uuid4()),
        )
        return self._vectors.MakeSteeringVector(request).steering_vector

    def _curve(
        self,
        made: steering_vector_service_pb2.SteeringVector,
        index: int,
        coefficients: Sequence[float],
    ) -> Curve:
        row, width = made.rows[index], made.shape[1]
        named = source_pb2.VectorSource(steering_vector=made.name)
        rng = np.random.default_rng(row.site.layer)
        noise = rng.standard_normal((RANDOM_VECTORS, width))
        noise *= row.norm / np.linalg.norm(noise, axis=1, keepdims=True)
        return Curve(
            layer=row.site.layer,
            made=np.stack([self._metric(row.site, named, each) for each in coefficients]),
            random=np.stack(
                [
                    [self._metric(row.site, _sent(vector), coefficients[end]) for end in (0, -1)]
                    for vector in noise
                ]
            ),
            norm=row.norm / row.median_row_norm,
            held_out_auroc=row.separation.held_out_auroc,
        )

    def _metric(
        self, site: site_pb2.Site, vector: source_pb2.VectorSource, coefficient: float
    ) -> np.ndarray:
        """The mean log probability of good words less that of bad ones, of each prompt."""
        add = intervention_pb2.AddOperation(vector=vector, coefficient=coefficient)
        request = generation_service_pb2.FetchActivationsRequest(
            items=[{"prompt": {"text": text}} for text in sentiment.NEUTRAL],
            readouts=[
                readout_pb2.Readout(
                    predictions=readout_pb2.PredictionReadout(
                        positions=LAST, token_ids=[*self._good, *self._bad]
                    )
                )
            ],
            interventions=[intervention_pb2.Intervention(sites=[site], positions=LAST, add=add)],
            fail_fast=True,
        )
        found = np.full(len(sentiment.NEUTRAL), np.nan)
        for event in self._generation.FetchActivations(request):
            if event.HasField("predictions"):
                told = event.predictions
                logprobs = np.frombuffer(told.token_logprobs.data, "<f4").astype(np.float64)
                good, bad = logprobs[: len(self._good)], logprobs[len(self._good) :]
                found[told.sequence_index] = good.mean() - bad.mean()
        assert np.isfinite(found).all()
        return found


def draw(curves: Sequence[Curve], coefficients: Sequence[float], path: Path) -> None:
    """The same numbers give the same file."""
    with mpl.rc_context({"svg.hashsalt": "actserve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 3.2), facecolor=PAPER, layout="constrained")
        every = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, curve, colour in zip(every, curves, COLOURS, strict=False):
            _draw_curve(axes, curve, coefficients, colour)
        every[0].set_ylabel("log P(good words) - log P(bad words)")
        every[0].legend(frameon=False, loc="upper left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _draw_curve(axes: Axes, curve: Curve, coefficients: Sequence[float], colour: str) -> None:
    mean = curve.made.mean(axis=1)
    error = curve.made.std(axis=1, ddof=1) / np.sqrt(curve.made.shape[1])
    ends = (coefficients[0], coefficients[-1])
    for vector in curve.random.mean(axis=2):
        axes.plot(ends, vector, color=INK, ls="", marker="_", ms=9, mew=0.8)
    axes.plot([], [], color=INK, ls="", marker="_", ms=9, mew=0.8, label="random vectors")
    axes.fill_between(coefficients, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
    axes.plot(coefficients, mean, color=colour, marker="o", ms=3, label="difference of means")
    axes.set_title(
        f"resid_post.{curve.layer}: {curve.norm:.2f} of a row, AUROC {curve.held_out_auroc:.2f}",
        fontsize=9,
    )
    axes.set_xlabel("coefficient")
    axes.spines[["top", "right"]].set_visible(False)


def _site(layer: int) -> site_pb2.Site:
    return site_pb2.Site(hook_point=site_pb2.HOOK_POINT_RESID_POST, layer=layer)


def _sent(vector: np.ndarray) -> source_pb2.VectorSource:
    return source_pb2.VectorSource(
        tensor=tensor_pb2.Tensor(
            element_type=tensor_pb2.ELEMENT_TYPE_F32,
            shape=vector.shape,
            data=vector.astype("<f4").tobytes(),
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", help="the address of a server, such as localhost:50051")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to write")
    given = parser.parse_args(arguments)
    with grpc.insecure_channel(given.target) as channel:
        curves = Study(channel).curves(given.layers, COEFFICIENTS)
    for curve in curves:
        print(curve.layer, curve.made.mean(axis=1).round(2).tolist())
    draw(curves, COEFFICIENTS, given.picture)


if __name__ == "__main__":
    main()
