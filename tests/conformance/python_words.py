"""Between the messages in which drivers are asked and answer, and the Python client's own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import actserve
from actserve import tensors
from actserve.projections import SparseRows
from actserve.sites import site_name
from actserve.v1 import positions_pb2

Answer = dict[str, Any]


def array(values: Any) -> Answer:
    values = np.asarray(values, "<f4")
    return {"shape": list(values.shape), "data": values.tobytes().hex()}


def prompt_of(prompt: Any) -> Any:
    return list(prompt.token_ids.ids) if prompt.WhichOneof("source") == "token_ids" else prompt.text


def positions_of(selector: positions_pb2.PositionSelector) -> Any:
    """The selector as a caller writes it."""
    match selector.WhichOneof("selection"):
        case None:
            return "all"
        case "list":
            return list(selector.list.positions)
        case "span":
            bounds = selector.span
            start = bounds.start if bounds.HasField("start") else None
            return slice(start, bounds.end if bounds.HasField("end") else None)
        case "token_ids":
            return actserve.ByTokenId(list(selector.token_ids.ids))
        case "text":
            return actserve.ByText(selector.text.text)
        case name:
            return name


def vector_of(vector: Any) -> Any:
    """The vector of a question as a caller writes it: an array, the name of a stored one, or a
    feature."""
    if isinstance(vector, str):
        return vector
    if "dictionary" in vector:
        return actserve.Feature(vector["dictionary"], vector["index"])
    return np.frombuffer(bytes.fromhex(vector["data"]), "<f4")


def source_of(vector: Any) -> Any:
    """The vector of a message as a caller writes it."""
    return vector.steering_vector or tensors.decode(vector.tensor)


def term_of(term: Any) -> actserve.VectorTerm:
    coefficient = term.coefficient if term.HasField("coefficient") else 1.0
    return actserve.VectorTerm(term.steering_vector, coefficient)


def probe_of(probe: Any) -> actserve.Probe:
    return actserve.Probe(site_name(probe.site), source_of(probe.direction), probe.bias)


def variant_of(variant: Any) -> actserve.Variant:
    """The variant, whose interventions add vectors, as a caller writes it."""
    lists = {
        "coefficients": list(variant.coefficients),
        "sites": [site_name(site) for site in variant.sites],
        "positions": [positions_of(each) for each in variant.positions],
    }
    if not variant.interventions:
        return actserve.Variant(**lists)
    (asked,) = variant.interventions
    vector = source_of(asked.add.vector)
    if asked.sites:
        vector = actserve.Add([site_name(site) for site in asked.sites], vector)
    return actserve.Variant(vector, **lists)


def when_of(when: Answer) -> Any:
    """The condition of a question as a caller writes it."""
    options: Answer = {}
    if aggregator := when.get("aggregator"):
        if "ema" in aggregator:
            options["smoothing"] = actserve.Ema(aggregator["ema"]["weight"])
        options["reduce"] = aggregator["reduction"].removeprefix("REDUCTION_").lower()
    bias = when.get("bias", 0.0)
    probe = actserve.Probe(when["site"], vector_of(when["direction"]), bias, **options)
    return actserve.When(probe, **{name: when[name] for name in ("above", "below") if name in when})


def readout_of(readout: Any) -> Any:
    """The readout as a caller writes it."""
    kind = readout.WhichOneof("kind")
    asked = getattr(readout, kind)
    if kind == "attention":
        return actserve.Attention(
            asked.layer, list(asked.heads), positions_of(asked.queries), asked.top_k or None
        )
    if kind == "attention_summary":
        return actserve.AttentionSummary(list(asked.layers), positions_of(asked.queries))
    where = ([site_name(site) for site in asked.sites], positions_of(asked.positions))
    if kind == "predictions":
        return actserve.Predict(*where, asked.top_k, list(asked.token_ids), asked.next_token)
    if kind == "logit_attribution":
        return actserve.LogitAttribution(
            where[0], [each.token_id for each in asked.targets], where[1]
        )
    if kind == "keep":
        return actserve.Read(*where, keep=actserve.Keep(asked.ttl.seconds, send=False))
    projection = None
    if asked.projection.dictionary:
        named, top = asked.projection.dictionary, asked.projection.send_top or None
        projection = actserve.Projection(dictionary=named, send_top=top)
    elif asked.HasField("projection"):
        directions = tensors.decode(asked.projection.directions.tensor)
        projection = actserve.Projection(directions, send_top=asked.projection.send_top or None)
    reduce = {0: None, 1: "last", 2: "mean", 3: "max"}[asked.reduction]
    element_type = {0: None, 1: "f32", 2: "f16", 3: "bf16"}[asked.element_type]
    return actserve.Read(*where, projection, reduce, element_type)


def readouts_of(found: Mapping[str, Any], asked: Any) -> Answer:
    """What came of the readouts, by name."""
    told: Answer = {}
    for readout in asked:
        kind, result = readout.WhichOneof("kind"), found[readout.name]
        told[readout.name] = {WIRE_NAMES.get(kind, kind): KINDS[kind](result)}
    return told


def rows_told(rows: actserve.ReadRows) -> Answer:
    positions = [int(each) for each in rows.positions]
    told: Answer = {
        site: {"positions": positions, **array(rows[site])} for site in rows if len(rows)
    }
    for site, sparse in rows.sparse.items():
        assert isinstance(sparse, SparseRows)
        indices = [int(each) for each in sparse.indices.ravel()]
        told[site] = {"positions": positions, **array(sparse.values), "indices": indices}
    return told


def predictions_told(predictions: Any) -> Answer:
    told: Answer = {}
    for site, each in predictions.items():
        told[site] = {
            "positions": [int(at) for at in each.positions],
            "top_ids": [int(at) for at in np.asarray(each.top_ids).ravel()],
            "top_texts": [text for row in each.top_tokens for text in row],
        }
        for name in ("top_logprobs", "token_logprobs", "next_token_logprobs"):
            values = getattr(each, name)
            if values is not None and np.asarray(values).size:
                told[site][name] = array(values)
    return told


def attention_told(patterns: Any) -> Answer:
    told: Answer = {}
    for (_, head), pattern in patterns.items():
        told[str(head)] = {"queries": [int(at) for at in pattern.queries], **array(pattern.weights)}
        if pattern.keys is not None:
            told[str(head)]["keys"] = [int(at) for at in np.asarray(pattern.keys).ravel()]
    return told


def summary_told(means: actserve.AttentionMeans) -> Answer:
    return {
        str(layer): {"queries": means.queries, "previous_token": array(row)}
        for layer, row in zip(means.layers, means.previous_token, strict=True)
    }


def attributions_told(attributions: Any) -> Answer:
    positions = [int(at) for at in attributions.positions]
    return {site: {"positions": positions, **array(attributions[site])} for site in attributions}


LEVELS = {0: None, 1: "lower", 2: "upper"}


def level_of(level: Any) -> actserve.Level | None:
    """The level of a message that stops, or does nothing, as a caller writes it."""
    if not level.threshold and not level.HasField("stop"):
        return None
    action = actserve.Stop() if level.HasField("stop") else None
    return actserve.Level(level.threshold, action, level.flag)


def alerts_told(alerts: Sequence[actserve.Alert], monitors: str) -> list[Answer]:
    """`monitors` is what the names of monitors begin with, of which the client tells ids alone."""
    return [
        {
            "monitor": monitors + each.monitor,
            "level": each.level.upper() or None,
            "score": each.score,
            "position": each.position,
        }
        for each in alerts
    ]


def scores_told(scores: Mapping[str, actserve.MonitorScore], monitors: str) -> list[Answer]:
    """As `alerts_told`; what is None for want of tokens is zero on the wire."""
    told: list[Answer] = []
    for each in scores.values():
        told.append(
            {
                "monitor": monitors + each.monitor,
                "tokens": each.tokens,
                "score": each.score or 0,
                "highest_score": each.highest or 0,
                "highest_position": each.highest_position or 0,
                "level": each.level.upper() or None,
            }
        )
        if each.scores is not None and each.positions is not None:
            told[-1] |= {"positions": each.positions.tolist(), **array(each.scores)}
    return told


def changes_told(changes: Sequence[actserve.MonitorInterventions], monitors: str) -> list[Answer]:
    """As `alerts_told`."""
    return [
        {
            "monitor": monitors + each.monitor,
            "level": each.level.upper(),
            "first_position": each.first_position,
            "interventions": [
                {
                    "rows": report.rows,
                    "changed_rows": report.changed_rows,
                    "reused_rows": report.reused_rows,
                    "mean_relative_change": report.mean_relative_change,
                }
                for report in each.interventions
            ],
        }
        for each in changes
    ]


WIRE_NAMES = {"keep": "kept"}
KINDS: dict[str, Callable[[Any], Any]] = {
    "rows": rows_told,
    "predictions": predictions_told,
    "attention": attention_told,
    "attention_summary": summary_told,
    "logit_attribution": attributions_told,
    "keep": lambda rows: rows.kept,
}
